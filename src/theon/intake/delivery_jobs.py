"""What intake does in the background: look for gaps, and remove what is old."""

from dataclasses import dataclass

from sqlalchemy import text

from theon.intake.event_ids import move_old
from theon.intake.gap_search import Search, look_for_gaps
from theon.jobs.kinds import JobContext, job
from theon.jobs.schedules import Schedule
from theon.lake.lake_ids import LakeIds
from theon.lake.table import EventLake
from theon.store.scope import Scope

ROWS_PER_ROUND = 20_000
_ENDED = "state <> 'waiting'"


@dataclass(frozen=True)
class LookForGaps:
    """Arguments of `intake.look_for_gaps`: none."""


@job("intake.look_for_gaps", queue="system", category="system", timeout_s=1800, memory_mb=1536)
def look(ctx: JobContext, args: LookForGaps) -> Search:
    """Look for missing ids, silent sources and clocks that are off; warn of what is new."""
    del args
    return run_look(ctx)


def run_look(ctx: JobContext) -> Search:
    """See `look`."""
    found = look_for_gaps(ctx.store, EventLake(ctx.settings), ctx.settings, Scope(ctx.campus))
    ctx.log("looked for gaps", noticed=found.noticed, ended=found.ended, open=found.open)
    return found


@dataclass(frozen=True)
class RetainDelivery:
    """Arguments of `intake.retention`.

    Attributes:
        ledger_days: figures per source and hour are kept this long, and gaps that have ended.
        letters_days: dead letters that were replayed or discarded are kept this long, with what
            was done to them. Those that wait are kept.
    """

    ledger_days: int = 400
    letters_days: int = 90


@dataclass(frozen=True)
class Removed:
    """How many rows a retention removed; event ids moved from PostgreSQL to the lake's."""

    event_ids: int
    hours: int
    gaps: int
    letters: int


@job("intake.retention", queue="system", category="system", timeout_s=3600, memory_mb=512)
def retain(ctx: JobContext, args: RetainDelivery) -> Removed:
    """Move old event ids beside the lake, remove old rows of the ledger and ended dead letters."""
    return run_retention(ctx, args)


def run_retention(ctx: JobContext, args: RetainDelivery) -> Removed:
    """See `retain`; some thousand rows per transaction, so that nobody waits for it."""
    removed = Removed(
        # Landings rely on ids being there for just so long (`theon.intake.landing`).
        event_ids=_move_ids(ctx),
        hours=_in_rounds(ctx, "delivery_counts", "hour", args.ledger_days),
        gaps=_in_rounds(ctx, "delivery_gaps", "ended_at", args.ledger_days, "state = 'repaired'"),
        letters=_in_rounds(
            ctx, "dead_letters", "ended_at", args.letters_days, "state <> 'waiting'"
        ),
    )
    ctx.log("removed", **vars(removed))
    return removed


def _move_ids(ctx: JobContext) -> int:
    total, lake_ids = 0, LakeIds(ctx.settings)
    while True:
        with ctx.transaction() as conn:
            done = move_old(conn, lake_ids, ROWS_PER_ROUND)
        total += done
        ctx.progress(total, operation="moving old ids of events")
        if done < ROWS_PER_ROUND:
            return total


def _in_rounds(ctx: JobContext, table: str, age: str, days: int, condition: str = "true") -> int:
    total = 0
    statement = text(
        f"DELETE FROM theon.{table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM theon.{table}"
        f" WHERE {age} < now() - make_interval(days => :days) AND {condition} LIMIT :rows))"
    )
    while True:
        with ctx.transaction() as conn:
            done = conn.execute(statement, {"days": days, "rows": ROWS_PER_ROUND}).rowcount
        total += done
        ctx.progress(total, operation=f"removing old rows of {table}")
        if done < ROWS_PER_ROUND:
            return total


JOBS = (look, retain)

SCHEDULES = (
    Schedule(
        name="intake.gaps",
        kind="intake.look_for_gaps",
        cron="5 * * * *",
        summary="Missing ids, sources that fell silent, clocks that are off (X2).",
    ),
    Schedule(
        name="intake.retention",
        kind="intake.retention",
        cron="40 3 * * *",
        priority="background",
        summary="Old event ids, old figures of delivery, dead letters that have ended.",
    ),
)
