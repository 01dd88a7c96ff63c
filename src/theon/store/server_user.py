"""The operating-system user that the embedded PostgreSQL runs as, and what it may reach.

PostgreSQL refuses to run as root. Started by root, it runs as a system user of its own that
needs to walk down to its data and its programs, and nothing else: each folder on the way
gets one access-control entry (`x` for this one user), never a wider mode, unless the file
system knows no such entries; then the folder gets `x` for others, still not `r`.
"""

import os
import pwd
import shutil
import stat
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from theon.errors import UnavailableError

SERVER_USER = "theon-postgres"

_ACL = "system.posix_acl_access"
_ACL_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 0xFFFFFFFF
_EXECUTE = 1


@dataclass(frozen=True)
class ServerUser:
    """The user the server runs as; `other` is None where that is the current user."""

    uid: int
    gid: int
    name: str
    other: bool

    @property
    def spawn(self) -> dict[str, object]:
        """Arguments for `subprocess` that start a program as this user."""
        if not self.other:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the server: no variable of ours may steer it (PGPORT, PGDATA…)."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        return {**kept, "LC_ALL": "C", "HOME": "/"} if self.other else {**kept, "LC_ALL": "C"}

    def own(self, path: Path) -> None:
        """Give `path` to this user (nothing to do for the current user)."""
        if self.other:
            os.chown(path, self.uid, self.gid)


def server_user(data: Path) -> ServerUser:
    """The user to run the server of `data` as.

    The current one; for root, the owner of the data, so that what an ordinary user began stays
    that user's, or a system user made for it if there is no data yet.

    Raises:
        UnavailableError: running as root where no system user can be made.
    """
    if os.geteuid() != 0:
        return ServerUser(os.geteuid(), os.getegid(), str(os.geteuid()), other=False)
    if data.exists() and data.stat().st_uid != 0:
        status = data.stat()
        return ServerUser(status.st_uid, status.st_gid, str(status.st_uid), other=True)
    try:
        entry = pwd.getpwnam(SERVER_USER)
    except KeyError:
        _add_user()
        entry = pwd.getpwnam(SERVER_USER)
    return ServerUser(entry.pw_uid, entry.pw_gid, SERVER_USER, other=True)


def _add_user() -> None:
    if shutil.which("useradd"):
        command = ["useradd", "--system", "--user-group", "--no-create-home"]
        command += ["--home-dir", "/", "--shell", "/bin/false", SERVER_USER]
    elif shutil.which("adduser"):  # busybox
        command = ["adduser", "-S", "-D", "-H", "-h", "/", "-s", "/bin/false", SERVER_USER]
    else:
        raise _no_user("neither useradd nor adduser is installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    try:
        pwd.getpwnam(SERVER_USER)  # another process may have made it at the same moment
    except KeyError:
        reason = done.stderr.strip() or f"{command[0]} ended with {done.returncode}"
        raise _no_user(reason) from None


def _no_user(reason: str) -> UnavailableError:
    return UnavailableError(
        f"PostgreSQL may not run as root, and its system user {SERVER_USER!r} cannot be made: "
        f"{reason}",
        where="embedded PostgreSQL",
        next_step="Run Theon as an ordinary user, make this user by hand, or set POSTGRES_URL.",
    )


def open_way(path: Path, user: ServerUser) -> list[Path]:
    """Let `user` walk through the folders above `path`, and change nothing that needs none.

    Returns:
        The folders that were changed.

    Raises:
        UnavailableError: a folder on the way cannot be changed.
    """
    changed: list[Path] = []
    if not user.other:
        return changed
    for folder in reversed(path.resolve().parents):
        if not _may_walk(folder, user):
            _let_walk(folder, user)
            changed.append(folder)
    return changed


def open_programs(folder: Path, user: ServerUser) -> None:
    """Let `user` read and run the programs in `folder` (they are public software)."""
    if not user.other:
        return
    open_way(folder, user)
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            continue
        wanted = mode | 0o444 | (0o111 if stat.S_ISDIR(mode) or mode & 0o100 else 0)
        if wanted != mode:
            path.chmod(stat.S_IMODE(wanted))


def _may_walk(folder: Path, user: ServerUser) -> bool:
    status = folder.stat()
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    entries = _entries(folder)
    if (_USER, user.uid) in entries:
        mask = entries.get((_MASK, _NO_ID), 7)
        return bool(entries[(_USER, user.uid)] & mask & _EXECUTE)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _entries(folder: Path) -> dict[tuple[int, int], int]:
    """The access-control entries of a folder: (kind, id) -> permissions; empty without any."""
    try:
        raw = os.getxattr(folder, _ACL)
    except (OSError, AttributeError):  # none set, or a system without them
        return {}
    return {(tag, who): perm for tag, perm, who in struct.iter_unpack("<HHI", raw[4:])}


def _let_walk(folder: Path, user: ServerUser) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    entries = _entries(folder) or {
        (_USER_OBJ, _NO_ID): mode >> 6 & 7,
        (_GROUP_OBJ, _NO_ID): mode >> 3 & 7,
        (_OTHER, _NO_ID): mode & 7,
    }
    entries[(_USER, user.uid)] = _EXECUTE
    # The mask caps every entry but owner and others, so it is what these entries add up to
    # (or what it was): the group's rights stay what they were.
    mask = entries.get((_MASK, _NO_ID), entries[(_GROUP_OBJ, _NO_ID)])
    entries[(_MASK, _NO_ID)] = mask | _EXECUTE
    rows = ((tag, perm, who) for (tag, who), perm in sorted(entries.items()))
    packed = b"".join(struct.pack("<HHI", *row) for row in rows)
    try:
        os.setxattr(folder, _ACL, struct.pack("<I", _ACL_VERSION) + packed)
    except (OSError, AttributeError):
        try:
            folder.chmod(mode | stat.S_IXOTH)
        except OSError as error:
            raise UnavailableError(
                f"the user {user.name!r}, which runs the embedded PostgreSQL, may not walk through "
                f"this folder: {error.strerror}",
                where=str(folder),
                next_step="Set THEON_HOME to a folder that it may reach, or run as another user.",
            ) from error
