"""The job system's own background work: a look at its health, and retention."""

import shutil
from dataclasses import dataclass

from sqlalchemy import Connection, text

from theon.jobs.errors import TransientError
from theon.jobs.kinds import JobContext, job
from theon.jobs.schedules import Schedule
from theon.store.scope import Scope

LEAST_FREE_BYTES = 1_000_000_000
# Old snapshots keep dead rows alive, and every claim has to step over them.
OLDEST_SNAPSHOT_S = 600
DEAD_ROWS = 1_000_000
ROWS_PER_ROUND = 5_000


@dataclass(frozen=True)
class HealthCheck:
    """Arguments of `system.health`: none."""


@dataclass(frozen=True)
class HealthReport:
    """What a health check saw.

    Attributes:
        free_bytes: on the disk that holds THEON_HOME.
        workers: that are alive.
        dead_letters: jobs that failed for good and were neither retried nor discarded.
        oldest_queued_s: seconds the job that waits longest has been ready.
        oldest_snapshot_s: age of the oldest snapshot in the database; of other users' sessions
            only where the application's role may see them (`pg_read_all_stats`).
        dead_rows: dead rows of the table of jobs, as PostgreSQL estimates them.
        warnings: what a person should look at, in words.
    """

    free_bytes: int
    workers: int
    dead_letters: int
    oldest_queued_s: float
    oldest_snapshot_s: float
    dead_rows: int
    warnings: tuple[str, ...]


@job("system.health", queue="system", category="system", timeout_s=60, memory_mb=512)
def check_health(ctx: JobContext, args: HealthCheck) -> HealthReport:
    """Look at disk, workers, dead letters and the database, and say what needs a person."""
    del args
    return examine(ctx)


def examine(ctx: JobContext) -> HealthReport:
    """See `check_health`.

    Raises:
        TransientError: the disk is nearly full: what runs next would fail half way.
    """
    with ctx.store.transaction(Scope.district()) as conn:
        workers, dead_letters, oldest_queued_s = conn.execute(text(_JOBS)).one()
        oldest_snapshot_s, dead_rows = conn.execute(text(_DATABASE)).one()
    free_bytes = shutil.disk_usage(ctx.settings.home_dir).free
    if free_bytes < LEAST_FREE_BYTES:
        raise TransientError(
            f"only {free_bytes / 1e6:,.0f} MB are free",
            where=str(ctx.settings.home_dir),
            next_step="Free some space on this disk, or move THEON_HOME to a larger one.",
        )
    found = (
        (dead_letters > 0, f"{dead_letters:,} dead letters: theon jobs list --state failed"),
        (
            oldest_snapshot_s > OLDEST_SNAPSHOT_S,
            f"a transaction has been open for {oldest_snapshot_s:,.0f} s and keeps dead rows: "
            "look for it in pg_stat_activity",
        ),
        (dead_rows > DEAD_ROWS, f"{dead_rows:,} dead rows in theon.jobs: autovacuum lags behind"),
    )
    warnings = tuple(sentence for holds, sentence in found if holds)
    for sentence in warnings:
        ctx.log(sentence)
    return HealthReport(
        free_bytes,
        workers,
        dead_letters,
        float(oldest_queued_s),
        float(oldest_snapshot_s),
        dead_rows,
        warnings,
    )


_JOBS = """
SELECT (SELECT count(*) FROM theon.job_workers
        WHERE state IN ('running', 'draining')
            AND heartbeat_at > clock_timestamp() - interval '15 seconds'),
    coalesce((SELECT sum(delta) FROM theon.job_counts WHERE state = 'failed'), 0)::bigint,
    coalesce((SELECT extract(epoch FROM clock_timestamp() - min(ready_at)) FROM theon.jobs
        WHERE state = 'queued'), 0)"""

_DATABASE = """
SELECT coalesce(extract(epoch FROM max(clock_timestamp() - xact_start)
        FILTER (WHERE backend_xmin IS NOT NULL)), 0),
    (SELECT coalesce(max(n_dead_tup), 0) FROM pg_stat_user_tables
        WHERE schemaname = 'theon' AND relname = 'jobs')
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"""


@dataclass(frozen=True)
class RetainJobs:
    """Arguments of `system.retention`.

    Attributes:
        jobs_days: completed and cancelled jobs are kept this long, with history and attempts.
        dead_letters_days: dead letters are kept this long.
        audit_days: audit lines are kept this long.
    """

    jobs_days: int = 30
    dead_letters_days: int = 180
    audit_days: int = 365


@dataclass(frozen=True)
class Cleaned:
    """How many rows a retention removed."""

    jobs: int = 0
    dead_letters: int = 0
    audit_lines: int = 0
    workers: int = 0


@job("system.retention", queue="system", category="system", timeout_s=1800, memory_mb=512)
def retain_jobs(ctx: JobContext, args: RetainJobs) -> Cleaned:
    """Remove jobs that ended long ago, with their history, and old audit lines."""
    return clean(ctx, args)


def clean(ctx: JobContext, args: RetainJobs) -> Cleaned:
    """See `retain_jobs`; a few thousand rows per transaction, so that nobody waits for it."""
    cleaned = Cleaned(
        jobs=_remove_jobs(ctx, "state IN ('completed', 'cancelled')", args.jobs_days),
        dead_letters=_remove_jobs(ctx, "state = 'failed'", args.dead_letters_days),
        audit_lines=_in_rounds(
            ctx,
            "DELETE FROM theon.job_audit WHERE id IN (SELECT id FROM theon.job_audit"
            " WHERE at < clock_timestamp() - make_interval(days => :days) ORDER BY at LIMIT :rows)",
            args.audit_days,
            "audit lines",
        ),
        workers=_in_rounds(
            ctx,
            "DELETE FROM theon.job_workers WHERE id IN (SELECT id FROM theon.job_workers"
            " WHERE heartbeat_at < clock_timestamp() - make_interval(days => :days) LIMIT :rows)",
            args.jobs_days,
            "workers",
        ),
    )
    ctx.log(
        "cleaned",
        jobs=cleaned.jobs,
        dead_letters=cleaned.dead_letters,
        audit_lines=cleaned.audit_lines,
    )
    return cleaned


def _remove_jobs(ctx: JobContext, condition: str, days: int) -> int:
    # A job that another one still waits for stays, whatever its age.
    statement = (
        f"DELETE FROM theon.jobs WHERE id IN (SELECT j.id FROM theon.jobs AS j WHERE {condition}"
        " AND j.ended_at < clock_timestamp() - make_interval(days => :days) AND NOT EXISTS ("
        "  SELECT FROM theon.job_dependencies AS d JOIN theon.jobs AS w ON w.id = d.job_id"
        "  WHERE d.needs_id = j.id AND w.state NOT IN ('completed', 'failed', 'cancelled'))"
        " ORDER BY j.id LIMIT :rows)"
    )
    return _in_rounds(ctx, statement, days, "jobs")


def _in_rounds(ctx: JobContext, statement: str, days: int, what: str) -> int:
    total = 0
    while True:
        with ctx.store.transaction(Scope(ctx.campus)) as conn:
            removed = _remove(conn, statement, days)
        total += removed
        ctx.progress(total, operation=f"Removing {what}")
        if removed < ROWS_PER_ROUND:
            return total


def _remove(conn: Connection, statement: str, days: int) -> int:
    return conn.execute(text(statement), {"days": days, "rows": ROWS_PER_ROUND}).rowcount


JOBS = (check_health, retain_jobs)

SCHEDULES = (
    Schedule(
        name="system.health",
        kind="system.health",
        cron="0 * * * *",
        timezone="UTC",
        catch_up="none",
        summary="Disk, workers, dead letters, the database (A6).",
    ),
    Schedule(
        name="system.retention",
        kind="system.retention",
        cron="30 3 * * 0",
        per_campus=True,
        priority="background",
        summary="Jobs that ended long ago and old audit lines (A6).",
    ),
)
