"""What intake does in the background, and when."""

from dataclasses import dataclass

from sqlalchemy import text

from theon.jobs.kinds import JobContext, job
from theon.jobs.schedules import Schedule
from theon.lake.compaction import SETTLED_S, Compacted, clear_log, compact, sweep
from theon.lake.table import EventLake
from theon.store.scope import Scope


@dataclass(frozen=True)
class CompactLake:
    """Arguments of `lake.compact`: none but the job's campus."""


@job(
    "lake.compact",
    queue="system",
    category="system",
    timeout_s=1800,
    memory_mb=1536,
)
def compact_lake(ctx: JobContext, args: CompactLake) -> Compacted:
    """Merge the campus's small files of the lake, and delete those merged a day ago."""
    return run_compaction(ctx, args)


def run_compaction(ctx: JobContext, _args: CompactLake) -> Compacted:
    """Merge what has been in the lake for hours, and delete what a compaction left a day ago.

    With it go commits that no refresh has still to look at.
    """
    lake = EventLake(ctx.settings)
    done = compact(lake, ctx.settings, ctx.campus, older_than_s=SETTLED_S)
    deleted = sweep(lake, ctx.campus)
    cleared = clear_log(lake, _needed(ctx))
    ctx.log("compacted", merged=done.merged, written=done.written, deleted=deleted, cleared=cleared)
    return done


def _needed(ctx: JobContext) -> int:
    """The oldest version of the lake that a campus's metrics rest on."""
    with ctx.store.transaction(Scope.district()) as conn:
        # A campus without activity has no metrics, and its first refresh reads everything.
        oldest = conn.execute(
            text(
                "SELECT coalesce(min(lake_version), 0) FROM theon.refresh_state"
                " WHERE rules_hash IS NOT NULL"
            )
        )
        return int(oldest.scalar_one())


JOBS = (compact_lake,)

SCHEDULES = (
    Schedule(
        name="lake.hourly",
        kind="lake.compact",
        cron="40 * * * *",
        per_campus=True,
        priority="background",
        summary="Small files of accepted events become few large ones.",
    ),
)
