"""Compares a Moodle database with the lake, log id by log id, and reads what is missing again.

Both sides are added up per `WIDTH_IDS` ids. Only where the sums differ are the ids themselves
looked at. What is missing is read by the same road as everything else, so that nothing counts
twice, and a run that was cut off goes on where it stopped: at what is still missing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
from sqlalchemy import text

from theon.intake.gap_search import RECONCILE, as_gap, note_reconciled, own_gaps
from theon.intake.gaps import KeptGap, end_gaps, notice
from theon.intake.moodle_database import Site, find_site
from theon.intake.moodle_ids import MOST_RUNS, Run, log_ids
from theon.intake.moodle_sources import MoodleSource, open_source
from theon.intake.pipeline import DATABASE, ingest
from theon.lake.table import EventLake
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.roster.campuses import Campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

WIDTH_IDS = 10_000
SUMMED_IDS = 2_000_000  # in one statement of the source
# Missing ids that are nearer are read together with what lies between them.
NEAR_IDS = 1_000

_RUNS = pa.schema({"first": pa.int64(), "last": pa.int64(), "missing": pa.int64()})


@dataclass(frozen=True)
class Compared:
    """A Moodle log beside the lake.

    Attributes:
        upto: the log id up to which was compared: what has been read before, by whichever road.
        rows: of the source up to there.
        missing: of these, rows that the lake lacks.
        surplus: log rows in the lake that the source has no more, as after Moodle's own clean-up.
        runs: the missing rows, side by side in the source; by id.
        ahead: whether the source has rows after `upto`, which `theon ingest` brings.
    """

    upto: int
    rows: int
    missing: int
    surplus: int
    runs: tuple[Run, ...]
    ahead: bool


@dataclass(frozen=True)
class Reconciled:
    """What a comparison found, and a repair did.

    Attributes:
        found: before the repair.
        brought: missing rows that are in the lake now.
        unreadable: missing rows that were read and rejected; `theon ingest` lists them.
        explained: gaps that were open, and of which the source has nothing either.
    """

    found: Compared
    brought: int = 0
    unreadable: int = 0
    explained: int = 0


def reconcile(
    store: Store,
    lake: EventLake,
    settings: Settings,
    *,
    location: str,
    campus: str,
    prefix: str | None = None,
    repair: bool = False,
    progress: ProgressReporter | None = None,
) -> Reconciled:
    """Compare a Moodle database with the lake; with `repair`, bring what is missing.

    Gaps on record are closed where the source has nothing either, and opened where it has.

    Args:
        store: roster, cursors, gaps.
        lake: the events.
        settings: engine, data folder.
        location: URL of the database; a user that may only read is enough.
        campus: slug of the campus that it was read into.
        prefix: what the table names begin with; found out unless given.
        repair: whether to read what is missing.
        progress: gets the steps.

    Raises:
        InputError: no log table, another site than before, or no right to read.
        UnavailableError: the database went away; what was brought stays.
        ConflictError: another process is reading the same source into this campus.
    """
    reporter = progress or SilentProgress()
    owner = get_campus(store, campus)
    with open_source(location) as source:
        found = _compare(source, store, lake, settings, owner, prefix, reporter)
    explained = _record(store, owner, found)
    if not repair or not found.runs:
        return Reconciled(found, explained=explained)
    ingest(
        store,
        lake,
        settings,
        location=location,
        format=DATABASE,
        campus=campus,
        prefix=prefix,
        progress=reporter,
        only=ranges_of(found.runs),
    )
    with open_source(location) as source:
        after = _compare(source, store, lake, settings, owner, prefix, reporter)
    _record_repair(store, owner, found, after)
    return Reconciled(found, found.missing - after.missing, after.missing, explained)


def ranges_of(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """The runs as ranges to read, first and last inclusive; near ones together."""
    ranges: list[tuple[int, int]] = []
    for run in runs:
        if ranges and run.first - ranges[-1][1] <= NEAR_IDS:
            ranges[-1] = (ranges[-1][0], run.last)
        else:
            ranges.append((run.first, run.last))
    return ranges


# -- comparing -----------------------------------------------------------------------------


def _compare(
    source: MoodleSource,
    store: Store,
    lake: EventLake,
    settings: Settings,
    campus: Campus,
    prefix: str | None,
    progress: ProgressReporter,
) -> Compared:
    site = find_site(source, store, campus, prefix)
    with log_ids(lake, settings, campus.slug) as engine:
        [(highest,)] = engine.sql("SELECT coalesce(max(id), 0) FROM ids").fetchall()
        upto = max(site.last_id, highest)
        own = {
            bucket: sums for bucket, *sums in engine.execute(_SUMS, {"width": WIDTH_IDS}).fetchall()
        }
        rows, differing = 0, list[int]()
        with progress.step("Comparing ids with the source", upto, "ids") as step:
            for after in range(-1, upto, SUMMED_IDS):
                end = min(after + SUMMED_IDS, upto)
                for bucket, *sums in source.sums(site.log, after, end, WIDTH_IDS):
                    rows += sums[0]
                    if sums != own.get(bucket):
                        differing.append(bucket)
                step.advance(end - after)
        known = sum(sums[0] for sums in own.values())
        runs = _missing(engine, source, site, sorted(set(differing)), upto, progress)
        missing = sum(run.missing for run in runs)
        runs = _with_times(engine, runs)
    ahead = source.chunk_end(site.log, upto, 1) is not None
    return Compared(upto, rows, missing, known - (rows - missing), tuple(runs), ahead)


_SUMS = """
SELECT id // $width, count(*), sum(id % $width)::BIGINT, sum((id % $width) * (id % $width))::BIGINT
FROM ids GROUP BY 1"""


def _missing(
    engine: duckdb.DuckDBPyConnection,
    source: MoodleSource,
    site: Site,
    buckets: Sequence[int],
    upto: int,
    progress: ProgressReporter,
) -> list[Run]:
    """The ids of the source that the lake lacks, side by side in the source."""
    engine.execute(
        "CREATE TEMP TABLE own AS SELECT id FROM ids WHERE id // $width IN"
        " (SELECT unnest($buckets)) ORDER BY id",
        {"width": WIDTH_IDS, "buckets": list(buckets)},
    )
    found: list[Run] = []
    open_end: int | None = None  # the part at whose end a run may go on
    with progress.step("Looking at ids one by one", len(buckets), "parts") as step:
        for bucket in buckets:
            after = max(bucket * WIDTH_IDS - 1, 0)
            end = min((bucket + 1) * WIDTH_IDS - 1, upto)
            ids = pa.table({"id": pa.array(source.ids(site.log, after, end), pa.int64())})
            engine.register("theirs", ids)
            for first, last, missing, begins, ends in engine.execute(_ISLANDS).fetchall():
                run = Run(first, last, missing)
                if begins and open_end == bucket - 1:
                    before = found.pop()
                    run = Run(before.first, last, before.missing + missing)
                found.append(run)
                open_end = bucket if ends else None
            engine.unregister("theirs")
            step.advance()
    return found


# Neighbours in the source have numbers that follow each other, so the difference between a row's
# number among all and its number among the missing is the same throughout a run.
_ISLANDS = """
SELECT min(id), max(id), count(*), min(nth) = 1, max(nth) = any_value(rows_)
FROM (SELECT id, nth, rows_, nth - row_number() OVER (ORDER BY id) AS run_
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS nth, count(*) OVER () AS rows_
        FROM theirs) t
    WHERE NOT EXISTS (SELECT 1 FROM own WHERE own.id = t.id))
GROUP BY run_ ORDER BY 1"""


def _with_times(engine: duckdb.DuckDBPyConnection, runs: Sequence[Run]) -> list[Run]:
    """The runs with the times of the log rows around them."""
    rows = [{"first": run.first, "last": run.last, "missing": run.missing} for run in runs]
    engine.register("runs", pa.Table.from_pylist(rows, _RUNS))
    found = engine.sql(
        "SELECT r.first, r.last, r.missing, b.occurred_at, a.occurred_at FROM runs r"
        " ASOF LEFT JOIN ids b ON r.first > b.id ASOF LEFT JOIN ids a ON r.last < a.id"
        " ORDER BY r.first"
    ).fetchall()
    return [Run(*row) for row in found]


# -- gaps on record ------------------------------------------------------------------------


def _record(store: Store, campus: Campus, found: Compared) -> int:
    """Close the gaps that the source has too, and open those that it has not."""
    with store.transaction(Scope(campus.slug)) as conn:
        gaps = [gap for gap in own_gaps(conn, campus) if gap.state == "open"]
        compared = [gap for gap in gaps if (gap.last_id or 0) <= found.upto]
        explained = [gap.id for gap in compared if not _rows_in(gap, found)]
        end_gaps(conn, explained, "accepted", RECONCILE, "The Moodle site has no such rows either.")
        for gap in compared:
            rows = _rows_in(gap, found)
            if rows:
                conn.execute(
                    text("UPDATE theon.delivery_gaps SET explanation = :words WHERE id = :id"),
                    {"id": gap.id, "words": _words(rows)},
                )
        longest = sorted(found.runs, key=lambda run: -run.missing)[:MOST_RUNS]
        for run in longest:
            if not any(_holds(gap, run) for gap in gaps):
                notice(conn, campus.id, as_gap(run, _words(run.missing)))
        if not found.missing:
            note_reconciled(conn, campus, found.upto)
    return len(explained)


def _record_repair(store: Store, campus: Campus, before: Compared, after: Compared) -> None:
    """Close the gaps of which nothing is missing any more."""
    with store.transaction(Scope(campus.slug)) as conn:
        gaps = [gap for gap in own_gaps(conn, campus) if gap.state == "open"]
        done = [gap.id for gap in gaps if _rows_in(gap, before) and not _rows_in(gap, after)]
        end_gaps(
            conn, done, "repaired", RECONCILE, "What the Moodle site has of it was read again."
        )
        if not after.missing:
            note_reconciled(conn, campus, after.upto)
        for gap in gaps:
            rows = _rows_in(gap, after)
            if rows:
                words = f"{_words(rows)} They were read again and rejected."
                conn.execute(
                    text("UPDATE theon.delivery_gaps SET explanation = :words WHERE id = :id"),
                    {"id": gap.id, "words": words},
                )


def _rows_in(gap: KeptGap, found: Compared) -> int:
    """How many missing rows of the source lie in a gap, or in runs that reach into it."""
    first, last = gap.first_id or 0, gap.last_id or 0
    return sum(run.missing for run in found.runs if run.first <= last and run.last >= first)


def _holds(gap: KeptGap, run: Run) -> bool:
    return (gap.first_id or 0) <= run.first and run.last <= (gap.last_id or 0)


def _words(rows: int) -> str:
    what = "1 log row" if rows == 1 else f"{rows:,} log rows"
    return f"The Moodle site has {what} that are missing here; theon intake reconcile --repair."
