"""How attempts begin and end in the ledger, in threads of their own.

The supervisor's loop never waits for the database: however long it hangs, limits and the end of
leases are kept. Batches are as large as what came together while the batch before was written.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from theon.errors import UnavailableError
from theon.jobs import alone, ledger
from theon.jobs.ledger import Attempt, Message, Outcome
from theon.store.engine import Store
from theon.store.scope import Scope

LONGEST_BACKOFF_S = 1.0
ROWS_PER_STATEMENT = 500
# While attempts end by the dozen, the end of one waits for others to be written with it.
FEW = 4
LINGER_S = 0.01

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Run:
    """An attempt that this worker has begun, until the ledger knows how it ended.

    Attributes:
        attempt: what the ledger gave.
        lease_until_s: when its lease ends on the monotonic clock, at the earliest.
        taken_s: when it came.
        began_s: when a child got it, or None.
        progress: done, total, operation.
        peak_mb: most resident megabytes seen.
        cancel: why it is cancelled, or None.
        lost: whether another attempt owns the job.
        verdict: how it ended by the supervisor's decision; its process is being ended.
        locked: whether its row was locked when it was to be renewed.
    """

    attempt: Attempt
    lease_until_s: float
    taken_s: float
    began_s: float | None = None
    progress: tuple[float | None, float | None, str | None] = (None, None, None)
    peak_mb: float = 0.0
    cancel: str | None = None
    lost: bool = False
    verdict: Outcome | None = None
    locked: bool = False

    @property
    def message(self) -> Message:
        """What it was started by."""
        return self.attempt.message


class Runs:
    """The runs of this worker, for its threads."""

    def __init__(self) -> None:
        self._runs: dict[Message, Run] = {}
        self._lock = threading.Lock()

    def add(self, run: Run) -> None:
        """Keep it, so that its lease is renewed."""
        with self._lock:
            self._runs[run.message] = run

    def drop(self, message: Message) -> None:
        """Forget it: the ledger knows how it ended."""
        with self._lock:
            self._runs.pop(message, None)

    def has(self, message: Message) -> bool:
        """Whether it is still to be renewed."""
        with self._lock:
            return message in self._runs

    def all(self) -> list[Run]:
        """All, at this moment."""
        with self._lock:
            return list(self._runs.values())


@dataclass
class _Work:
    """What the clerk has to write."""

    begin: list[Message] = field(default_factory=list)
    begin_alone: list[Message] = field(default_factory=list)
    outcomes: list[tuple[Outcome, Run]] = field(default_factory=list)
    give_back: list[tuple[Message, str]] = field(default_factory=list)

    def has_messages(self) -> bool:
        """Whether something is to be begun or given back."""
        return bool(self.begin or self.begin_alone or self.give_back)

    def has_outcomes(self) -> bool:
        """Whether something has ended."""
        return bool(self.outcomes)


def code_is_gone(attempt: Attempt) -> Outcome:
    """The end of an attempt whose kind nobody declares."""
    what = (
        f"no code of this installation declares the job {attempt.kind!r}; "
        "it can be retried after its code is back"
    )
    return Outcome(
        attempt.job_id,
        attempt.token,
        "failed",
        what,
        transient=False,
        error=what,
        error_kind="UnknownKindError",
    )


def died(run: Run, how: str, wait_s: float) -> Outcome:
    """The end of an attempt whose process went away by itself, or by somebody's hand."""
    return Outcome(
        run.attempt.job_id,
        run.attempt.token,
        "lost",
        how,
        wait_s=wait_s,
        error=how,
        error_kind="ChildDied",
        peak_memory_mb=run.peak_mb or None,
    )


class Clerk:
    """Begins and ends attempts in the ledger, in batches, and tries again while it is away.

    One thread begins and another ends: neither waits for the disk of the other.

    Attributes:
        started: runs that have begun, for the supervisor to take.
        held: messages that this worker keeps until it can run them alone; `Pulse` adds to them.
    """

    def __init__(self, store: Store, runs: Runs, worker_id: str, wake: Callable[[], None]) -> None:
        self.started: deque[Run] = deque()
        self.held: deque[Message] = deque()
        self._store = store
        self._runs = runs
        self._worker_id = worker_id
        self._wake = wake
        self._work = _Work()
        self._changed = threading.Condition()
        self._doubtful: set[Message] = set()  # a start of theirs may have been committed
        self._closing = False
        self._ended_last = 0
        work = self._work
        self._threads = [
            threading.Thread(target=self._run, args=parts, name=f"theon-clerk-{name}", daemon=True)
            for name, *parts in (
                ("begins", work.has_messages, self._write_begins, self._forget_begins),
                ("ends", work.has_outcomes, self._write_ends, self._forget_overdue),
            )
        ]

    def open(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def close(self, limit_s: float) -> None:
        """Write what is left, for at most `limit_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until_s = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def begin(self, messages: Sequence[Message], *, beside: bool = True) -> None:
        """Start attempts; those that began appear in `started`.

        With `beside` they may have others beside them: those that run alone appear in `held`.
        """
        with self._changed:
            (self._work.begin if beside else self._work.begin_alone).extend(messages)
            self._changed.notify_all()

    def end(self, outcome: Outcome, run: Run) -> None:
        """Write how an attempt ended; kept and tried again until its lease is over."""
        with self._changed:
            self._work.outcomes.append((outcome, run))
            self._changed.notify_all()

    def give_back(self, messages: Sequence[Message], reason: str) -> None:
        """Let other workers have what was dispatched to this one."""
        with self._changed:
            self._work.give_back += [(message, reason) for message in messages]
            self._changed.notify_all()

    @property
    def beginning(self) -> int:
        """How many attempts are asked for and have neither begun nor been dropped."""
        with self._changed:
            waiting = len(self._work.begin) + len(self._work.begin_alone)
            return waiting + len(self.started)

    def _run(
        self, pending: Callable[[], bool], write: Callable[[], None], forget: Callable[[], None]
    ) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: pending() or self._closing)
                if not pending():
                    return
            try:
                write()
                failures = 0
            except Exception as error:
                failures += 1
                away = isinstance(error, UnavailableError)
                if failures == 1 or not away:
                    _log.warning("the ledger could not be written, trying again: %s", error)
                time.sleep(min(LONGEST_BACKOFF_S, 0.05 * 2 ** min(failures, 10)))
                forget()

    def _write_begins(self) -> None:
        work = self._work
        with self._changed:
            beside = work.begin[:ROWS_PER_STATEMENT]
            alone = work.begin_alone[:ROWS_PER_STATEMENT]
            back = work.give_back[:ROWS_PER_STATEMENT]
        if beside:
            self._begin(beside, work.begin, beside=True)
        if alone:
            self._begin(alone, work.begin_alone, beside=False)
        if back:
            with ledger.turn(self._store) as conn:
                for reason in {reason for _, reason in back}:
                    messages = [m for m, why in back if why == reason]
                    ledger.release_dispatched(conn, messages, reason)
            with self._changed:
                del work.give_back[: len(back)]

    def _write_ends(self) -> None:
        if self._ended_last > FEW:
            time.sleep(LINGER_S)
        with self._changed:
            pairs = self._work.outcomes[:ROWS_PER_STATEMENT]
        self._ended_last = len(pairs)
        self._end(pairs)

    def _forget_begins(self) -> None:
        """At the end nobody would run them; their dispatch lease brings them back."""
        with self._changed:
            if self._closing:
                self._work.begin.clear()
                self._work.begin_alone.clear()
                self._work.give_back.clear()

    def _begin(self, messages: list[Message], asked: list[Message], *, beside: bool) -> None:
        """Start `messages`, which are the first of `asked`."""
        held: list[Message] = []
        # Taken before the statement: the lease cannot end sooner than counted from here.
        before_s = time.monotonic()
        try:
            with ledger.turn(self._store) as conn:
                attempts = ledger.start(
                    conn, messages, self._worker_id, lease_s=ledger.RUN_LEASE_S, beside=beside
                )
                doubtful = self._doubtful.intersection(messages)
                if doubtful:
                    attempts += self._already_begun(conn, doubtful)
                begun = {attempt.message for attempt in attempts}
                rest = [message for message in messages if message not in begun]
                if beside and rest:
                    held = alone.hold(conn, rest, self._worker_id)
        except UnavailableError:
            # The commit may have come through although we did not hear of it.
            self._doubtful.update(messages)
            raise
        except DBAPIError as error:
            if _may_pass(error):
                raise
            _log.exception("attempts cannot be begun; their dispatch lease brings them back")
            attempts = []
        self._doubtful.difference_update(messages)
        now_s = time.monotonic()
        began = [Run(a, before_s + ledger.RUN_LEASE_S, now_s) for a in attempts]
        for run in began:
            self._runs.add(run)
        with self._changed:
            del asked[: len(messages)]
            self.started += began
        self.held.extend(held)
        self._wake()

    def _already_begun(self, conn: Any, messages: set[Message]) -> list[Attempt]:
        """Attempts that an earlier, interrupted transaction began for this worker."""
        found = conn.execute(
            text(
                "UPDATE theon.jobs AS j"
                " SET lease_until = clock_timestamp() + make_interval(secs => :lease_s)"
                " FROM theon.campuses AS c WHERE c.id = j.campus_id AND j.state = 'running'"
                "  AND j.worker = :worker AND (j.id, j.token) IN (SELECT * FROM"
                "   unnest(CAST(:ids AS bigint[]), CAST(:tokens AS bigint[])))"
                " RETURNING j.id, j.token, j.kind, c.slug, j.owner, j.arguments, j.attempts,"
                "  j.checkpoint, j.timeout_s, j.memory_mb, j.lost"
            ),
            {
                "ids": [m.job_id for m in messages],
                "tokens": [m.token for m in messages],
                "worker": self._worker_id,
                "lease_s": ledger.RUN_LEASE_S,
            },
        )
        attempts = (Attempt(*row) for row in found)
        return [a for a in attempts if not self._runs.has(a.message)]

    def _end(self, pairs: list[tuple[Outcome, Run]]) -> None:
        try:
            with ledger.turn(self._store) as conn:
                ledger.finish(conn, [outcome for outcome, _ in pairs])
        except DBAPIError as error:
            if _may_pass(error):
                raise
            # One of them cannot be written; the others shall not wait for it.
            for outcome, _ in pairs:
                self._end_alone(outcome)
        with self._changed:
            del self._work.outcomes[: len(pairs)]
        for _, run in pairs:
            self._runs.drop(run.message)

    def _end_alone(self, outcome: Outcome) -> None:
        try:
            with self._store.transaction(Scope.district()) as conn:
                ledger.finish(conn, [outcome])
        except DBAPIError as error:
            if _may_pass(error):
                raise
            _log.exception("the outcome of job %d cannot be kept", outcome.job_id)
            fault = f"how it ended ({outcome.outcome}) could not be kept: {error.orig}"
            poor = replace(
                outcome, outcome="failed", reason=fault[:500], result=None, transient=False,
                error=fault, error_kind=type(error.orig).__name__, stack=None,
            )  # fmt: skip
            with self._store.transaction(Scope.district()) as conn:
                ledger.finish(conn, [poor])

    def _forget_overdue(self) -> None:
        """Keep no outcome past its lease: somebody else has the job, or takes it back now."""
        now_s = time.monotonic()
        with self._changed:
            over = [run for _, run in self._work.outcomes if run.lease_until_s < now_s]
            self._work.outcomes[:] = [
                pair for pair in self._work.outcomes if pair[1].lease_until_s >= now_s
            ]
        for run in over:
            _log.warning("job %d: its lease was over before the ledger heard", run.attempt.job_id)
            self._runs.drop(run.message)


def _may_pass(error: DBAPIError) -> bool:
    """Whether the same statement may do well the next time: a deadlock, a lock, no memory."""
    return isinstance(error.orig, psycopg.OperationalError) or error.connection_invalidated
