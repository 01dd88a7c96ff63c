"""The ledger's own moves: what the machinery does to jobs, many per statement.

Each function is one step of the state machine of `theon.jobs.states`, runs in the caller's
transaction and takes the database's clock. Every write of an attempt is guarded by its token:
a row that does not match means that another attempt owns the job now. A batch locks its rows in
the order of their ids: two batches with jobs in common wait for each other and do not deadlock.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from theon.jobs.enqueue import AGEING_S, CHANNEL
from theon.jobs.errors import LostLeaseError
from theon.jobs.policy import RUNS_ALONE
from theon.store.engine import Store
from theon.store.scope import Scope

DISPATCH_LEASE_S = 8.0
RUN_LEASE_S = 30.0
EXPIRED_PER_STATEMENT = 1_000
IDLE_S = 5.0


@dataclass(frozen=True)
class Message:
    """What a delivery carries: nothing but which job, under which token."""

    job_id: int
    token: int


@dataclass(frozen=True)
class Attempt:
    """An attempt that has begun.

    Attributes:
        job_id, token: its message.
        kind: name of the kind.
        campus: slug.
        owner: who asked for the job.
        arguments: JSON.
        attempt: 1 for the first.
        saved: last checkpoint, JSON or None.
        timeout_s: seconds it may take.
        memory_mb: resident megabytes it may take.
        lost: how many workers the job has lost before.
    """

    job_id: int
    token: int
    kind: str
    campus: str
    owner: str
    arguments: Any
    attempt: int
    saved: Any
    timeout_s: float
    memory_mb: int
    lost: int

    @property
    def message(self) -> Message:
        """What it was started by."""
        return Message(self.job_id, self.token)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        job_id, token: whose.
        outcome: `completed`, `failed`, `lost` (worker or machine died), `released` (given back
            without fault) or `cancelled`.
        reason: in words, for the history.
        result: JSON of a completed job.
        transient: whether a failed job may be retried.
        wait_s: seconds before the next attempt.
        error, error_kind, stack: message, class name and traceback of a failure.
        peak_memory_mb, cpu_s: what the attempt took.
        run_s: seconds that it ran in its process, where its process tells.
    """

    job_id: int
    token: int
    outcome: str
    reason: str = ""
    result: Any = None
    transient: bool = True
    wait_s: float = 0.0
    error: str | None = None
    error_kind: str | None = None
    stack: str | None = None
    peak_memory_mb: float | None = None
    cpu_s: float | None = None
    run_s: float | None = None


def turn(store: Store, *, durable: bool = True) -> AbstractContextManager[Connection]:
    """A transaction of the machinery, which the database ends when nothing comes for `IDLE_S`.

    A process that is frozen in the middle of it would keep its locks, and what they keep from
    others would wait for it: the turn to hand out jobs, or the end of leases.

    One that is not durable does not wait for the disk, and may be forgotten if the database dies
    within a second. That suits a mark of a dispatch: a start, which is durable, makes the marks
    before it so, and one that was forgotten is made again under the same token, which begins once.
    """
    settings = {
        "idle_in_transaction_session_timeout": f"{1000 * IDLE_S:.0f}ms",
        # What left a partial index stays in it until a vacuum. A plain index scan marks what it
        # finds dead and passes it only once; a bitmap scan would pass it every time.
        "enable_bitmapscan": "off",
    }
    if not durable:
        settings["synchronous_commit"] = "off"
    return store.transaction(Scope.district(), settings)


def promote(conn: Connection, limit: int = 10_000) -> int:
    """Queue the scheduled jobs whose time has come; returns how many."""
    return conn.execute(
        text(
            "UPDATE theon.jobs SET state = 'queued', reason = 'may run now',"
            " changed_at = clock_timestamp() WHERE id IN (SELECT id FROM theon.jobs"
            "  WHERE state = 'scheduled' AND waits_for = 0 AND ready_at <= clock_timestamp()"
            "  ORDER BY ready_at LIMIT :limit FOR UPDATE SKIP LOCKED)"
        ),
        {"limit": limit},
    ).rowcount


def next_ready_s(conn: Connection) -> float | None:
    """Seconds until the next scheduled job is due; None if none waits for its time."""
    found = conn.execute(
        text(
            "SELECT extract(epoch FROM ready_at - clock_timestamp()) FROM theon.jobs"
            " WHERE state = 'scheduled' AND waits_for = 0 ORDER BY ready_at LIMIT 1"
        )
    ).scalar()
    return None if found is None else max(0.0, float(found))


def dispatch(
    conn: Connection, ids: Sequence[int], *, lease_s: float = DISPATCH_LEASE_S
) -> list[Message]:
    """Mark queued jobs as dispatched under a new token; others of `ids` are left alone.

    Commit before the messages are sent: a message whose mark was rolled back would be dropped,
    a mark whose message was lost comes back when its lease ends.
    """
    found = conn.execute(
        text(
            "UPDATE theon.jobs SET state = 'dispatched', token = token + 1, worker = NULL,"
            " lease_until = clock_timestamp() + make_interval(secs => :lease_s),"
            " changed_at = clock_timestamp(), reason = 'handed to a delivery'"
            " WHERE id IN (SELECT id FROM theon.jobs WHERE id = ANY (:ids)"
            "  AND state = 'queued' ORDER BY id FOR UPDATE SKIP LOCKED) RETURNING id, token"
        ),
        {"ids": list(ids), "lease_s": lease_s},
    )
    return [Message(job_id, token) for job_id, token in found]


def start(
    conn: Connection,
    messages: Sequence[Message],
    worker: str,
    *,
    lease_s: float = RUN_LEASE_S,
    beside: bool = False,
) -> list[Attempt]:
    """Begin attempts; a message whose token is spent is dropped, for somebody has it already.

    With `beside` the attempts will have others beside them on the worker, and jobs that run
    alone are not begun.
    """
    found = conn.execute(
        text(
            "WITH held AS (SELECT id FROM theon.jobs WHERE state = 'dispatched'"
            "  AND (id, token) IN (SELECT * FROM unnest(CAST(:ids AS bigint[]),"
            f"   CAST(:tokens AS bigint[]))) AND NOT (:beside AND {RUNS_ALONE})"
            "  ORDER BY id FOR UPDATE)"
            " UPDATE theon.jobs AS j SET state = 'running', attempts = j.attempts + 1,"
            " worker = :worker, started_at = clock_timestamp(), changed_at = clock_timestamp(),"
            " lease_until = clock_timestamp() + make_interval(secs => :lease_s),"
            " done = NULL, total = NULL, operation = NULL, reason = 'a worker began it'"
            " FROM held AS h, theon.campuses AS c WHERE j.id = h.id AND c.id = j.campus_id"
            " RETURNING j.id, j.token, j.kind, c.slug, j.owner, j.arguments, j.attempts,"
            "  j.checkpoint, j.timeout_s, j.memory_mb, j.lost"
        ),
        {**pairs(messages), "worker": worker, "lease_s": lease_s, "beside": beside},
    )
    return [Attempt(*row) for row in found]


@dataclass(frozen=True)
class Held:
    """A running attempt whose lease was renewed; `cancel_asked` says that it should end."""

    job_id: int
    token: int
    cancel_asked: bool


@dataclass(frozen=True)
class Progress:
    """How far an attempt is: `done` of `total` (of any unit), and what it does."""

    job_id: int
    token: int
    done: float | None = None
    total: float | None = None
    operation: str | None = None


def renew(
    conn: Connection, running: Sequence[Progress], *, lease_s: float = RUN_LEASE_S
) -> list[Held]:
    """Renew the leases of running attempts and tell their progress.

    Returns:
        Those that still hold their job. The others have lost it: end their processes.
    """
    found = conn.execute(
        text(
            "WITH held AS (SELECT p.* FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS p"
            "   (job_id bigint, token bigint, done float8, total float8, operation text)"
            "  JOIN theon.jobs AS j ON j.id = p.job_id AND j.token = p.token"
            "   AND j.state = 'running' ORDER BY p.job_id FOR UPDATE OF j)"
            " UPDATE theon.jobs AS j"
            " SET lease_until = clock_timestamp() + make_interval(secs => :lease_s),"
            "  done = coalesce(p.done, j.done), total = coalesce(p.total, j.total),"
            "  operation = coalesce(p.operation, j.operation)"
            " FROM held AS p WHERE j.id = p.job_id"
            " RETURNING j.id, j.token, j.cancel_asked"
        ),
        {"rows": json.dumps([vars(p) for p in running]), "lease_s": lease_s},
    )
    return [Held(*row) for row in found]


def checkpoint(conn: Connection, message: Message, state: Any) -> None:
    """Keep the state of an attempt for the next one.

    Raises:
        LostLeaseError: the attempt does not own the job any more.
    """
    kept = conn.execute(
        text(
            "UPDATE theon.jobs SET checkpoint = CAST(:state AS jsonb)"
            " WHERE id = :id AND token = :token AND state = 'running'"
        ),
        {"state": json.dumps(state), "id": message.job_id, "token": message.token},
    )
    if kept.rowcount == 0:
        raise lost_lease(message)


def lost_lease(message: Message) -> LostLeaseError:
    """The error of an attempt that does not own its job any more."""
    return LostLeaseError(
        "this attempt lost its lease: another one owns the job now, or it was ended",
        where=f"job {message.job_id}, token {message.token}",
        next_step="Nothing of this attempt is kept; the ledger has the job.",
    )


def complete(conn: Connection, message: Message, result: Any) -> None:
    """Complete a job in the transaction of its effect.

    Raises:
        LostLeaseError: the attempt does not own the job any more; roll back.
    """
    outcome = Outcome(message.job_id, message.token, "completed", "ended well", result)
    if message.job_id not in finish(conn, [outcome]):
        raise lost_lease(message)


def finish(conn: Connection, outcomes: Sequence[Outcome]) -> dict[int, str]:
    """End running attempts as they ended.

    Returns:
        Job id to its new state. A job that is missing was lost to another attempt before.
    """
    if not outcomes:
        return {}
    rows = json.dumps([vars(outcome) for outcome in outcomes])
    states: dict[int, str] = {
        int(job_id): state for job_id, state in conn.execute(text(_FINISH), {"rows": rows})
    }
    settle_dependents(conn, states)
    if states:
        # A slot is free, and what came back may run again.
        conn.execute(text("SELECT pg_notify(:channel, 'ended')"), {"channel": CHANNEL})
    return states


# `attempts` counts the job's own failures, `lost` those of its workers: an attempt that was lost
# or given back is not the job's fault and is taken off again.
_FINISH = f"""
WITH given AS (
    SELECT o.*, j.worker, j.cancel_asked, j.started_at, j.ready_at AS was_ready_at,
        j.attempts AS attempt,
        CASE
            WHEN o.outcome = 'completed' THEN 'completed'
            WHEN j.cancel_asked OR o.outcome = 'cancelled' THEN 'cancelled'
            WHEN o.outcome = 'released' THEN 'queued'
            WHEN o.outcome = 'lost' AND j.lost + 1 < j.max_lost THEN 'scheduled'
            WHEN o.outcome = 'failed' AND o.transient AND j.attempts < j.max_attempts
                THEN 'scheduled'
            ELSE 'failed'
        END AS after
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS o (job_id bigint, token bigint,
        outcome text, reason text, result jsonb, transient boolean, wait_s float8, error text,
        error_kind text, stack text, peak_memory_mb float8, cpu_s float8, run_s float8)
    JOIN theon.jobs AS j ON j.id = o.job_id AND j.token = o.token AND j.state = 'running'
    ORDER BY o.job_id FOR UPDATE OF j
), ended AS (
    UPDATE theon.jobs AS j SET
        state = g.after, reason = g.reason, result = g.result,
        attempts = j.attempts - CASE WHEN g.outcome IN ('lost', 'released') THEN 1 ELSE 0 END,
        lost = j.lost + CASE WHEN g.outcome = 'lost' THEN 1 ELSE 0 END,
        ready_at = CASE WHEN g.after = 'scheduled'
            THEN clock_timestamp() + make_interval(secs => g.wait_s) ELSE j.ready_at END,
        rank_at = CASE WHEN g.after = 'scheduled'
            THEN clock_timestamp() + make_interval(secs => g.wait_s - j.priority * {AGEING_S})
            ELSE j.rank_at END,
        worker = CASE WHEN g.after IN ('scheduled', 'queued') THEN NULL ELSE j.worker END,
        lease_until = NULL, changed_at = clock_timestamp(),
        ended_at = CASE WHEN g.after IN ('completed', 'failed', 'cancelled')
            THEN clock_timestamp() END,
        error = g.error, error_kind = g.error_kind, stack = g.stack,
        peak_memory_mb = g.peak_memory_mb, cpu_s = g.cpu_s
    FROM given AS g WHERE j.id = g.job_id AND j.token = g.token AND j.state = 'running'
    RETURNING j.id, j.state, j.campus_id, j.kind, j.size, g.worker, g.token, g.attempt,
        g.started_at, g.was_ready_at, g.outcome, g.error, g.error_kind, g.stack,
        g.peak_memory_mb, g.cpu_s, g.run_s
), kept AS (
    INSERT INTO theon.job_attempts (campus_id, job_id, token, attempt, kind, size, worker,
        started_at, ended_at, waited_s, outcome, error, error_kind, stack, peak_memory_mb, cpu_s,
        run_s)
    SELECT campus_id, id, token, attempt, kind, size, worker, started_at, clock_timestamp(),
        greatest(0, extract(epoch FROM started_at - was_ready_at)), outcome, error, error_kind,
        stack, peak_memory_mb, cpu_s, run_s
    FROM ended
)
SELECT id, state FROM ended"""


def settle_dependents(conn: Connection, states: Mapping[int, str]) -> None:
    """Tell the jobs that wait for jobs which ended now.

    Of a completed job they wait for one less, also those that were cancelled or failed meanwhile
    and may be retried; those of a failed or cancelled job fail with it,
    and theirs in turn.
    """
    completed = [job_id for job_id, state in states.items() if state == "completed"]
    fallen = [job_id for job_id, state in states.items() if state in ("failed", "cancelled")]
    if completed:
        freed = conn.execute(
            text(
                "WITH waiting AS (SELECT job_id, count(*) AS n FROM theon.job_dependencies"
                "  WHERE needs_id = ANY (:ids) GROUP BY job_id),"
                " held AS (SELECT id FROM theon.jobs WHERE id IN (SELECT job_id FROM waiting)"
                "  ORDER BY id FOR UPDATE)"
                " UPDATE theon.jobs AS j SET waits_for = j.waits_for - w.n"
                " FROM held AS h JOIN waiting AS w ON w.job_id = h.id"
                " WHERE j.id = h.id RETURNING j.waits_for"
            ),
            {"ids": completed},
        )
        if any(left == 0 for left in freed.scalars()):
            conn.execute(text("SELECT pg_notify(:channel, 'freed')"), {"channel": CHANNEL})
    while fallen:
        fallen = list(
            conn.execute(
                text(
                    "WITH waiting AS (SELECT job_id, min(needs_id) AS needs_id"
                    "  FROM theon.job_dependencies WHERE needs_id = ANY (:ids) GROUP BY job_id),"
                    " held AS (SELECT id FROM theon.jobs WHERE state = 'scheduled'"
                    "  AND id IN (SELECT job_id FROM waiting) ORDER BY id FOR UPDATE)"
                    " UPDATE theon.jobs AS j SET state = 'failed', changed_at = clock_timestamp(),"
                    "  ended_at = clock_timestamp(), error_kind = 'DependencyError',"
                    "  error = 'job ' || d.needs_id || ', which it needs, did not complete',"
                    "  reason = 'job ' || d.needs_id || ', which it needs, did not complete'"
                    " FROM held AS h JOIN waiting AS d ON d.job_id = h.id"
                    " WHERE j.id = h.id RETURNING j.id"
                ),
                {"ids": fallen},
            ).scalars()
        )


def expire(conn: Connection) -> tuple[int, int]:
    """Take back what is held by nobody any more.

    A dispatch that no worker began spends no attempt. A run whose lease ended is lost with its
    worker.

    Returns:
        How many dispatches and how many runs were taken back.
    """
    returned = conn.execute(
        text(
            "UPDATE theon.jobs SET state = 'queued', lease_until = NULL, worker = NULL,"
            " changed_at = clock_timestamp(), reason = 'no worker began it in time'"
            " WHERE id IN (SELECT id FROM theon.jobs WHERE state = 'dispatched'"
            "  AND lease_until < clock_timestamp() ORDER BY id LIMIT :limit"
            "  FOR UPDATE SKIP LOCKED)"
        ),
        {"limit": EXPIRED_PER_STATEMENT},
    ).rowcount
    found = conn.execute(
        text(
            "SELECT id, token, worker FROM theon.jobs WHERE state = 'running'"
            " AND lease_until < clock_timestamp() ORDER BY id LIMIT :limit"
            " FOR UPDATE SKIP LOCKED"
        ),
        {"limit": EXPIRED_PER_STATEMENT},
    )
    lost = [
        Outcome(
            job_id,
            token,
            "lost",
            f"its worker {worker} was lost: the lease ended",
            error=f"the worker {worker} died or could not reach the database in time",
            error_kind="WorkerLost",
        )
        for job_id, token, worker in found
    ]
    finish(conn, lost)
    return returned, len(lost)


def release_dispatched(conn: Connection, messages: Sequence[Message], reason: str) -> int:
    """Give dispatched jobs back at once, e.g. by a worker that drains or has no room."""
    return conn.execute(
        text(
            "UPDATE theon.jobs SET state = 'queued', lease_until = NULL, reason = :reason,"
            " worker = NULL, changed_at = clock_timestamp() WHERE id IN (SELECT id FROM theon.jobs"
            "  WHERE state = 'dispatched' AND (id, token) IN (SELECT * FROM"
            "   unnest(CAST(:ids AS bigint[]), CAST(:tokens AS bigint[])))"
            "  ORDER BY id FOR UPDATE)"
        ),
        {**pairs(messages), "reason": reason},
    ).rowcount


def pairs(messages: Sequence[Message]) -> dict[str, list[int]]:
    """Ids and tokens, as parameters of a statement."""
    return {"ids": [m.job_id for m in messages], "tokens": [m.token for m in messages]}
