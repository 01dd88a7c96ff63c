"""The processes of the chaos run, and what is done to them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import psutil

from tests.jobs.redis_server import RedisServer
from tests.ports import held_port
from tests.system import chaos_dispatcher, chaos_worker
from theon.store import postmaster

SLOTS = 4


def say(began_s: float, what: str) -> None:
    sys.stdout.write(f"{time.monotonic() - began_s:6.1f} s  {what}\n")
    sys.stdout.flush()


class Member:
    """A process that is started again when it is dead."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.frozen: list[psutil.Process] = []
        self.thaw_at_s: float | None = None
        self.starts = 0
        self._command = list(command)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,
            )

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def tree(self) -> list[psutil.Process]:
        """The process and what it started, but for a database, which is everybody's."""
        if self._process is None or self.dead:
            return []
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            found = [top, *(p for p in top.children(recursive=True) if not _is_postgres(p))]
        return found

    def jobs(self) -> list[psutil.Process]:
        """The processes of jobs: what the server of forks has forked."""
        forked: list[psutil.Process] = []
        for process in self.tree()[1:]:
            with suppress(psutil.NoSuchProcess):
                if "forkserver" in " ".join(process.cmdline()):
                    forked += [p for p in process.children() if not _is_postgres(p)]
        return forked

    def kill(self, *, whole: bool) -> None:
        send(self.tree() if whole else self.tree()[:1], signal.SIGKILL)
        self.frozen, self.thaw_at_s = [], None

    def freeze(self, until_s: float, *, whole: bool) -> None:
        self.frozen = self.tree() if whole else self.tree()[:1]
        self.thaw_at_s = until_s
        send(self.frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        send(self.frozen, signal.SIGCONT)
        self.frozen, self.thaw_at_s = [], None

    def end(self) -> None:
        self.thaw()
        self.kill(whole=True)
        if self._process is not None:
            self._process.wait(30)


def send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _is_postgres(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("postgres")
    except psutil.NoSuchProcess:
        return True


class Cast:
    """Workers, dispatchers, Redis and PostgreSQL of one run."""

    def __init__(self, home: Path, folder: Path, redis: RedisServer) -> None:
        self.redis = redis
        self.redis_back_s: float | None = None
        self.redis_thaw_s: float | None = None
        self._data = home / "postgres" / "data"
        self._held = ExitStack()
        ports = [self._held.enter_context(held_port()) for _ in range(3)]
        self.workers = [
            Member(
                f"worker {n}",
                [chaos_worker.__file__, str(home), redis.url, str(port), str(SLOTS)],
                folder / f"worker-{n}.log",
            )
            for n, port in enumerate(ports)
        ]
        self.dispatchers = [
            Member(
                f"dispatcher {n}",
                [chaos_dispatcher.__file__, str(home), redis.url],
                folder / f"dispatcher-{n}.log",
            )
            for n in range(2)
        ]
        self.members = [*self.workers, *self.dispatchers]
        self._missed: dict[str, float] = {}

    def care(self, began_s: float) -> None:
        """Start again what is dead, thaw what was frozen long enough."""
        now_s = time.monotonic()
        for member in self.members:
            if member.thaw_at_s is not None and now_s >= member.thaw_at_s:
                member.thaw()
                say(began_s, f"{member.name} goes on")
            if member.dead and now_s >= self._missed.setdefault(member.name, now_s + 0.5):
                del self._missed[member.name]
                member.start()
                say(began_s, f"{member.name} started")
        if self.redis_thaw_s is not None and now_s >= self.redis_thaw_s:
            self.redis_thaw_s = None
            self.redis.thaw()
            say(began_s, "redis goes on")
        if self.redis_back_s is not None and now_s >= self.redis_back_s:
            self.redis_back_s = None
            self.redis.start()
            say(began_s, "redis started")

    def thaw_all(self) -> None:
        """The end of the chaos: what is frozen goes on, what is away comes back at once."""
        for member in self.members:
            member.thaw_at_s = 0.0 if member.thaw_at_s is not None else None
        self.redis_thaw_s = 0.0 if self.redis_thaw_s is not None else None
        self.redis_back_s = 0.0 if self.redis_back_s is not None else None

    def do(self, action: str, random: Random, until_s: float) -> str:
        """Do something to somebody; says to whom. `until_s` ends a freeze (monotonic)."""
        what, _, part = action.partition(" ")
        group = self.workers if part.startswith("worker") else self.dispatchers
        member = random.choice([m for m in group if m.thaw_at_s is None] or group)
        if what == "kill":
            return self._kill(part, member, random)
        if what == "freeze" and part != "redis":
            member.freeze(until_s, whole=random.random() < 0.5)
            return f"{member.name} frozen ({len(member.frozen)} processes)"
        if self.redis_back_s is not None or self.redis_thaw_s is not None:
            return "nothing: redis is away"
        if what == "flush":
            self.redis.flush()
            return "redis emptied"
        self.redis.freeze()
        self.redis_thaw_s = until_s
        return "redis frozen"

    def _kill(self, part: str, member: Member, random: Random) -> str:
        if part == "redis":
            if self.redis_back_s is not None or self.redis_thaw_s is not None:
                return "nothing: redis is away"
            self.redis.kill()
            self.redis_back_s = time.monotonic() + random.uniform(0.0, 5.0)
            return "redis killed"
        if part in ("postmaster", "postgres"):
            return self._kill_postgres(whole=part == "postgres")
        if part == "jobs":
            jobs = random.choice(self.workers).jobs()
            doomed = jobs[: random.randint(1, SLOTS)]
            send(doomed, signal.SIGKILL)
            return f"{len(doomed)} of {len(jobs)} processes of jobs killed"
        whole = part == "worker-tree"
        member.kill(whole=whole)
        return f"{member.name} killed{' with all that it started' if whole else ''}"

    def _kill_postgres(self, *, whole: bool) -> str:
        running = postmaster.find(self._data)
        if running is None:
            return "nothing: postgres is away"
        doomed = [running.process]
        with suppress(psutil.NoSuchProcess):
            doomed += running.process.children() if whole else []
        send(doomed, signal.SIGKILL)
        return f"{len(doomed)} processes of postgres killed"

    def end(self) -> None:
        for member in self.members:
            member.end()
        self._held.close()
