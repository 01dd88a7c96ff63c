"""Which PostgreSQL process, if any, serves a data folder; and how to end it.

`postmaster.pid` says who started last, not who lives: after `kill -9` or a power cut it
names a process that is gone, or that is now something else. So the process itself is asked.
"""

import contextlib
import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Postmaster:
    """A living postmaster; `socket_dir` is known and `ready` true once it accepts clients."""

    process: psutil.Process
    socket_dir: Path | None
    ready: bool


def cluster_name(data: Path) -> str:
    """The name that the server of `data` puts into the titles of its processes."""
    return "theon-" + hashlib.sha256(os.fsencode(data)).hexdigest()[:16]


def find(data: Path) -> Postmaster | None:
    """The living postmaster of `data`, ready or still starting; None where there is none."""
    lines = _pid_file_lines(data)
    if not lines or not lines[0].strip().lstrip("-").isdigit():
        return None
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(abs(int(lines[0])))
        if _serves(process, data):
            socket_dir = Path(lines[4].strip()) if len(lines) > 4 and lines[4].strip() else None
            ready = len(lines) > 7 and lines[7].strip() == "ready"
            return Postmaster(process, socket_dir, ready)
    return None


def alive(process: psutil.Process) -> bool:
    """Whether the process runs (a zombie, waiting to be collected, does not)."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def clear_stale(data: Path, *, limit_s: float = 6) -> None:
    """Make `data` free for a start after its postmaster was killed (none is alive).

    Children of a killed postmaster end by themselves within moments; one that does not is
    killed, for no server may start while another still writes (PostgreSQL recovers from its
    log, as it does after any crash). Then a `postmaster.pid` whose number is now another
    process's goes, which PostgreSQL would take for itself still running.
    """
    still_there = _wait(_serving(data), limit_s / 2)
    for process in still_there:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGQUIT)
    still_there = _wait(still_there, limit_s / 2)
    for process in still_there:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(still_there, limit_s)
    lines = _pid_file_lines(data)
    with contextlib.suppress(ValueError, IndexError):
        if not psutil.pid_exists(abs(int(lines[0]))):
            return  # PostgreSQL sees that by itself, and checks its shared memory on the way
    (data / "postmaster.pid").unlink(missing_ok=True)


def clear_sockets(folder: Path) -> None:
    """Remove the sockets in `folder`, which is one server's alone, and their locks.

    Call when that server is gone and cleared. A lock names its process, and PostgreSQL would not
    start while there is one of that number: a zombie that nobody has collected, or another.
    """
    for path in folder.glob(".s.PGSQL.*"):
        path.unlink(missing_ok=True)


def _wait(processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those that still run after `limit_s`. A zombie does not, whoever has to collect it."""
    end_s = time.monotonic() + limit_s
    while (left := [process for process in processes if alive(process)]) and (
        time.monotonic() < end_s
    ):
        time.sleep(0.02)
    return left


def stop(data: Path, *, limit_s: float) -> None:
    """End the server of `data` in order (sessions are ended, all is written down).

    A server that is not done after `limit_s` seconds is ended as by a crash, from which it
    recovers at its next start.
    """
    running = find(data)
    if running is None:
        return
    deadline = time.monotonic() + limit_s
    with contextlib.suppress(psutil.NoSuchProcess):
        running.process.send_signal(signal.SIGINT)
        while alive(running.process) and time.monotonic() < deadline:
            _collect(running.process.pid)
            time.sleep(0.02)
        if alive(running.process):
            running.process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(psutil.TimeoutExpired):
                running.process.wait(10)
    _collect(running.process.pid)


def _collect(pid: int) -> None:
    """Collect a child that ended, so that it does not stay as a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _pid_file_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []


def _serving(data: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _serves(process, data)]


def _serves(process: psutil.Process, data: Path) -> bool:
    """Whether this is a living PostgreSQL process of `data`.

    Told by its command line, which everybody may read: in a container even root may not
    look at the working folder of another user's process.
    """
    try:
        if not alive(process) or not process.name().startswith("postgres"):
            return False
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    title = f"postgres: {cluster_name(data)}: "
    return str(data) in words or " ".join(words).startswith(title)
