"""What attempts did when: by slice of a window, by worker and by campus, and what they used.

Everything is of the scope of the caller's transaction. A window comes from `figures.look_back`,
so that what a page shows side by side is of the same time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, text

from theon.jobs.figures import Window, WorkerFigures


@dataclass(frozen=True)
class Slice:
    """A part of a window, and how the attempts that ended in it ended."""

    start: datetime
    end: datetime
    completed: int
    failed: int
    lost: int

    @property
    def ended(self) -> int:
        """All of them."""
        return self.completed + self.failed + self.lost


@dataclass(frozen=True)
class CampusFigures:
    """A campus's own jobs, without those of campuses below it.

    Attributes:
        waiting, running, dead_letters: jobs now.
        completed, failed: attempts that ended so in the window; lost ones count as failed.
        run_mean_s: of completed attempts; None without any.
        busy_s: seconds that attempts which ended held a slot, in the window.
    """

    slug: str
    name: str
    waiting: int
    running: int
    dead_letters: int
    completed: int
    failed: int
    run_mean_s: float | None
    busy_s: float


_SLICES = """
SELECT least(:count - 1, floor(extract(epoch FROM ended_at - :since) / :step_s))::int,
    count(*) FILTER (WHERE outcome = 'completed'), count(*) FILTER (WHERE outcome = 'failed'),
    count(*) FILTER (WHERE outcome = 'lost')
FROM theon.job_attempts WHERE ended_at > :since AND ended_at <= :now GROUP BY 1"""

_BUSY = """
SELECT worker, sum(busy_s)::float8 FROM (
    SELECT worker,
        greatest(0, extract(epoch FROM ended_at - greatest(started_at, :since))) AS busy_s
    FROM theon.job_attempts WHERE ended_at > :since AND ended_at <= :now
    UNION ALL
    SELECT worker, extract(epoch FROM :now - greatest(started_at, :since))
    FROM theon.jobs WHERE state = 'running' AND started_at < :now) AS held
WHERE worker IS NOT NULL GROUP BY worker"""

_RUNNING = """
SELECT worker, id FROM theon.jobs WHERE state = 'running' AND worker IS NOT NULL ORDER BY id"""

_CPU = """
SELECT kind, sum(cpu_s) FROM theon.job_attempts
WHERE ended_at > :since AND ended_at <= :now AND cpu_s IS NOT NULL GROUP BY kind"""

_CAMPUSES = """
SELECT c.slug, c.name, coalesce(d.waiting, 0), coalesce(d.running, 0), coalesce(d.failed, 0),
    coalesce(a.completed, 0), coalesce(a.failed, 0), a.run_mean_s, coalesce(a.busy_s, 0)
FROM theon.campuses AS c LEFT JOIN (
    SELECT campus_id, sum(delta) FILTER (WHERE state = 'queued')::bigint AS waiting,
        sum(delta) FILTER (WHERE state = 'running')::bigint AS running,
        sum(delta) FILTER (WHERE state = 'failed')::bigint AS failed
    FROM theon.job_counts GROUP BY campus_id) AS d ON d.campus_id = c.id
LEFT JOIN (
    SELECT campus_id, count(*) FILTER (WHERE outcome = 'completed') AS completed,
        count(*) FILTER (WHERE outcome IN ('failed', 'lost')) AS failed,
        avg(extract(epoch FROM ended_at - started_at)) FILTER (
            WHERE outcome = 'completed')::float8 AS run_mean_s,
        sum(greatest(0, extract(epoch FROM ended_at - greatest(started_at, :since))))::float8
            AS busy_s
    FROM theon.job_attempts WHERE ended_at > :since AND ended_at <= :now
    GROUP BY campus_id) AS a ON a.campus_id = c.id
ORDER BY c.parent_id IS NOT NULL, c.slug"""


def slices(conn: Connection, window: Window, count: int) -> tuple[Slice, ...]:
    """The window in `count` equal parts, the earliest first."""
    step = (window.now - window.since) / count
    given = {**asdict(window), "count": count, "step_s": max(step.total_seconds(), 1e-6)}
    found = {n: ended for n, *ended in conn.execute(text(_SLICES), given)}
    return tuple(
        Slice(window.since + n * step, window.since + (n + 1) * step, *found.get(n, (0, 0, 0)))
        for n in range(count)
    )


def worker_shares(
    conn: Connection, window: Window, workers: Sequence[WorkerFigures]
) -> Mapping[str, float]:
    """How busy each worker was: the share, 0 to 1, of the time of its slots that attempts held.

    Its time is that of the window in which it was there; a worker that had none is left out.
    """
    busy_s = {name: float(seconds) for name, seconds in conn.execute(text(_BUSY), asdict(window))}
    shares = {}
    for worker in workers:
        gone = worker.state in ("stopped", "lost")
        end = window.now - timedelta(seconds=worker.heartbeat_age_s if gone else 0.0)
        offered_s = (end - max(worker.started_at, window.since)).total_seconds() * worker.slots
        if offered_s > 0:
            shares[worker.id] = min(1.0, busy_s.get(worker.id, 0.0) / offered_s)
    return shares


def running_by_worker(conn: Connection) -> Mapping[str, tuple[int, ...]]:
    """The ids of the jobs that each worker runs, as the ledger knows it."""
    found: dict[str, tuple[int, ...]] = {}
    for worker, job_id in conn.execute(text(_RUNNING)):
        found[worker] = (*found.get(worker, ()), job_id)
    return found


def cpu_by_kind(conn: Connection, window: Window) -> Mapping[str, float]:
    """Seconds of processor time that the attempts of each kind took; those that told it."""
    return {kind: float(seconds) for kind, seconds in conn.execute(text(_CPU), asdict(window))}


def campus_figures(conn: Connection, window: Window) -> list[CampusFigures]:
    """Every campus of the scope, the district first."""
    return [CampusFigures(*row) for row in conn.execute(text(_CAMPUSES), asdict(window))]
