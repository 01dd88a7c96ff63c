"""The moves that people make with jobs: what becomes of the rows, and the order of their locks.

Each takes jobs that `lock` gave, runs in the caller's transaction and scope, and skips jobs in
states that it does not fit.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.jobs import ledger
from theon.jobs.context import clean
from theon.jobs.enqueue import AGEING_S, CHANNEL, PRIORITIES
from theon.jobs.kinds import Kinds
from theon.jobs.states import ENDED, State
from theon.store.scope import Scope, set_scope

_OPEN = tuple(state.value for state in State if state not in ENDED)
STATES = {
    "cancel": _OPEN,
    "retry": (State.FAILED.value, State.CANCELLED.value),
    "discard": (State.FAILED.value,),
    "prioritise": _OPEN,
}


@dataclass(frozen=True)
class Done:
    """What an action did.

    Attributes:
        changed: ids of the jobs that it changed.
        asked: of these, running jobs that were asked to end: their workers end them in a moment.
        skipped: ids of jobs whose state it does not fit, and why.
        refused: ids of jobs that cannot be retried, and which of their needs is why.
    """

    changed: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    skipped: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)


class Locked(NamedTuple):
    """A job that this transaction holds."""

    id: int
    state: str
    kind: str
    campus_id: int


def lock(conn: Connection, ids: Sequence[int]) -> list[Locked]:
    """Lock the jobs of these ids that the scope sees.

    Running jobs come first, as where attempts end: such a batch locks its jobs and then those
    that wait for them.
    """
    found = conn.execute(
        text(
            "SELECT id, state, kind, campus_id FROM theon.jobs WHERE id = ANY (:ids)"
            " ORDER BY state <> 'running', id FOR UPDATE"
        ),
        {"ids": list(ids)},
    )
    return sorted(Locked._make(row) for row in found)


def lock_to_retry(conn: Connection, ids: Sequence[int]) -> list[Locked]:
    """Lock the jobs of these ids, and before them those that they need.

    An attempt that ends locks its job and then those that wait for it: in the same order. And none
    ends between the count of what is still open and the commit.
    """
    needs = conn.execute(
        text("SELECT DISTINCT needs_id FROM theon.job_dependencies WHERE job_id = ANY (:ids)"),
        {"ids": list(ids)},
    )
    with _whole_district(conn):  # a job may need one of another campus
        conn.execute(
            text("SELECT id FROM theon.jobs WHERE id = ANY (:ids) ORDER BY id FOR NO KEY UPDATE"),
            {"ids": list(needs.scalars())},
        )
    return lock(conn, ids)


def _split(rows: Sequence[Locked], states: Sequence[str]) -> tuple[list[Locked], dict[int, str]]:
    """Those that an action fits, and why it does not fit the others."""
    skipped = {row.id: f"it is {row.state}" for row in rows if row.state not in states}
    return [row for row in rows if row.id not in skipped], skipped


def cancel(conn: Connection, rows: Sequence[Locked], actor: str, reason: str) -> Done:
    """End what has not begun, ask what runs to end, and fail what waits for either."""
    fitting, skipped = _split(rows, _OPEN)
    asked = [row.id for row in fitting if row.state == State.RUNNING]
    ended = [row.id for row in fitting if row.state != State.RUNNING]
    values = {"why": _why("cancelled", actor, reason), "asked": asked, "ended": ended}
    conn.execute(
        text("UPDATE theon.jobs SET cancel_asked = true, reason = :why WHERE id = ANY (:asked)"),
        values,
    )
    conn.execute(
        text(
            "UPDATE theon.jobs SET state = 'cancelled', reason = :why, lease_until = NULL,"
            " changed_at = clock_timestamp(), ended_at = clock_timestamp() WHERE id = ANY (:ended)"
        ),
        values,
    )
    with _whole_district(conn):
        ledger.settle_dependents(conn, dict.fromkeys(ended, State.CANCELLED.value))
    if asked:
        notify(conn, "cancelled")
    return Done(tuple(row.id for row in fitting), tuple(asked), skipped)


def retry(
    conn: Connection, kinds: Kinds, rows: Sequence[Locked], actor: str, arguments: Any
) -> Done:
    """Schedule jobs of `lock_to_retry` again; those whose needs ended badly are refused."""
    fitting, skipped = _split(rows, STATES["retry"])
    waits_for, refused = _open_needs(conn, [row.id for row in fitting])
    given = []
    for row in fitting:
        if row.id in refused:
            continue
        change: dict[str, Any] = {"id": row.id, "waits_for": waits_for[row.id]}
        if arguments is not None:
            kind = kinds[row.kind]
            parsed = kind.parse(arguments)
            change["arguments"] = kind.dump(parsed)
            change["size"] = kind.size(parsed) if kind.size else None
        if row.kind in kinds:
            kind = kinds[row.kind]
            change |= {"timeout_s": kind.timeout_s, "memory_mb": kind.memory_mb}
        given.append(change)
    conn.execute(text(_RETRY), {"rows": json.dumps(given), "why": _why("retried", actor, "")})
    notify(conn, "retried")
    return Done(tuple(change["id"] for change in given), (), skipped, refused)


_RETRY = f"""
UPDATE theon.jobs AS j SET state = 'scheduled', reason = :why, waits_for = r.waits_for,
    attempts = 0, lost = 0, cancel_asked = false, changed_at = clock_timestamp(),
    ready_at = clock_timestamp(),
    rank_at = clock_timestamp() - make_interval(secs => j.priority * {AGEING_S}),
    started_at = NULL, ended_at = NULL, worker = NULL, lease_until = NULL, done = NULL,
    total = NULL, operation = NULL, result = NULL, error = NULL, error_kind = NULL, stack = NULL,
    arguments = coalesce(r.arguments, j.arguments),
    size = CASE WHEN r.arguments IS NULL THEN j.size ELSE r.size END,
    checkpoint = CASE WHEN r.arguments IS NULL THEN j.checkpoint END,
    timeout_s = coalesce(r.timeout_s, j.timeout_s), memory_mb = coalesce(r.memory_mb, j.memory_mb)
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r (id bigint, waits_for int, arguments jsonb,
    size float8, timeout_s float8, memory_mb int)
WHERE j.id = r.id"""


def _open_needs(conn: Connection, ids: Sequence[int]) -> tuple[dict[int, int], dict[int, str]]:
    """For how many jobs each of these has to wait; and why it cannot, if one of them ended badly.

    A need that is retried with it is waited for.
    """
    with _whole_district(conn):
        found = conn.execute(
            text(
                "SELECT d.job_id, n.id, n.state FROM theon.job_dependencies AS d"
                " JOIN theon.jobs AS n ON n.id = d.needs_id WHERE d.job_id = ANY (:ids)"
                " ORDER BY n.id"
            ),
            {"ids": list(ids)},
        ).all()
    needs: dict[int, list[tuple[int, str]]] = {job_id: [] for job_id in ids}
    for job_id, need_id, state in found:
        needs[job_id].append((need_id, state))
    waits_for: dict[int, int] = {}
    refused: dict[int, str] = {}
    for job_id in sorted(ids):  # a job has a higher id than what it needs
        waits_for[job_id] = 0
        for need_id, state in needs[job_id]:
            ended_badly = state in STATES["retry"] and need_id not in waits_for
            if ended_badly or need_id in refused:
                refused[job_id] = f"it needs job {need_id}, which is {state}"
            waits_for[job_id] += state != State.COMPLETED
    return waits_for, refused


def discard(conn: Connection, rows: Sequence[Locked], actor: str, reason: str) -> Done:
    """Cancel dead letters."""
    fitting, skipped = _split(rows, STATES["discard"])
    ids = tuple(row.id for row in fitting)
    conn.execute(
        text(
            "UPDATE theon.jobs SET state = 'cancelled', reason = :why,"
            " changed_at = clock_timestamp() WHERE id = ANY (:ids)"
        ),
        {"why": _why("discarded", actor, reason), "ids": list(ids)},
    )
    return Done(ids, (), skipped)


def prioritise(conn: Connection, rows: Sequence[Locked], priority: str) -> Done:
    """Rank jobs anew."""
    number = priority_of(priority)
    fitting, skipped = _split(rows, _OPEN)
    ids = tuple(row.id for row in fitting)
    conn.execute(
        text(
            "UPDATE theon.jobs SET priority = :priority,"
            f" rank_at = ready_at - make_interval(secs => :priority * {AGEING_S})"
            " WHERE id = ANY (:ids)"
        ),
        {"priority": number, "ids": list(ids)},
    )
    notify(conn, "prioritised")
    return Done(ids, (), skipped)


def priority_of(word: str) -> int:
    """The number of a priority.

    Raises:
        InputError: there is no such priority.
    """
    if word not in PRIORITIES:
        raise InputError(
            f"there is no priority {word!r}",
            where="jobs",
            next_step=f"Choose one of {', '.join(PRIORITIES)}.",
        )
    return PRIORITIES[word]


def _why(what: str, actor: str, reason: str) -> str:
    # The worker of a running job takes it over if it begins with "cancelled".
    return clean(f"{what} by {actor}: {reason}" if reason else f"{what} by {actor}")


def notify(conn: Connection, what: str) -> None:
    """Wake the dispatchers when this transaction commits."""
    conn.execute(text("SELECT pg_notify(:channel, :what)"), {"channel": CHANNEL, "what": what})


@contextmanager
def _whole_district(conn: Connection) -> Iterator[None]:
    """For what concerns other campuses: jobs there may need, or wait for, one of this scope."""
    scope = conn.execute(text("SELECT current_setting('theon.scope', true)")).scalar()
    set_scope(conn, Scope.district())
    yield
    set_scope(conn, Scope(scope or ""))
