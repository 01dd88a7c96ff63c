"""The supervisor's side of a child: its process, its pipe, what it uses, and how to end it.

Nothing here waits for a child: one that is frozen, or in the middle of a message, must not hold
up the supervisor of its siblings.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import struct
import time
from contextlib import suppress
from typing import Any

import psutil

from theon.jobs import child
from theon.settings import Settings

FRAME_LIMIT_BYTES = 64_000_000
KEPT_MB = 96.0
_READ_BYTES = 1 << 16

_context = multiprocessing.get_context("forkserver")


def preload(kinds_source: str) -> None:
    """Name what the server of forks imports once for all children; counts before the first one."""
    module = kinds_source.partition(":")[0]
    _context.set_forkserver_preload(["__main__", "theon.jobs.child", module])


class BrokenPipeOfChildError(Exception):
    """The pipe of a child is closed, or what came through it cannot be read."""


class Child:
    """A process for attempts, as its supervisor sees it.

    Attributes:
        pid: of the process.
        pipe: file number to read its messages from.
        gone: file number that can be read from once the process is gone.
        ready: whether it can take an attempt.
        attempts: how many it was given.
        base_mb: resident megabytes before the first attempt.
        ending_since_s: when it was asked to end (monotonic), or None.
        mute_since_s: when its pipe broke (monotonic), or None.
    """

    def __init__(self, kinds_source: str, settings: Settings) -> None:
        """Start the process; it says `ready` when it can take an attempt.

        Raises:
            OSError: no process can be made.
        """
        ours, theirs = _context.Pipe()
        self._shared = _context.RawArray("d", 2)
        try:
            self._process = _context.Process(
                target=child.serve,
                args=(theirs, self._shared, os.getpid(), kinds_source, settings),
                name="theon-job",
                daemon=True,
            )
            self._process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        os.set_blocking(ours.fileno(), False)
        self._conn = ours
        self.pipe = ours.fileno()
        self.pid = self._process.pid or 0
        self._pidfd = _pidfd(self.pid)
        self.gone = self._process.sentinel if self._pidfd is None else self._pidfd
        self._usage: psutil.Process | None = None
        with suppress(psutil.Error):
            self._usage = psutil.Process(self.pid)
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self.ready = False
        self.attempts = 0
        self.base_mb = 0.0
        self.started_s = time.monotonic()
        self.ending_since_s: float | None = None
        self.mute_since_s: float | None = None
        self._killed = False

    def give(self, frame: bytes, lease_until_s: float) -> None:
        """Send an attempt; `flush` sends what the pipe does not take now."""
        self.attempts += 1
        self.ready = False
        self._shared[child.CANCELLED] = 0
        self.lease(lease_until_s)
        self._outgoing += struct.pack("!i", len(frame)) + frame
        self.flush()

    def lease(self, until_s: float) -> None:
        """Tell the child how long the lease of its attempt is; 0 when it has none."""
        self._shared[child.LEASE] = until_s

    def flush(self) -> bool:
        """Send what is left to send; False while the pipe takes no more."""
        while self._outgoing:
            try:
                sent = os.write(self.pipe, self._outgoing[:_READ_BYTES])
            except BlockingIOError:
                return False
            except OSError:
                self._outgoing.clear()  # it is gone, which `gone` tells
                break
            del self._outgoing[:sent]
        return True

    def read(self) -> list[list[Any]]:
        """The messages that have come whole.

        Raises:
            BrokenPipeOfChildError: there will be no more.
        """
        try:
            came = os.read(self.pipe, _READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise BrokenPipeOfChildError(str(error)) from error
        if not came:
            raise BrokenPipeOfChildError("closed")
        self._incoming += came
        found = []
        while (frame := self._next_frame()) is not None:
            try:
                found.append(json.loads(frame))
            except ValueError as error:
                raise BrokenPipeOfChildError(str(error)) from error
        return found

    def rest(self) -> list[list[Any]]:
        """The last messages of a process that is gone."""
        found: list[list[Any]] = []
        with suppress(BrokenPipeOfChildError):
            while multiprocessing.connection.wait([self.pipe], 0):
                found += self.read()
        return found

    def _next_frame(self) -> bytes | None:
        if len(self._incoming) < 4:
            return None
        (size,) = struct.unpack_from("!i", self._incoming)
        if not 0 <= size <= FRAME_LIMIT_BYTES:
            raise BrokenPipeOfChildError(f"a message of {size} bytes")
        if len(self._incoming) < 4 + size:
            return None
        frame = bytes(self._incoming[4 : 4 + size])
        del self._incoming[: 4 + size]
        return frame

    def memory_mb(self) -> float:
        """Resident megabytes; 0 once it is gone."""
        try:
            return 0.0 if self._usage is None else self._usage.memory_info().rss / (1 << 20)
        except psutil.Error:
            return 0.0

    def is_fat(self) -> bool:
        """Whether it kept memory of earlier attempts, which would count against the next one."""
        return self.memory_mb() > self.base_mb + KEPT_MB

    def cpu_percent(self) -> float:
        """Share of one core since the last call."""
        try:
            return 0.0 if self._usage is None else self._usage.cpu_percent()
        except psutil.Error:
            return 0.0

    def end(self, *, cancelled: bool = False) -> None:
        """Ask it to end; `kill` after a while if it does not."""
        if self.ending_since_s is not None:
            return
        self.ending_since_s = time.monotonic()
        self._shared[child.CANCELLED] = float(cancelled)
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and all that it started, at once."""
        if self.ending_since_s is None:
            self.ending_since_s = time.monotonic()
        if not self._killed:
            self._killed = True
            # Its group first: once it is gone and collected, its number may be somebody else's.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def is_gone(self) -> bool:
        """Whether the process is gone."""
        return bool(multiprocessing.connection.wait([self.gone], 0))

    def farewell(self) -> str:
        """How the process ended, in words; it is gone."""
        self._process.join(0.2)  # its server tells the status a moment after
        code = self._process.exitcode
        if code is None or code == 255:  # 255: the server of forks is gone too and cannot tell
            return "its process ended by itself"
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            return f"its process was ended by {name}"
        return f"its process ended by itself with status {code}"

    def close(self) -> None:
        """Close the pipe: an idle child ends then. Call when it is gone, or idle."""
        with suppress(OSError):
            self._conn.close()

    def forget(self) -> None:
        """Close everything; the process is gone. What it started and left is ended."""
        if not self._killed and self.ending_since_s is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        with suppress(ValueError):
            self._process.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)


def _pidfd(pid: int) -> int | None:
    """A handle of the process that never means another one; None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
