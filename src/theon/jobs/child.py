"""What runs in the process of a job: it takes attempts from its supervisor, one after another.

Messages are JSON, in the frames of `multiprocessing.connection`. To the child: an attempt. To the
supervisor: `ready`, `progress`, and `ended` with how the attempt ended.

The process ends when its supervisor is gone, and when the lease of its attempt is over (a
supervisor that is frozen cannot end it): a job must not go on that somebody else may have begun.
"""

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from theon.errors import InputError, TheonError
from theon.jobs.context import AttemptContext, ChildStore, as_json, clean
from theon.jobs.errors import is_transient
from theon.jobs.kinds import Kinds
from theon.jobs.ledger import Attempt
from theon.observability.logs import log_to_stderr
from theon.settings import Settings

# Places in the memory that supervisor and child share.
LEASE = 0  # end of the attempt's lease on the monotonic clock, which is the same for both; 0: none
CANCELLED = 1

WATCH_EVERY_S = 0.25
LEASE_MARGIN_S = 0.5
ERROR_CHARS = 10_000
STACK_CHARS = 50_000
_PR_SET_PDEATHSIG = 1


class ProcessEndedError(SystemExit):
    """The supervisor ends this process; a job may clean up, and has about a second for it."""


def load_kinds(source: str) -> Kinds:
    """The kinds that `module:function` gives.

    Raises:
        InputError: there is no such function.
    """
    module, _, name = source.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise InputError(f"the kinds of jobs cannot be loaded: {error}", where=source) from error
    if not isinstance(made, Kinds):
        raise InputError("this does not give the kinds of jobs", where=source)
    return made


def serve(
    conn: Connection, shared: Any, supervisor_pid: int, kinds_source: str, settings: Settings
) -> None:
    """Run attempts until the supervisor closes the pipe or ends the process."""
    with suppress(PermissionError):  # it leads a session already
        os.setsid()  # what a job starts is in its group and is ended with it
    _end_with_parent()
    _be_the_first_victim()
    log_to_stderr()
    child = _Child(conn, shared, kinds_source, settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which drains
    signal.signal(signal.SIGTERM, child.end)
    watcher = threading.Thread(target=child.watch, args=[supervisor_pid], daemon=True)
    watcher.start()
    with suppress(EOFError, ConnectionError):  # the supervisor has closed the pipe
        child.run()


class _Child:
    def __init__(
        self, conn: Connection, shared: Any, kinds_source: str, settings: Settings
    ) -> None:
        self._conn = conn
        self._shared = shared
        self._kinds_source = kinds_source
        self._kinds: Kinds | None = None
        self._store = ChildStore(settings)
        self._sending = threading.Lock()
        self._context: AttemptContext | None = None
        self._ended = False

    def run(self) -> None:
        """Take attempts until the pipe is closed."""
        self._send(["ready"])
        while not self._ended:
            attempt = Attempt(**json.loads(self._conn.recv_bytes()))
            told = self._attempt(attempt)
            self._send(["ended", attempt.token, told])

    def end(self, signal_number: int, frame: FrameType | None) -> None:
        """SIGTERM: raise in the job, so that its `finally` blocks run."""
        del signal_number, frame
        self._ended = True
        raise ProcessEndedError(128 + signal.SIGTERM)

    def watch(self, supervisor_pid: int) -> None:
        """End everything in this process's group when nobody is responsible for it any more."""
        gone = _gone_when_readable(supervisor_pid)
        while True:
            if gone is not None:
                over = bool(select.select([gone], [], [], WATCH_EVERY_S)[0])
            else:
                time.sleep(WATCH_EVERY_S)
                over = not _lives(supervisor_pid)
            lease_s = self._shared[LEASE]
            if over or 0 < lease_s < time.monotonic() + LEASE_MARGIN_S:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            context = self._context
            if context is not None:
                context.flush()

    def _send(self, words: list[Any]) -> None:
        with self._sending:
            self._conn.send_bytes(json.dumps(words).encode())

    def _tell_progress(self, token: int, progress: list[Any]) -> bool:
        """Send progress, unless that would have to wait: the watcher must never hang."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            if not select.select([], [self._conn], [], 0)[1]:
                return False
            with suppress(ConnectionError):
                self._conn.send_bytes(json.dumps(["progress", token, progress]).encode())
            return True
        finally:
            self._sending.release()

    def _attempt(self, attempt: Attempt) -> dict[str, Any]:
        """Run one attempt; says how it ended, in the words of `ledger.Outcome`."""
        context = AttemptContext(
            attempt,
            self._store,
            lambda progress: self._tell_progress(attempt.token, progress),
            lambda: bool(self._shared[CANCELLED]),
        )
        self._context = context
        peak_before_mb, cpu_before_s = _peak_mb(), time.process_time()
        began_s = time.monotonic()
        try:
            result = self._call(attempt, context)
            told: dict[str, Any] = {"outcome": "completed", "reason": "ended well"}
            told["result"] = result
        except ProcessEndedError:
            raise
        except BaseException as error:
            told = _failure(error)
        self._context = None
        context.flush()
        # The highest mark is of the process's whole life: if it did not rise, this attempt's own
        # is not known, and the supervisor's samples stand for it.
        peak_mb = _peak_mb()
        told["peak_memory_mb"] = peak_mb if peak_mb > peak_before_mb else None
        told["cpu_s"] = round(time.process_time() - cpu_before_s, 6)
        told["run_s"] = round(time.monotonic() - began_s, 6)
        return told

    def _call(self, attempt: Attempt, context: AttemptContext) -> Any:
        # Not at the start: a fault of the code is then the attempt's error, which people see.
        if self._kinds is None:
            self._kinds = load_kinds(self._kinds_source)
        kind = self._kinds[attempt.kind]
        return as_json(kind.function(context, kind.parse(attempt.arguments)), "the result")


def _failure(error: BaseException) -> dict[str, Any]:
    words = error.message if isinstance(error, TheonError) else str(error)
    stack = "".join(traceback.format_exception(error))
    if len(stack) > STACK_CHARS:
        half = STACK_CHARS // 2
        stack = f"{stack[:half]}\n…\n{stack[-half:]}"
    name = type(error).__name__
    return {
        "outcome": "failed",
        "reason": clean(f"{name}: {words}" if words else name).partition("\n")[0][:500],
        "transient": is_transient(error),
        "error": clean(words or name)[:ERROR_CHARS],
        "error_kind": name,
        "stack": clean(stack),
    }


def attempt_frame(attempt: Attempt) -> bytes:
    """The message that gives a child an attempt."""
    return json.dumps(vars(attempt)).encode()


def _peak_mb() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e6 if sys.platform == "darwin" else used / 1024


def _end_with_parent() -> None:
    """Have the kernel end this process with its parent, which ends with the supervisor.

    A job in C code that keeps the interpreter's lock would keep the watcher waiting.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _be_the_first_victim() -> None:
    """Where memory is short, the kernel should end a job rather than the supervisor."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _gone_when_readable(pid: int) -> int | None:
    """A file that can be read from once the process is gone; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    except OSError:
        return None  # an old kernel, or one that forbids it


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
