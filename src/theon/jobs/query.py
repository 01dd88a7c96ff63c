"""Reading the ledger for the API and the pages: lists of jobs, and all about one.

Everything runs in the caller's transaction; its scope, by row-level security, is what is seen.
No list costs more the longer the ledger is: the newest come first, from an index, and a filter
that no index serves looks at a bounded number of jobs and says where it stopped.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from theon.errors import InputError, MissingError
from theon.jobs.enqueue import PRIORITIES
from theon.jobs.search import JobFilter, campus_ids, conditions
from theon.jobs.states import State
from theon.store.scope import DISTRICT

JOBS_PER_PAGE = 50
JOBS_PER_PAGE_AT_MOST = 1_000
SCANNED_JOBS = 15_000  # that one page looks at, where no index serves its filter
CAMPUSES_READ_APART = 64
ATTEMPTS_FOR_DURATION = 200
ENOUGH_ATTEMPTS = 5
FIRST_ID_AFTER_ALL = 2**63 - 1

# Few of all jobs, at any time: their index is the short way, whoever asks.
_RARE_STATES = frozenset(
    {State.SCHEDULED, State.DISPATCHED, State.RUNNING, State.FAILED, State.CANCELLED}
)
_PRIORITY_WORDS = {number: word for word, number in PRIORITIES.items()}


class NoSuchJobError(MissingError):
    """The scope has no job of this id."""


@dataclass(frozen=True)
class Remaining:
    """How long a running job still takes: probably not less than `low_s`, nor more than `high_s`.

    `basis` is `progress` or `history`.
    """

    low_s: float
    high_s: float
    basis: str


@dataclass(frozen=True)
class JobSummary:
    """A job in a list; the attributes are the columns of the ledger.

    Attributes:
        campus: slug.
        priority: its word.
        error: its first 500 letters.
        remaining: only of a running job of which progress or history tells something.
    """

    id: int
    kind: str
    queue: str
    category: str
    campus: str
    owner: str
    state: str
    reason: str
    priority: str
    created_at: datetime
    ready_at: datetime
    changed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    deadline_at: datetime | None
    attempts: int
    max_attempts: int
    lost: int
    worker: str | None
    waits_for: int
    cancel_asked: bool
    done: float | None
    total: float | None
    operation: str | None
    error_kind: str | None
    error: str | None
    idempotency_key: str | None
    remaining: Remaining | None


@dataclass(frozen=True)
class Page:
    """A page of jobs, newest first.

    Attributes:
        jobs: of the page.
        cursor: gives the next page; None after the last.
        complete: False where the page ended because enough jobs were looked at: it may be short,
            or empty, and `cursor` goes on from there.
    """

    jobs: tuple[JobSummary, ...]
    cursor: str | None
    complete: bool


@dataclass(frozen=True)
class Change:
    """A change of state, from the history."""

    at: datetime
    before: str | None
    after: str
    token: int
    attempt: int
    worker: str | None
    reason: str


@dataclass(frozen=True)
class PastAttempt:
    """An attempt that ended."""

    token: int
    attempt: int
    worker: str | None
    started_at: datetime
    ended_at: datetime
    waited_s: float
    outcome: str
    error: str | None
    error_kind: str | None
    stack: str | None
    peak_memory_mb: float | None
    cpu_s: float | None


@dataclass(frozen=True)
class Neighbour:
    """A job that this one needs, or that needs it; None is what the scope does not see."""

    id: int
    kind: str | None
    campus: str | None
    state: str | None


@dataclass(frozen=True)
class JobDetails:
    """All about one job."""

    job: JobSummary
    arguments: Any
    result: Any
    checkpoint: Any
    error: str | None
    stack: str | None
    timeout_s: float
    memory_mb: int
    max_lost: int
    size: float | None
    peak_memory_mb: float | None
    cpu_s: float | None
    history: tuple[Change, ...]
    past_attempts: tuple[PastAttempt, ...]
    needs: tuple[Neighbour, ...]
    needed_by: tuple[Neighbour, ...]


# -- lists ---------------------------------------------------------------------------------


def list_jobs(
    conn: Connection,
    chosen: JobFilter | None = None,
    *,
    limit: int = JOBS_PER_PAGE,
    cursor: str | None = None,
) -> Page:
    """The jobs that match, newest first.

    Args:
        conn: in the scope of who asks.
        chosen: which; all unless given.
        limit: how many at most.
        cursor: of the page before.

    Raises:
        InputError: limit or cursor do not fit, or the scope does not see a campus of the filter.
    """
    if not 1 <= limit <= JOBS_PER_PAGE_AT_MOST:
        raise InputError(
            f"a page has 1 to {JOBS_PER_PAGE_AT_MOST:,} jobs, not {limit:,}", where="limit"
        )
    before = FIRST_ID_AFTER_ALL if cursor is None else _read_cursor(cursor)
    ids, scanned_to = find_ids(conn, chosen or JobFilter(), before=before, limit=limit + 1)
    more = len(ids) > limit
    ids = ids[:limit]
    cursor = _cursor(ids[-1]) if more else None if scanned_to is None else _cursor(scanned_to)
    return Page(tuple(summaries(conn, ids)), cursor, more or scanned_to is None)


def find_ids(
    conn: Connection, chosen: JobFilter, *, before: int = FIRST_ID_AFTER_ALL, limit: int
) -> tuple[list[int], int | None]:
    """The ids below `before` of jobs that match, newest first.

    Returns:
        The ids; and, where enough jobs were looked at before there were `limit`, down to which id
        all were seen.
    """
    found, values = conditions(conn, chosen)
    source = _source(conn, chosen)
    where = " AND ".join(found) or "true"
    values |= {
        **source.values(), "before": before, "limit": limit, "scan": max(SCANNED_JOBS, limit),
    }  # fmt: skip
    inner = f"SELECT * FROM theon.jobs AS j WHERE {source.condition} AND j.id < :before"
    ids = [
        int(job_id)
        for job_id in conn.execute(
            text(
                "SELECT m.id FROM "
                + source.each(
                    f"SELECT j.id FROM ({inner} ORDER BY j.id DESC LIMIT :scan) AS j"
                    f" WHERE {where} ORDER BY j.id DESC LIMIT :limit"
                )
                + " ORDER BY m.id DESC LIMIT :limit"
            ),
            values,
        ).scalars()
    ]
    if len(found) <= source.served or (len(ids) == limit and len(source.keys) == 1):
        return ids, None
    # Of each part that was not looked at to its end, where that stopped: the page ends there.
    scanned_to = conn.execute(
        text(
            "SELECT max(m.id) FROM "
            + source.each(
                f"{inner.replace('SELECT *', 'SELECT j.id')}"
                " ORDER BY j.id DESC OFFSET :scan - 1 LIMIT 1"
            )
        ),
        values,
    ).scalar()
    seen = ids if scanned_to is None else [job_id for job_id in ids if job_id >= scanned_to]
    return seen, None if len(seen) == limit or scanned_to is None else int(scanned_to)


def matching(conn: Connection, ids: Sequence[int], chosen: JobFilter) -> set[int]:
    """Those of a few jobs that match and that the scope sees.

    Raises:
        InputError: the scope does not see a campus of the filter.
    """
    found, values = conditions(conn, chosen)
    where = " AND ".join(["j.id = ANY (:ids)", *found])
    rows = conn.execute(
        text(f"SELECT j.id FROM theon.jobs AS j WHERE {where}"), {**values, "ids": list(ids)}
    )
    return {int(job_id) for job_id in rows.scalars()}


class _Source(NamedTuple):
    """How jobs are read in order: the parts, each by an index, and how many conditions it meets."""

    keys: list[Any]
    type: str
    condition: str
    served: int

    def each(self, query: str) -> str:
        """SQL of `m`: what `query` gives for each part, whose key it calls `k.key`.

        States are told to the planner one by one: only what it knows of a state says whether
        to walk through all jobs or through that state's index, and the wrong way is long.
        """
        if self.type != "text":
            keys = f"unnest(CAST(:keys AS {self.type}[])) AS k (key)"
            return f"{keys} CROSS JOIN LATERAL ({query}) AS m"
        parts = (query.replace("k.key", f":key{n}") for n in range(len(self.keys)))
        return f"({' UNION ALL '.join(f'({part})' for part in parts)}) AS m"

    def values(self) -> dict[str, Any]:
        """The parameters of `each`."""
        return {"keys": self.keys} | {f"key{n}": key for n, key in enumerate(self.keys)}


def _source(conn: Connection, chosen: JobFilter) -> _Source:
    by_state = _Source(list(dict.fromkeys(chosen.states)), "text", "j.state = k.key", 1)
    if chosen.states and _RARE_STATES.issuperset(chosen.states):
        return by_state
    scope = conn.execute(text("SELECT current_setting('theon.scope', true)")).scalar() or ""
    if chosen.campuses or scope != DISTRICT:
        seen = text("SELECT id FROM theon.campuses ORDER BY id")
        ids = (
            campus_ids(conn, chosen.campuses)
            if chosen.campuses
            else list(conn.execute(seen).scalars())
        )
        if len(ids) <= CAMPUSES_READ_APART:
            return _Source(ids, "int", "j.campus_id = k.key", int(bool(chosen.campuses)))
    return by_state if chosen.states else _Source([0], "int", "k.key = 0", 0)


def _cursor(job_id: int) -> str:
    return base64.urlsafe_b64encode(f"jobs-before {job_id}".encode()).decode()


def _read_cursor(cursor: str) -> int:
    try:
        word, _, number = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
        job_id = int(number) if number.isascii() and number.isdigit() else -1
        if word == "jobs-before" and 0 <= job_id <= FIRST_ID_AFTER_ALL:
            return job_id
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise InputError(
        "this is no cursor of a list of jobs",
        where="cursor",
        next_step="Take it from the page before, or leave it out for the first page.",
    )


_SUMMARIES = """
SELECT j.id, j.kind, j.queue, j.category, c.slug, j.owner, j.state, j.reason, j.priority,
    j.created_at, j.ready_at, j.changed_at, j.started_at, j.ended_at, j.deadline_at, j.attempts,
    j.max_attempts, j.lost, j.worker, j.waits_for, j.cancel_asked, j.done, j.total, j.operation,
    j.error_kind, left(j.error, 500), j.idempotency_key,
    CASE WHEN j.state = 'running'
        THEN extract(epoch FROM clock_timestamp() - j.started_at)::float8 END AS elapsed_s
FROM theon.jobs AS j JOIN theon.campuses AS c ON c.id = j.campus_id
WHERE j.id = ANY (:ids) ORDER BY j.id DESC"""


def summaries(conn: Connection, ids: Sequence[int]) -> list[JobSummary]:
    """The jobs of these ids that the scope sees, newest first."""
    rows = conn.execute(text(_SUMMARIES), {"ids": list(ids)}).all()
    usual = _durations(conn, sorted({row.kind for row in rows if row.state == "running"}))
    found = []
    for row in rows:
        *columns, elapsed_s = row
        columns[8] = _PRIORITY_WORDS.get(row.priority, str(row.priority))
        left = None
        if elapsed_s is not None:
            left = remaining(elapsed_s, row.done, row.total, usual.get(row.kind))
        found.append(JobSummary(*[*columns, left]))
    return found


# -- time that remains ---------------------------------------------------------------------


def remaining(
    elapsed_s: float, done: float | None, total: float | None, usual: tuple[float, float] | None
) -> Remaining | None:
    """How long a running job still takes, as a range.

    From its progress, if it tells any: at the same speed, and the wider the range the less is
    done. Else from `usual`, the median and the 95th percentile of how long its kind took.
    """
    if done is not None and total is not None and done > 0 and total > 0:
        share = min(1.0, done / total)
        rest_s = elapsed_s * (1 - share) / share
        doubt = 2 - share
        return Remaining(rest_s / doubt, rest_s * doubt, "progress")
    if usual is None:
        return None
    median_s, long_s = usual
    return Remaining(max(0.0, median_s - elapsed_s), max(0.0, long_s - elapsed_s), "history")


def _durations(conn: Connection, kinds: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile of the latest attempts of each kind that has enough of them."""
    if not kinds:
        return {}
    found = conn.execute(
        text(
            "SELECT k.kind, percentile_cont(0.5) WITHIN GROUP (ORDER BY a.took_s),"
            "  percentile_cont(0.95) WITHIN GROUP (ORDER BY a.took_s)"
            " FROM unnest(CAST(:kinds AS text[])) AS k (kind) CROSS JOIN LATERAL ("
            "  SELECT coalesce(run_s, extract(epoch FROM ended_at - started_at)) AS took_s"
            "  FROM theon.job_attempts WHERE kind = k.kind AND outcome = 'completed'"
            "  ORDER BY ended_at DESC LIMIT :attempts) AS a"
            " GROUP BY k.kind HAVING count(*) >= :enough"
        ),
        {"kinds": list(kinds), "attempts": ATTEMPTS_FOR_DURATION, "enough": ENOUGH_ATTEMPTS},
    )
    return {kind: (median_s, long_s) for kind, median_s, long_s in found}


# -- one job -------------------------------------------------------------------------------

_DETAILS = """
SELECT arguments, result, checkpoint, error, stack, timeout_s, memory_mb, max_lost, size,
    peak_memory_mb, cpu_s
FROM theon.jobs WHERE id = :id"""

_HISTORY = """
SELECT at, before, after, token, attempt, worker, reason
FROM theon.job_history WHERE job_id = :id ORDER BY id"""

_ATTEMPTS = """
SELECT token, attempt, worker, started_at, ended_at, waited_s, outcome, error, error_kind, stack,
    peak_memory_mb, cpu_s
FROM theon.job_attempts WHERE job_id = :id ORDER BY token"""

_NEIGHBOURS = """
SELECT d.other, j.kind, c.slug, j.state
FROM (SELECT needs_id AS other FROM theon.job_dependencies WHERE job_id = :id AND :needs
    UNION ALL SELECT job_id FROM theon.job_dependencies WHERE needs_id = :id AND NOT :needs) AS d
LEFT JOIN theon.jobs AS j ON j.id = d.other LEFT JOIN theon.campuses AS c ON c.id = j.campus_id
ORDER BY d.other"""


def get_job(conn: Connection, job_id: int) -> JobDetails:
    """A job with its history, attempts, and the jobs that it needs or that need it.

    Raises:
        NoSuchJobError: the scope has no such job.
    """
    found = summaries(conn, [job_id]) if 0 < job_id < FIRST_ID_AFTER_ALL else []
    if not found:
        raise NoSuchJobError(
            f"there is no job {job_id} in this scope",
            where="jobs",
            next_step="It may be of another campus, or removed because it ended long ago.",
        )
    given = {"id": job_id}
    parts: list[Any] = [
        *conn.execute(text(_DETAILS), given).one(),
        tuple(Change(*row) for row in conn.execute(text(_HISTORY), given)),
        tuple(PastAttempt(*row) for row in conn.execute(text(_ATTEMPTS), given)),
        _neighbours(conn, job_id, needs=True),
        _neighbours(conn, job_id, needs=False),
    ]
    return JobDetails(found[0], *parts)


def _neighbours(conn: Connection, job_id: int, *, needs: bool) -> tuple[Neighbour, ...]:
    rows = conn.execute(text(_NEIGHBOURS), {"id": job_id, "needs": needs})
    return tuple(Neighbour(*row) for row in rows)
