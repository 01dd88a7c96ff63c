"""The embedded PostgreSQL: found by all, stopped by the last, and back after any crash."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy import text
from store_processes import OtherUser, kill_server, server_process

from theon.errors import UnavailableError
from theon.roster.campuses import add_campus, list_campuses
from theon.settings import Settings
from theon.store import embedded, postmaster
from theon.store.embedded import EmbeddedServer
from theon.store.engine import Store
from theon.store.scope import Scope

pytestmark = pytest.mark.slow
Start = Callable[[], OtherUser]


def wait_for(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.01)


def slugs(store: Store) -> list[str]:
    return [campus.slug for campus in list_campuses(store, Scope.district())]


def test_the_last_user_stops_the_server(
    home: Path, home_settings: Settings, other_user: Start
) -> None:
    """Other processes find the running server; it ends with the last of them, not before."""
    with Store.open(home_settings) as store:
        add_campus(store, "lincoln", "Europe/London")
        first = server_process(home)
        assert first is not None
        second = other_user()
        assert second.opened() == ["district", "lincoln"]
        assert server_process(home) == first
    assert server_process(home) == first
    second.leave()
    assert server_process(home) is None
    assert not (home / "postgres" / "data" / "postmaster.pid").exists()


def test_a_killed_user_does_not_keep_the_server(
    home: Path, home_settings: Settings, other_user: Start
) -> None:
    """Its use ends with its process: the next user finds the server, and stops it as the last."""
    killed = other_user()
    killed.opened()
    server = server_process(home)
    killed.kill()
    assert server is not None
    assert server.is_running()
    with Store.open(home_settings):
        assert server_process(home) == server
    assert server_process(home) is None


def test_processes_that_start_at_once_share_one_server(home: Path, other_user: Start) -> None:
    """On an empty folder: one makes the database, all open it, none fails."""
    users = [other_user() for _ in range(3)]
    assert [user.opened() for user in users] == [["district"]] * 3
    for user in users:
        user.leave()
    assert server_process(home) is None


def test_what_was_committed_survives_a_killed_server(
    home: Path, home_settings: Settings, other_user: Start
) -> None:
    """The open store goes on with the same rows, and so does another process."""
    with Store.open(home_settings) as store:
        add_campus(store, "lincoln", "Europe/London")
        killed = kill_server(home)
        assert slugs(store) == ["district", "lincoln"]
        back = server_process(home)
        assert back is not None
        assert back.pid != killed.pid
        other = other_user()
        assert other.opened() == ["district", "lincoln"]
        other.leave()


def test_a_connection_whose_server_died_is_replaced_before_anything_is_done(
    home: Path, home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment in which a killed server's children still answer is not an error either."""
    with Store.open(home_settings) as store:
        ping = store._app.dialect.do_ping

        def die_after_answering(connection: Any) -> bool:
            answer = ping(connection)
            kill_server(home)
            connection.close()
            monkeypatch.setattr(store._app.dialect, "do_ping", ping)
            return answer

        assert slugs(store) == ["district"]
        monkeypatch.setattr(store._app.dialect, "do_ping", die_after_answering)
        assert slugs(store) == ["district"]


def test_a_server_killed_inside_a_transaction_is_said_and_nothing_is_kept(
    home: Path, home_settings: Settings
) -> None:
    """The block ends with an error that says so; its rows are not there afterwards."""
    with Store.open(home_settings) as store:
        insert = text("INSERT INTO theon.people (campus_id, user_id) VALUES (1, :u)")

        def work() -> None:
            with store.transaction(Scope.district()) as conn:
                conn.execute(insert, {"u": "1"})
                kill_server(home)
                conn.execute(insert, {"u": "2"})

        with pytest.raises(UnavailableError, match="went away"):
            work()
        with store.transaction(Scope.district()) as conn:
            assert conn.execute(text("SELECT count(*) FROM theon.people")).scalar_one() == 0


@pytest.mark.parametrize("content", ["{pid}\n", "", "rubbish\n", "{pid}\n/elsewhere\n1\n5432\n"])
def test_a_stale_pid_file_stops_nobody(home: Path, home_settings: Settings, content: str) -> None:
    """After a crash its number may be another process's by now, or it may hold nothing."""
    with Store.open(home_settings) as store:
        add_campus(store, "lincoln", "Europe/London")
        kill_server(home)
        server = store._server
        assert server is not None
        pid_file = home / "postgres" / "data" / "postmaster.pid"
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as somebody:
            pid_file.write_text(content.format(pid=somebody.pid))
            assert slugs(store) == ["district", "lincoln"]
            assert somebody.poll() is None
            somebody.communicate(b"\n")


@pytest.mark.parametrize("whole", [False, True], ids=["the postmaster", "the whole server"])
def test_a_server_that_was_killed_and_is_not_collected_stops_nobody(
    home: Path, home_settings: Settings, other_user: Start, whole: bool
) -> None:
    """Who started it is frozen and leaves it as a zombie, whose number its files still name."""
    starter = other_user()
    starter.opened()
    server = server_process(home)
    assert server is not None
    starter.process.send_signal(signal.SIGSTOP)
    try:
        for process in [server, *(server.children() if whole else [])]:
            process.kill()
        wait_for(lambda: server.status() == psutil.STATUS_ZOMBIE)
        other = other_user()
        assert other.opened() == ["district"]
        with Store.open(home_settings) as store:
            assert slugs(store) == ["district"]
            assert server.status() == psutil.STATUS_ZOMBIE
        other.leave()
    finally:
        starter.process.send_signal(signal.SIGCONT)
    starter.leave()


def test_a_socket_lock_that_names_somebody_else_stops_nobody(
    home: Path, home_settings: Settings
) -> None:
    """After a crash its number may be another process's of the same user by now."""
    with Store.open(home_settings) as store:
        server = postmaster.find(home / "postgres" / "data")
        assert server is not None
        assert server.socket_dir is not None
        uids = server.process.uids()
        kill_server(home)
        lock = server.socket_dir / f".s.PGSQL.{embedded.PORT}.lock"
        with subprocess.Popen(["sleep", "600"], user=uids.real) as somebody:
            lines = lock.read_text().splitlines()
            lock.write_text("\n".join([str(somebody.pid), *lines[1:]]) + "\n")
            assert slugs(store) == ["district"]
            assert somebody.poll() is None
            somebody.kill()


def test_a_child_that_outlives_its_postmaster_is_ended_first(
    home: Path, home_settings: Settings
) -> None:
    """No second server starts on the data while a process of the first may still write."""
    with Store.open(home_settings) as store:
        server = server_process(home)
        assert server is not None
        child = next(p for p in server.children() if "checkpointer" in " ".join(p.cmdline()))
        child.send_signal(signal.SIGSTOP)  # cannot notice that its postmaster is gone
        kill_server(home)
        assert child.is_running()
        assert slugs(store) == ["district"]
        assert not postmaster.alive(child)


def test_a_recovery_of_more_than_ten_seconds_is_waited_for(
    home: Path, home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that needs its time to start is not given up, nor started twice."""
    with Store.open(home_settings) as store:
        add_campus(store, "lincoln", "Europe/London")
        kill_server(home)
        spawn = EmbeddedServer._spawn
        started: list[psutil.Process] = []

        def slowly(server: EmbeddedServer) -> postmaster.Postmaster:
            found = spawn(server)
            found.process.suspend()
            threading.Timer(12, found.process.resume).start()
            started.append(found.process)
            return found

        monkeypatch.setattr(EmbeddedServer, "_spawn", slowly)
        assert slugs(store) == ["district", "lincoln"]
        assert started == [server_process(home)]


def test_who_is_frozen_while_the_server_recovers_keeps_nobody_out(
    home: Path, home_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not from starting another one, when the one that recovered was killed as well."""
    goes_on = threading.Event()
    waits = threading.Event()
    wait_until_ready = EmbeddedServer._wait_until_ready

    def frozen(server: EmbeddedServer, running: postmaster.Postmaster) -> Path:
        waits.set()
        assert goes_on.wait(60)
        return wait_until_ready(server, running)

    with Store.open(home_settings) as store:
        slow = EmbeddedServer(home)
        monkeypatch.setattr(slow, "_wait_until_ready", lambda running: frozen(slow, running))
        kill_server(home)
        starter = threading.Thread(target=slow.start)
        starter.start()
        try:
            assert waits.wait(60)
            kill_server(home)
            assert slugs(store) == ["district"]
        finally:
            goes_on.set()
            starter.join()
            slow.release()
        assert slugs(store) == ["district"]


def test_a_server_that_cannot_start_says_why(home: Path, home_settings: Settings) -> None:
    """The message carries the end of the server's log and where the log is."""
    Store.open(home_settings).close()
    with pytest.raises(UnavailableError, match="no_such_setting") as caught:
        Store.open(home_settings, server={"no_such_setting": "1"})
    assert caught.value.where == str(home / "postgres" / "server.log")
    with Store.open(home_settings) as store:  # and the next start is not harmed
        assert slugs(store) == ["district"]


def test_a_database_half_made_is_made_again(home: Path, home_settings: Settings) -> None:
    """A process killed while it made the database leaves a draft that the next one removes."""
    draft = home / "postgres" / "new-left-over" / "data"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    with Store.open(home_settings) as store:
        assert slugs(store) == ["district"]
    assert not draft.parent.exists()


def test_a_path_longer_than_a_socket_may_have(place: Path) -> None:
    """The socket moves to a short private folder, where other processes find it too."""
    home = place / ("long " * 20) / ("path" * 20)
    settings = Settings(home=home, postgres_url=None, postgres_app_url=None)
    with Store.open(settings) as store:
        assert slugs(store) == ["district"]
        server = postmaster.find(home / "postgres" / "data")
        assert server is not None
        assert server.socket_dir is not None
        name = server.socket_dir / f".s.PGSQL.{embedded.PORT}"
        assert len(os.fsencode(name)) <= embedded.SOCKET_PATH_BYTES
        assert stat.S_ISSOCK(name.stat().st_mode)
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
        second = OtherUser(home)
        assert second.opened() == ["district"]
        second.leave()
    assert server_process(home) is None
    assert not server.socket_dir.exists()


def test_a_socket_folder_made_by_somebody_else_is_not_used(
    home: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that all may write, a folder or link of that name may be a trap."""
    monkeypatch.setattr(embedded, "_runtime_dirs", lambda: [place])
    server = EmbeddedServer(home / ("long" * 30))
    server._make_folders()
    user = server._spawn_user()
    trap = place / postmaster.cluster_name(server.data)
    trap.symlink_to(home)
    with pytest.raises(UnavailableError, match="too long for a socket"):
        server._socket_dir(user)
    trap.unlink()
    assert server._socket_dir(user) == trap
    if os.geteuid() == 0:  # who else could give a folder away
        os.chown(trap, 65534, 65534)
        with pytest.raises(UnavailableError, match="too long for a socket"):
            server._socket_dir(user)


def test_other_users_of_the_machine_do_not_get_in(home: Path, home_settings: Settings) -> None:
    """No login goes without its password, the superuser's neither; secrets are the owner's."""
    with Store.open(home_settings) as store:
        server = postmaster.find(home / "postgres" / "data")
        assert server is not None
        for user in ("postgres", "theon_owner", "theon_app_theon"):
            for password in (None, "", "postgres", user):
                with pytest.raises(psycopg.OperationalError, match="password"):
                    psycopg.connect(
                        host=str(server.socket_dir), user=user, password=password, dbname="postgres"
                    )
        rules = (home / "postgres" / "data" / "pg_hba.conf").read_text()
        methods = {line.split()[-1] for line in rules.splitlines() if line and line[0] not in "# "}
        assert methods == {"scram-sha-256"}
        with store.owner_transaction() as conn:
            shown = conn.execute(text("SHOW listen_addresses")).scalar_one()
        assert shown == ""
    assert stat.S_IMODE((home / "secrets").stat().st_mode) == 0o700
    for secret in (home / "secrets").iterdir():
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert len(secret.read_text().strip()) == 43
    assert not list((home / "postgres").glob("new-*"))


def test_durable_unless_told_otherwise(home: Path, home_settings: Settings) -> None:
    """What is committed is on the disk: the tuning leaves these switches alone."""
    with Store.open(home_settings) as store, store.owner_transaction() as conn:
        for switch in ("fsync", "full_page_writes", "synchronous_commit"):
            assert conn.execute(text(f"SHOW {switch}")).scalar_one() == "on"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a system user")
def test_root_opens_no_folder_wider_than_needed(place: Path) -> None:
    """The way to the data is opened for the server's user alone; others see as little as before."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    settings = Settings(home=closed / "home", postgres_url=None, postgres_app_url=None)
    with Store.open(settings) as store:
        assert slugs(store) == ["district"]
        server = server_process(settings.home_dir)
        assert server is not None
        assert server.uids().real != 0
    home = settings.home_dir
    for folder in (closed, home, home / "postgres", home / "secrets"):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o007 == 0, folder
        seen = subprocess.run(
            ["/bin/ls", str(folder)], check=False, capture_output=True, user=65534, extra_groups=[]
        )
        assert seen.returncode != 0, folder


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all other tests already")
def test_an_ordinary_user_needs_no_system_user(place: Path) -> None:
    """The same road without root: the server runs as the user who started it."""
    (place / "mine").mkdir()
    os.chown(place / "mine", 65534, 65534)
    program = f"""
import os
from pathlib import Path
from sqlalchemy import text
from theon.settings import Settings
from theon.store import postmaster
from theon.store.engine import Store
from theon.store.scope import Scope

def visit(home):
    with Store.open(Settings(home=home, postgres_url=None)) as store:
        with store.transaction(Scope.district()) as conn:
            assert conn.execute(text("SELECT count(*) FROM theon.campuses")).scalar_one() == 1
        return postmaster.find(home / "postgres" / "data").process.uids().real

visit(Path({str(place / "warm")!r}))  # loads every module while root may still read them
os.chmod({str(place)!r}, 0o711); os.chdir("/")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
assert visit(Path({str(place / "mine" / "home")!r})) == 65534
print("as nobody")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == "as nobody", done.stderr
    home = place / "mine" / "home"  # and root may use it without taking it over
    with Store.open(Settings(home=home, postgres_url=None, postgres_app_url=None)) as store:
        assert slugs(store) == ["district"]
        server = server_process(home)
        assert server is not None
        assert server.uids().real == 65534
