"""What root opens to the server's user: the way to its data, for it alone."""

import os
import stat
from pathlib import Path

import pytest

from theon.store import server_user
from theon.store.server_user import ServerUser, open_programs, open_way

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root opens a way for others")


@pytest.fixture
def nobody() -> ServerUser:
    """A user without any right of its own."""
    return ServerUser(NOBODY, NOBODY, "nobody", other=True)


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


def reads(path: Path, uid: int) -> bool:
    """Whether a process of this user reads the file or lists the folder (a child tries)."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        try:
            list(path.iterdir()) if path.is_dir() else path.read_bytes()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def a_way(tmp_path: Path) -> tuple[Path, Path]:
    """A closed folder, and a file in it that all may read once they are there."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    target = closed / "file"
    target.write_text("x")
    return closed, target


def test_one_user_may_walk_and_nobody_else(tmp_path: Path, nobody: ServerUser) -> None:
    """It may pass through, not list; other users may neither; a second time changes nothing."""
    closed, target = a_way(tmp_path)
    assert not reads(target, NOBODY)
    assert closed in open_way(target, nobody)
    assert reads(target, NOBODY)
    assert not reads(closed, NOBODY)
    assert not reads(target, NOBODY - 1)
    assert mode(closed) & 0o007 == 0
    assert open_way(target, nobody) == []


def test_two_users_each_have_their_way(tmp_path: Path, nobody: ServerUser) -> None:
    """An entry that is there already stays."""
    closed, target = a_way(tmp_path)
    other = ServerUser(NOBODY - 1, NOBODY - 1, "other", other=True)
    open_way(target, nobody)
    assert open_way(target, other)[-1] == closed
    assert reads(target, NOBODY)
    assert reads(target, NOBODY - 1)


def test_a_file_system_without_entries_gets_the_smallest_mode(
    tmp_path: Path, nobody: ServerUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the folder may be walked through by others, and still not listed."""
    closed, target = a_way(tmp_path)
    open_way(closed, nobody)

    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(server_user.os, "setxattr", refuse)
    open_way(target, nobody)
    assert mode(closed) == 0o701
    assert reads(target, NOBODY)


def test_what_may_be_walked_stays_as_it_is(tmp_path: Path, nobody: ServerUser) -> None:
    """No folder is touched that needs nothing, the root of the file system included."""
    _, target = a_way(tmp_path)
    before = {folder: mode(folder) for folder in target.parents}
    changed = open_way(target, nobody)
    for folder, was in before.items():
        if folder not in changed:
            assert mode(folder) == was
    assert Path("/") not in changed


def test_programs_are_opened_and_no_more_than_that(tmp_path: Path, nobody: ServerUser) -> None:
    """Readable, and to be run where their owner may run them; never writable."""
    folder = tmp_path / "programs"
    (folder / "bin").mkdir(parents=True)
    program, library = folder / "bin" / "postgres", folder / "lib.so"
    for path, bits in ((program, 0o700), (library, 0o600)):
        path.write_text("x")
        path.chmod(bits)
    open_programs(folder, nobody)
    assert (mode(program), mode(library)) == (0o755, 0o644)
    assert reads(program, NOBODY)


def test_the_current_user_needs_no_way(tmp_path: Path) -> None:
    """An ordinary user's folders are never changed."""
    closed, target = a_way(tmp_path)
    assert open_way(target, ServerUser(os.geteuid(), os.getegid(), "me", other=False)) == []
    assert mode(closed) == 0o700
