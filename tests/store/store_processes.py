"""Processes around a store: other users of it, and its server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from theon.store import postmaster

USER_PROGRAM = """
import sys
from pathlib import Path
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope
from sqlalchemy import text

with Store.open(Settings(home=Path(sys.argv[1]), postgres_url=None)) as store:
    with store.transaction(Scope.district()) as conn:
        names = list(conn.execute(text("SELECT slug FROM theon.campuses ORDER BY id")).scalars())
    print("open", *names, flush=True)
    sys.stdin.read()
"""


class OtherUser:
    """Another process that has the store of `home` open until `leave` or `kill`."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER_PROGRAM, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def opened(self) -> list[str]:
        """Wait until it is open; the campuses it sees."""
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words:
            _, errors = self.process.communicate()
            raise AssertionError(f"the other process ended: {errors}")
        return words[1:]

    def leave(self) -> None:
        """Let it close its store and end."""
        _, errors = self.process.communicate(timeout=200)
        assert self.process.returncode == 0, errors

    def kill(self) -> None:
        """Kill it with SIGKILL, so that it closes nothing."""
        self.process.kill()
        self.process.communicate(timeout=200)


def server_process(home: Path) -> psutil.Process | None:
    """The living postmaster of this home."""
    found = postmaster.find(home / "postgres" / "data")
    return found.process if found else None


def kill_server(home: Path) -> psutil.Process:
    """Kill the postmaster as a power cut would: no time to write anything down."""
    process = server_process(home)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)
    return process
