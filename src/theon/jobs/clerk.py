"""What a supervisor says to the ledger and hears from it, in threads of their own.

The supervisor's loop never waits for the database: however long it hangs, limits and the end of
leases are kept. `Clerk` begins and ends attempts in batches, as large as what came together while
the batch before was written. `Pulse` renews leases and tells that the worker lives.
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
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from theon.errors import UnavailableError
from theon.jobs import ledger
from theon.jobs.ledger import Attempt, Message, Outcome, Progress
from theon.store.engine import Store
from theon.store.scope import Scope

RENEW_EVERY_S = 1.0
HEARTBEAT_EVERY_S = 2.0
LONGEST_BACKOFF_S = 1.0
ROWS_PER_STATEMENT = 500
LOCK_WAIT_MS = (
    500  # a row that is locked longer is renewed apart, so that its siblings are not late
)

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

    def __bool__(self) -> bool:
        return bool(self.begin or self.begin_alone or self.outcomes or self.give_back)


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


class Clerk:
    """Begins and ends attempts in the ledger, in batches, and tries again while it is away.

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
        self._thread = threading.Thread(target=self._run, name="theon-clerk", daemon=True)

    def open(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Write what is left, for at most `limit_s`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(limit_s)

    def begin(self, messages: Sequence[Message], *, beside: bool = True) -> None:
        """Start attempts; those that began appear in `started`.

        With `beside` they may have others beside them: those that run alone appear in `held`.
        """
        with self._changed:
            (self._work.begin if beside else self._work.begin_alone).extend(messages)
            self._changed.notify()

    def end(self, outcome: Outcome, run: Run) -> None:
        """Write how an attempt ended; kept and tried again until its lease is over."""
        with self._changed:
            self._work.outcomes.append((outcome, run))
            self._changed.notify()

    def give_back(self, messages: Sequence[Message], reason: str) -> None:
        """Let other workers have what was dispatched to this one."""
        with self._changed:
            self._work.give_back += [(message, reason) for message in messages]
            self._changed.notify()

    @property
    def beginning(self) -> int:
        """How many attempts are asked for and have neither begun nor been dropped."""
        with self._changed:
            waiting = len(self._work.begin) + len(self._work.begin_alone)
            return waiting + len(self.started)

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                while not self._work and not self._closing:
                    self._changed.wait()
                if not self._work:
                    return
                work = _Work(
                    self._work.begin[:ROWS_PER_STATEMENT],
                    self._work.begin_alone[:ROWS_PER_STATEMENT],
                    self._work.outcomes[:ROWS_PER_STATEMENT],
                    self._work.give_back[:ROWS_PER_STATEMENT],
                )
            try:
                self._write(work)
                failures = 0
            except Exception as error:
                failures += 1
                away = isinstance(error, UnavailableError)
                if failures == 1 or not away:
                    _log.warning("the ledger could not be written, trying again: %s", error)
                time.sleep(min(LONGEST_BACKOFF_S, 0.05 * 2 ** min(failures, 10)))
                self._forget_overdue()

    def _write(self, work: _Work) -> None:
        if work.begin:
            self._begin(work.begin, self._work.begin, beside=True)
        if work.begin_alone:
            self._begin(work.begin_alone, self._work.begin_alone, beside=False)
        if work.outcomes:
            self._end(work.outcomes)
        if work.give_back:
            with ledger.turn(self._store) as conn:
                for reason in {reason for _, reason in work.give_back}:
                    messages = [m for m, why in work.give_back if why == reason]
                    ledger.release_dispatched(conn, messages, reason)
            with self._changed:
                del self._work.give_back[: len(work.give_back)]

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
                    held = ledger.hold(conn, rest, self._worker_id)
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
            self._work.outcomes = [p for p in self._work.outcomes if p[1].lease_until_s >= now_s]
            if self._closing:
                # Nobody would run them; their dispatch lease brings them back.
                self._work.begin.clear()
                self._work.begin_alone.clear()
                self._work.give_back.clear()
        for run in over:
            _log.warning("job %d: its lease was over before the ledger heard", run.attempt.job_id)
            self._runs.drop(run.message)


def _may_pass(error: DBAPIError) -> bool:
    """Whether the same statement may do well the next time: a deadlock, a lock, no memory."""
    return isinstance(error.orig, psycopg.OperationalError) or error.connection_invalidated


class Pulse:
    """Renews leases every second, finds what was handed to this worker, tells that it lives."""

    def __init__(
        self,
        store: Store,
        runs: Runs,
        worker_id: str,
        held: deque[Message],
        describe: Callable[[], dict[str, Any]],
        wake: Callable[[], None],
        drain: Callable[[], None],
    ) -> None:
        """Nothing is told before `open`.

        Args:
            store: the open store.
            runs: whose leases are renewed.
            worker_id: of this worker.
            held: takes what was handed to this worker.
            describe: gives the columns of its row.
            wake: called after each round.
            drain: called when somebody asks this worker to drain.
        """
        self._store = store
        self._runs = runs
        self._worker_id = worker_id
        self._held = held
        self._describe = describe
        self._wake = wake
        self._drain = drain
        self._registered = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="theon-pulse", daemon=True)

    def open(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Tell once more how the worker is, and end."""
        self._stopping.set()
        self._thread.join(limit_s)

    def _run(self) -> None:
        told_s = float("-inf")
        quiet = False
        while True:
            ending = self._stopping.is_set()
            began_s = time.monotonic()
            try:
                self._hold()
                self._renew()
                if ending or began_s - told_s >= HEARTBEAT_EVERY_S:
                    self._tell()
                    told_s = began_s
                quiet = False
            except Exception as error:
                if not quiet:
                    _log.warning("leases could not be renewed, trying again: %s", error)
                quiet = isinstance(error, UnavailableError)
            if ending:
                return
            self._stopping.wait(max(0.1, RENEW_EVERY_S - (time.monotonic() - began_s)))

    def _tell(self) -> None:
        # A question that was for an earlier worker of this name is over.
        given = {**self._describe(), "first": not self._registered}
        with self._store.transaction(Scope.district()) as conn:
            asked_to_drain = conn.execute(text(_WORKER), given).scalar()
        self._registered = True
        if asked_to_drain:
            self._drain()

    def _hold(self) -> None:
        with ledger.turn(self._store) as conn:
            self._held.extend(ledger.hold(conn, [], self._worker_id))

    def _renew(self) -> None:
        runs = self._runs.all()
        apart = [run for run in runs if run.locked]
        together = [run for run in runs if not run.locked]
        try:
            self._renew_some(together)
        except SQLAlchemyError as error:
            if not _is_lock(error):
                raise
            # One row is locked, e.g. by a job that commits its effect with its finish.
            apart += together
        for run in apart:
            try:
                self._renew_some([run])
                run.locked = False
            except SQLAlchemyError as error:
                if not _is_lock(error):
                    raise
                run.locked = True
        self._wake()

    def _renew_some(self, runs: list[Run]) -> None:
        if not runs:
            return
        before_s = time.monotonic()
        wait_ms = LOCK_WAIT_MS if len(runs) > 1 else LOCK_WAIT_MS // 10
        with ledger.turn(self._store) as conn:
            conn.execute(text(f"SET LOCAL lock_timeout = {wait_ms}"))
            told = [Progress(r.message.job_id, r.message.token, *r.progress) for r in runs]
            held = ledger.renew(conn, told, lease_s=ledger.RUN_LEASE_S)
            kept = {Message(h.job_id, h.token): h.cancel_asked for h in held}
            missing = [run for run in runs if run.message not in kept]
            asked = [run for run in runs if kept.get(run.message)]
            reasons = _told(conn, [*missing, *asked]) if missing or asked else {}
        for run in runs:
            if run.message in kept:
                run.lease_until_s = before_s + ledger.RUN_LEASE_S
        for run in asked:
            _, reason = reasons.get(run.message, ("", ""))
            run.cancel = run.cancel or _why_cancelled(reason)
        for run in missing:
            state, _ = reasons.get(run.message, ("", ""))
            # Its own finish under this token: the attempt only has to return.
            if state != "completed" and self._runs.has(run.message):
                run.lost = True


def _told(conn: Any, runs: list[Run]) -> dict[Message, tuple[str, str]]:
    """State and reason of the jobs whose token is still that of the run."""
    found = conn.execute(
        text("SELECT id, token, state, reason FROM theon.jobs WHERE id = ANY (:ids)"),
        {"ids": [run.message.job_id for run in runs]},
    )
    return {Message(job_id, token): (state, reason) for job_id, token, state, reason in found}


def _why_cancelled(reason: str) -> str:
    return reason if reason.startswith("cancelled") else "cancelled while it ran"


def _is_lock(error: SQLAlchemyError) -> bool:
    return isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.LockNotAvailable)


_WORKER = """
INSERT INTO theon.job_workers AS w (id, campus_id, host, pid, delivery, queues, state, slots, busy,
    cpu_percent, memory_mb, memory_free_mb, running)
SELECT :id, c.id, :host, :pid, :delivery, CAST(:queues AS text[]), :state, :slots, :busy,
    :cpu_percent, :memory_mb, :memory_free_mb, CAST(:running AS bigint[])
FROM theon.campuses AS c WHERE c.slug = 'district'
ON CONFLICT (id) DO UPDATE SET state = excluded.state, slots = excluded.slots,
    busy = excluded.busy, heartbeat_at = clock_timestamp(), cpu_percent = excluded.cpu_percent,
    memory_mb = excluded.memory_mb, memory_free_mb = excluded.memory_free_mb,
    running = excluded.running, drain_asked = w.drain_asked AND NOT CAST(:first AS boolean)
RETURNING drain_asked"""
