"""What the metrics do in the background, and when."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from theon.errors import ConflictError
from theon.jobs.kinds import Backoff, JobContext, job
from theon.jobs.schedules import Schedule
from theon.lake.table import EventLake
from theon.metrics.refresh import RefreshSummary, refresh
from theon.metrics.verify import verify
from theon.observability.progress import Step
from theon.roster.campuses import list_campuses
from theon.store.scope import Scope


@dataclass(frozen=True)
class RefreshMetrics:
    """Arguments of `metrics.refresh`.

    Attributes:
        rebuild: all hours, not only those that changed.
        below: the campuses below the job's own as well. A schedule has a run for each campus,
            so it needs its own only.
        verify: compute everything again another way afterwards, and fail where it differs.
    """

    rebuild: bool = False
    below: bool = False
    verify: bool = False


@job(
    "metrics.refresh",
    queue="metrics",
    category="analytics",
    max_attempts=5,
    timeout_s=3600,
    # The engine holds up to 700 MB; the process and its libraries take the rest.
    memory_mb=1536,
    backoff=Backoff(first_s=10),
)
def refresh_metrics(ctx: JobContext, args: RefreshMetrics) -> RefreshSummary:
    """Bring the campus's metrics up to what the lake holds; counts what it did."""
    return run_refresh(ctx, args)


def run_refresh(ctx: JobContext, args: RefreshMetrics) -> RefreshSummary:
    """Refresh the campus of the job, or all below it too, and verify what was refreshed if asked.

    Raises:
        ConflictError: the published numbers differ from what the events say.
    """
    lake = EventLake(ctx.settings)
    progress = JobProgress(ctx)
    summary = RefreshSummary()
    campuses = [ctx.campus]
    if args.below:
        campuses = [c.slug for c in list_campuses(ctx.store, Scope(ctx.campus))]
    for campus in campuses:
        found = refresh(
            ctx.store, lake, ctx.settings, campus=campus, rebuild=args.rebuild, progress=progress
        )
        _add(summary, found)
        if args.verify:
            _verify(ctx, lake, campus, progress)
    ctx.log(
        "refreshed",
        events=summary.events,
        hours=summary.hours,
        rows_written=sum(summary.rows_written.values()),
    )
    return summary


def _add(total: RefreshSummary, found: RefreshSummary) -> None:
    total.events += found.events
    total.hours += found.hours
    total.days += found.days
    total.cells += found.cells
    total.campuses += found.campuses
    total.elapsed_s += found.elapsed_s
    for metric, rows in found.rows_written.items():
        total.rows_written[metric] = total.rows_written.get(metric, 0) + rows


def _verify(ctx: JobContext, lake: EventLake, campus: str, progress: "JobProgress") -> None:
    report = verify(ctx.store, lake, ctx.settings, campus=campus, progress=progress)
    if not report.ok:
        raise ConflictError(
            f"{report.rows_different:,} of {report.rows_compared:,} rows differ, such as: "
            f"{report.differences[0].sentence()}",
            where=f"campus {campus}",
            next_step="Run theon metrics verify to see them, theon metrics refresh --rebuild "
            "to mend them.",
        )


class JobProgress:
    """Reports the steps of a long computation as the progress of the job that runs it."""

    def __init__(self, ctx: JobContext) -> None:
        self._ctx = ctx

    @contextmanager
    def step(self, operation: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        """See `ProgressReporter.step`."""
        del unit
        yield _JobStep(self._ctx, operation, total)


class _JobStep:
    def __init__(self, ctx: JobContext, operation: str, total: int | None) -> None:
        self._ctx, self._operation, self._total, self._done = ctx, operation, total, 0
        ctx.progress(0, total, operation)

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        self._ctx.progress(self._done, self._total, self._operation)

    def total(self, total: int) -> None:
        self._total = total


JOBS = (refresh_metrics,)

SCHEDULES = (
    Schedule(
        name="metrics.hourly",
        kind="metrics.refresh",
        cron="15 * * * *",
        per_campus=True,
        summary="What the hour's events change, in every metric (D1).",
    ),
    Schedule(
        name="metrics.daily",
        kind="metrics.refresh",
        cron="0 2 * * *",
        per_campus=True,
        priority="low",
        summary="The day that ended, for learners, courses and the campus (A1, D5).",
    ),
    Schedule(
        name="metrics.monthly",
        kind="metrics.refresh",
        arguments={"verify": True},
        cron="30 2 1 * *",
        per_campus=True,
        priority="background",
        summary="The month that ended; everything is computed again another way and compared.",
    ),
)
