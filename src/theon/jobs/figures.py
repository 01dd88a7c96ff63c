"""Figures of the job system: depths, rates, waits, failures, the five targets.

Depths come from the counters, the rest from the attempts that ended in a window. Of a window with
very many attempts the latest are looked at, and the figures are of the time that these cover.
Everything is of the scope of the caller's transaction; workers are the district's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from theon.jobs.situation import ALIVE_S
from theon.jobs.states import State
from theon.store.scope import DISTRICT, Scope, set_scope

WINDOW_S = 3_600.0
ATTEMPTS_LOOKED_AT = 20_000
DEAD_LETTERS_LOOKED_AT = 50_000
ABOVE = "its administrators"  # who paused what is further up

COMPLETION, MEAN_RUN_S, FAILURES, UTILISATION, UPTIME = 0.95, 30.0, 0.05, 0.70, 0.99


@dataclass(frozen=True)
class Window:
    """The time that figures are of, on the database's clock."""

    since: datetime
    now: datetime

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.now - self.since).total_seconds()


@dataclass(frozen=True)
class QueueFigures:
    """A queue now and in the window.

    Attributes:
        depth: jobs per state.
        ended_per_minute: attempts that ended.
        wait_p50_s, wait_p95_s: from ready to begun, of these attempts; None without any.
    """

    queue: str
    depth: Mapping[str, int]
    ended_per_minute: float
    wait_p50_s: float | None
    wait_p95_s: float | None

    @property
    def waiting(self) -> int:
        """Jobs that may run now and have not been handed out."""
        return self.depth.get("queued", 0)


@dataclass(frozen=True)
class KindFigures:
    """A kind of job in the window.

    Attributes:
        attempts: that ended, except those given back without fault or cancelled.
        completed, failed, lost: of these; `lost` are those whose worker or machine died.
        failure_share: of failed and lost ones among `attempts`.
        error_kind: the most frequent class of error.
        run_mean_s, run_p50_s, run_p95_s: of completed attempts; None without any.
        busy_s: seconds that all its attempts held a slot, in the window.
        wait_p50_s, wait_p95_s: from ready to begun.
        memory_p95_mb: of the peaks of resident memory.
    """

    kind: str
    attempts: int
    completed: int
    failed: int
    lost: int
    failure_share: float
    error_kind: str | None
    run_mean_s: float | None
    run_p50_s: float | None
    run_p95_s: float | None
    busy_s: float
    wait_p50_s: float | None
    wait_p95_s: float | None
    memory_p95_mb: float | None


@dataclass(frozen=True)
class DeadLetters:
    """Dead letters of a kind with one class of error; the newest stands for them."""

    kind: str
    error_kind: str | None
    count: int
    first_at: datetime
    last_at: datetime
    newest_id: int
    newest_error: str | None


@dataclass(frozen=True)
class Pause:
    """What rests: whose, since when, until when, and why."""

    subject: str
    value: str
    campus: str
    reason: str
    paused_by: str
    paused_at: datetime
    until: datetime | None


@dataclass(frozen=True)
class WorkerFigures:
    """A worker; `state` is `lost` as soon as its heartbeat is too old.

    `drain_asked` is whether somebody asked it to drain; it hears that with its next heartbeat.
    """

    id: str
    host: str
    pid: int
    delivery: str
    queues: tuple[str, ...]
    state: str
    slots: int
    busy: int
    started_at: datetime
    heartbeat_age_s: float
    cpu_percent: float | None
    memory_mb: float | None
    memory_free_mb: float | None
    running: tuple[int, ...]
    drain_asked: bool = False

    @property
    def alive(self) -> bool:
        """Whether it begins jobs."""
        return self.state == "running"


@dataclass(frozen=True)
class Target:
    """One of the targets; `value` is None where nothing happened or the scope does not see it.

    Shares are 0 to 1, `mean_run` is seconds.
    """

    name: str
    value: float | None
    limit: float
    above: bool

    @property
    def met(self) -> bool | None:
        """Whether the value is on the right side of the limit."""
        if self.value is None:
            return None
        return self.value > self.limit if self.above else self.value < self.limit


_WINDOW = """
SELECT coalesce((SELECT a.ended_at FROM theon.job_attempts AS a
        WHERE a.ended_at > w.since AND a.ended_at <= w.now
        ORDER BY a.ended_at DESC OFFSET :attempts LIMIT 1), w.since), w.now
FROM (SELECT CAST(:since AS timestamptz) AS since, CAST(:now AS timestamptz) AS now) AS w"""

# The attempts of the window, and how long each held a slot in it.
_RECENT = """
WITH recent AS (
    SELECT campus_id, job_id, token, kind, started_at, ended_at, waited_s, outcome, error_kind,
        peak_memory_mb, coalesce(run_s, extract(epoch FROM ended_at - started_at)) AS run_s,
        greatest(0, least(coalesce(run_s, 'infinity'),
            extract(epoch FROM ended_at - greatest(started_at, :since)))) AS busy_s
    FROM theon.job_attempts WHERE ended_at > :since AND ended_at <= :now
)"""

_QUEUES = """, waits AS (
    SELECT j.queue, count(*) AS ended,
        percentile_cont(0.5) WITHIN GROUP (ORDER BY r.waited_s) AS p50,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY r.waited_s) AS p95
    FROM recent AS r JOIN theon.jobs AS j ON j.campus_id = r.campus_id AND j.id = r.job_id
    GROUP BY j.queue
), depths AS (
    SELECT queue, jsonb_object_agg(state, jobs) AS depth FROM (
        SELECT queue, state, sum(delta)::bigint AS jobs FROM theon.job_counts GROUP BY 1, 2) AS d
    GROUP BY queue
)
SELECT d.queue, d.depth,
    coalesce(w.ended, 0) * 60 / greatest(1, extract(epoch FROM
        CAST(:now AS timestamptz) - CAST(:since AS timestamptz)))::float8, w.p50, w.p95
FROM depths AS d LEFT JOIN waits AS w USING (queue) ORDER BY d.queue"""

_KINDS = """
SELECT kind, count(*) FILTER (WHERE outcome IN ('completed', 'failed', 'lost')),
    count(*) FILTER (WHERE outcome = 'completed'), count(*) FILTER (WHERE outcome = 'failed'),
    count(*) FILTER (WHERE outcome = 'lost'),
    coalesce(avg((outcome <> 'completed')::int) FILTER (
        WHERE outcome IN ('completed', 'failed', 'lost')), 0)::float8,
    mode() WITHIN GROUP (ORDER BY error_kind) FILTER (
        WHERE outcome IN ('failed', 'lost') AND error_kind IS NOT NULL),
    avg(run_s) FILTER (WHERE outcome = 'completed'),
    percentile_cont(0.5) WITHIN GROUP (ORDER BY run_s) FILTER (WHERE outcome = 'completed'),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY run_s) FILTER (WHERE outcome = 'completed'),
    sum(busy_s), percentile_cont(0.5) WITHIN GROUP (ORDER BY waited_s),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY waited_s),
    percentile_cont(0.95) WITHIN GROUP (ORDER BY peak_memory_mb)
FROM recent GROUP BY kind ORDER BY kind"""

# Of each job its last attempt in the window, if the job has ended with it.
_ENDED = """, last AS (
    SELECT DISTINCT ON (job_id) job_id, campus_id, outcome FROM recent ORDER BY job_id, token DESC
)
SELECT count(*) FILTER (WHERE l.outcome = 'completed' AND j.state = 'completed'),
    count(*) FILTER (WHERE l.outcome IN ('failed', 'lost') AND j.state IN ('failed', 'cancelled'))
FROM last AS l JOIN theon.jobs AS j ON j.campus_id = l.campus_id AND j.id = l.job_id"""

_RUNNING_S = """
SELECT coalesce(sum(extract(epoch FROM :now - greatest(started_at, :since))), 0)::float8
FROM theon.jobs WHERE state = 'running' AND started_at < :now"""

_LIVES = """
SELECT slots, greatest(started_at, :since), least(:now, CASE
    WHEN state IN ('running', 'draining')
        AND heartbeat_at > CAST(:now AS timestamptz) - make_interval(secs => :alive_s)
    THEN :now ELSE heartbeat_at END), started_at
FROM theon.job_workers WHERE heartbeat_at > :since AND started_at < :now ORDER BY started_at"""

_DEAD = """
SELECT kind, error_kind, count(*), min(ended_at), max(ended_at), max(id),
    (array_agg(error ORDER BY id DESC))[1]
FROM (SELECT id, kind, error_kind, ended_at, left(error, 500) AS error FROM theon.jobs
    WHERE state = 'failed' ORDER BY id DESC LIMIT :jobs) AS j
GROUP BY kind, error_kind ORDER BY count(*) DESC, max(id) DESC"""

_PAUSES = """
SELECT p.subject, p.value, c.slug, p.reason, p.paused_by, p.paused_at, p.until
FROM theon.job_pauses AS p JOIN theon.campuses AS c ON c.id = p.campus_id
WHERE p.until IS NULL OR p.until > clock_timestamp() ORDER BY p.paused_at"""

_PAUSES_ABOVE = """
WITH RECURSIVE above AS (
    SELECT parent_id AS id FROM theon.campuses WHERE slug = :campus
    UNION SELECT c.parent_id FROM theon.campuses AS c JOIN above AS a ON c.id = a.id)
SELECT p.subject, p.value, c.slug, p.reason, p.paused_at, p.until
FROM theon.job_pauses AS p JOIN above AS a ON a.id = p.campus_id
JOIN theon.campuses AS c ON c.id = p.campus_id
WHERE p.until IS NULL OR p.until > clock_timestamp() ORDER BY p.paused_at"""

_SERVED = """
SELECT DISTINCT unnest(queues) FROM theon.job_workers WHERE state = 'running'
    AND heartbeat_at > clock_timestamp() - make_interval(secs => :alive_s)"""

_WORKERS = """
SELECT id, host, pid, delivery, queues, CASE WHEN state IN ('running', 'draining')
        AND heartbeat_at < clock_timestamp() - make_interval(secs => :alive_s)
        THEN 'lost' ELSE state END, slots, busy, started_at,
    greatest(0, extract(epoch FROM clock_timestamp() - heartbeat_at))::float8, cpu_percent,
    memory_mb, memory_free_mb, running, drain_asked
FROM theon.job_workers
WHERE heartbeat_at > clock_timestamp() - make_interval(secs => :since_s) ORDER BY id"""


def look_back(conn: Connection, window_s: float = WINDOW_S) -> Window:
    """The window of so many seconds up to now; shorter where very many attempts ended in it."""
    now: datetime = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
    since = now - timedelta(seconds=window_s)
    # The bounds are values and no part of the statement, so that the index is read from its end.
    given = {"since": since, "now": now, "attempts": ATTEMPTS_LOOKED_AT}
    return Window(*conn.execute(text(_WINDOW), given).one())


def depths(conn: Connection) -> dict[str, int]:
    """How many jobs are in each state, from the counters; of every state, also of none."""
    found = conn.execute(
        text("SELECT state, sum(delta)::bigint FROM theon.job_counts GROUP BY state")
    )
    return {state.value: 0 for state in State} | {state: int(jobs) for state, jobs in found}


def queue_figures(conn: Connection, window: Window | None = None) -> list[QueueFigures]:
    """Depth, rate and waits of every queue that has jobs; by default over an hour."""
    given = asdict(window or look_back(conn))
    return [QueueFigures(*row) for row in conn.execute(text(_RECENT + _QUEUES), given)]


def kind_figures(conn: Connection, window: Window | None = None) -> list[KindFigures]:
    """How the attempts of each kind ended, and how long they took; by default in an hour."""
    given = asdict(window or look_back(conn))
    return [KindFigures(*row) for row in conn.execute(text(_RECENT + _KINDS), given)]


def dead_letters(conn: Connection) -> list[DeadLetters]:
    """Dead letters grouped by kind and class of error, the largest group first; of the newest."""
    return [
        DeadLetters(*row) for row in conn.execute(text(_DEAD), {"jobs": DEAD_LETTERS_LOOKED_AT})
    ]


def list_pauses(conn: Connection) -> list[Pause]:
    """Everything in the scope that rests now."""
    return [Pause(*row) for row in conn.execute(text(_PAUSES))]


def pauses_above(conn: Connection) -> list[Pause]:
    """What rests in campuses further up than the scope's own, and so in it too.

    The scope does not see those campuses: of them no more than this is told, and not by whom.
    """
    own = conn.execute(text("SELECT current_setting('theon.scope', true)")).scalar() or ""
    set_scope(conn, Scope.district())
    found = conn.execute(text(_PAUSES_ABOVE), {"campus": own}).all()
    set_scope(conn, Scope(own))
    return [
        Pause(row.subject, row.value, row.slug, row.reason, ABOVE, row.paused_at, row.until)
        for row in found
    ]


def served_queues(conn: Connection) -> frozenset[str]:
    """The queues whose jobs some worker begins; whatever the scope, for workers are shared."""
    own = conn.execute(text("SELECT current_setting('theon.scope', true)")).scalar() or ""
    set_scope(conn, Scope.district())
    found = conn.execute(text(_SERVED), {"alive_s": ALIVE_S}).scalars().all()
    set_scope(conn, Scope(own))
    return frozenset(found)


def list_workers(conn: Connection, *, since_s: float = 86_400.0) -> list[WorkerFigures]:
    """The workers that were heard of in the last `since_s` seconds; the district's scope only."""
    found = conn.execute(text(_WORKERS), {"alive_s": ALIVE_S, "since_s": since_s})
    workers = []
    for row in found:
        columns: list[Any] = list(row)
        columns[4], columns[-2] = tuple(row.queues), tuple(row.running)
        workers.append(WorkerFigures(*columns))
    return workers


def targets(conn: Connection, kinds: Sequence[KindFigures], window: Window) -> tuple[Target, ...]:
    """The five targets of C10 over a window.

    completion: of the jobs whose last attempt of the window ended them, the share that completed
        (the others are dead letters, discarded or not; cancelled jobs and those that will be
        retried count neither way).
    mean_run: mean seconds from begin to end of the attempts that completed.
    failures: of the attempts that completed, failed or were lost, the share that failed or were
        lost.
    utilisation: seconds in which attempts held slots (those that ended, from the beginning of
        the window on, and those that still run), divided by the seconds that workers offered
        (slots times the time from a worker's start to now, or to its last heartbeat if it is
        gone). Only in the district's scope.
    uptime: share of the window in which at least one worker was there, from its start to its last
        heartbeat; before the first worker ever started nothing is counted. Only in the district's
        scope.

    Args:
        conn: in the scope of who asks.
        kinds: figures of the same window.
        window: that `look_back` gave.
    """
    completed, failed = conn.execute(text(_RECENT + _ENDED), asdict(window)).one()
    utilisation = uptime = None
    if conn.execute(text("SELECT current_setting('theon.scope', true)")).scalar() == DISTRICT:
        given = {**asdict(window), "alive_s": ALIVE_S}
        lives = conn.execute(text(_LIVES), given).all()
        running_s = conn.execute(text(_RUNNING_S), given).scalar_one()
        offered_s = sum(slots * (end - start).total_seconds() for slots, start, end, _ in lives)
        busy_s = sum(kind.busy_s for kind in kinds) + running_s
        utilisation = min(1.0, busy_s / offered_s) if offered_s > 0 else None
        ever = conn.execute(text("SELECT min(started_at) FROM theon.job_workers")).scalar()
        if ever is not None:
            counted_s = (window.now - max(ever, window.since)).total_seconds()
            alive_s = _covered_s([(start, end) for _, start, end, _ in lives])
            uptime = min(1.0, alive_s / counted_s) if counted_s > 0 else None
    ran = sum(kind.completed for kind in kinds)
    tried = sum(kind.attempts for kind in kinds)
    run_s = sum((kind.run_mean_s or 0.0) * kind.completed for kind in kinds)
    return (
        Target("completion", _share(completed, completed + failed), COMPLETION, above=True),
        Target("mean_run", run_s / ran if ran else None, MEAN_RUN_S, above=False),
        Target("failures", _share(tried - ran, tried), FAILURES, above=False),
        Target("utilisation", utilisation, UTILISATION, above=False),
        Target("uptime", uptime, UPTIME, above=True),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _covered_s(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Seconds that lie in at least one of the spans, which are in the order of their begin."""
    total_s = 0.0
    until: datetime | None = None
    for start, end in spans:
        begin = start if until is None else max(start, until)
        if end > begin:
            total_s += (end - begin).total_seconds()
            until = end
    return total_s
