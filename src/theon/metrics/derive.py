"""Build the derived datasets of one campus: cells for dirty hours, days for reopened days."""

import math
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import duckdb
import pyarrow.parquet as pq

from theon.events.activity import ActivityRules
from theon.lake.engine import sql_text
from theon.lake.resolved import events_sql
from theon.lake.table import LakeFile
from theon.metrics import kernel
from theon.metrics.manifest import Manifest, period_counts, register_integers
from theon.observability.progress import ProgressReporter
from theon.roster.campuses import Campus
from theon.settings import SLOT_S

# Bounds the memory of one statement, and so of a rebuild, however long the history is.
CHUNK_EVENTS = 2_000_000
CHUNK_CELLS = 700_000
# Up to about this many cells' events are put in memory before they are looked at: about 200 MB.
HELD_CELLS = 100_000
# A rest of up to this part of a chunk is spread over the others.
SMALL_REST = 0.2
# Where more of the row groups than this overlap, they say too little about single hours.
MAX_OVERLAP_EVENTS = CHUNK_EVENTS // 10
MAX_SPAN_HOURS = 200_000
# In order of the period, in small row groups: who wants a few periods skips the rest. Version 2's
# encodings make these columns as small with snappy as zstd made version 1's, in less time.
FILE_FORMAT = "FORMAT parquet, PARQUET_VERSION v2, COMPRESSION snappy, ROW_GROUP_SIZE 30720"
# No clock is moved by more; days are cut by the engine's calendar, this only bounds what is read.
MARGIN_HOURS = 2
SLOTS_PER_HOUR = kernel.HOUR_S // SLOT_S
DAY_S = 86_400


@dataclass
class Workbench:
    """What the steps of one campus's refresh share.

    Attributes:
        engine: DuckDB connection; temp tables `changed_cells` and `changed_days` live here.
        home: THEON_HOME.
        campus: whose data.
        rules: which events count.
        session_limit_s: seconds.
        progress: where progress goes.
        files: the lake's files of the campus, at the version being processed.
    """

    engine: duckdb.DuckDBPyConnection
    home: Path
    campus: Campus
    rules: ActivityRules
    session_limit_s: int
    progress: ProgressReporter
    files: list[LakeFile] = field(default_factory=list)

    def new_path(self, dataset: str) -> tuple[str, Path]:
        """A fresh file of a dataset: relative to home, and absolute."""
        relative = f"derived/{self.campus.slug}/{dataset}/{uuid4().hex}.parquet"
        path = self.home / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return relative, path


def spread_over_hours(files: list[LakeFile]) -> dict[int, int] | None:
    """Hour to about the number of its events, from what the files say of their row groups.

    Good enough to cut a whole history into chunks, at no reading: a row group's events are
    taken to lie evenly between its first and its last. A chunk is wrong by no more than the
    row groups that reach over its ends, so by no more than twice `MAX_OVERLAP_EVENTS`.

    Returns:
        Every hour in which an event may lie; the numbers add up to all events. None where the
        row groups are not in the order of time, or do not say.
    """
    hours: dict[int, int] = {}
    overlap: dict[int, int] = {}
    span = 0
    for file in files:
        metadata = pq.read_metadata(file.path)
        column = metadata.schema.names.index("occurred_at")
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            found = group.column(column).statistics
            if found is None or found.min is None or found.max is None:
                return None
            first = math.floor(found.min.timestamp() / kernel.HOUR_S)
            width = math.floor(found.max.timestamp() / kernel.HOUR_S) - first + 1
            span += width
            if span > MAX_SPAN_HOURS:
                return None
            rows = group.num_rows
            for n in range(width):
                hour = first + n
                hours[hour] = hours.get(hour, 0) + rows * (n + 1) // width - rows * n // width
                overlap[hour] = overlap.get(hour, 0) + rows
    return hours if max(overlap.values(), default=0) <= MAX_OVERLAP_EVENTS else None


def build_cells(
    bench: Workbench, cells: Manifest, hours: dict[int, int], *, complete: bool = False
) -> None:
    """Compute the cells of `hours` again and put them in `cells`.

    Args:
        bench: the shared state.
        cells: the manifest to change.
        hours: hour to the number of its events, roughly; it bounds the size of one statement.
        complete: no other hour has an event, so those between need not be left out.
    """
    with bench.progress.step(
        f"Computing cells ({bench.campus.slug})", sum(hours.values()), "events"
    ) as step:
        for chunk in _chunks(hours, CHUNK_EVENTS):
            wanted = list(range(chunk[0], chunk[-1] + 1)) if complete else chunk
            events = events_sql(bench.engine, bench.files, wanted, kernel.EVENT_COLUMNS)
            if not complete and cells.rows(chunk) + sum(hours[h] for h in chunk) <= HELD_CELLS:
                # Else the rules' conditions are pushed down beside the hours', and evaluated for
                # all rows of every row group that one of the hours lies in.
                events = f"WITH events_ AS MATERIALIZED ({events}) SELECT * FROM events_"
            relative, path = bench.new_path("cells")
            bench.engine.execute(
                f"COPY ({kernel.cells_sql(events, bench.rules)} ORDER BY hour) TO {sql_text(path)} "
                f"({FILE_FORMAT})"
            ).fetchall()
            rows = period_counts(bench.engine, path, "hour")
            if not rows:
                path.unlink()
            cells.replace(chunk, relative if rows else None, rows)
            step.advance(sum(hours[h] for h in chunk))


def find_changed_cells(
    bench: Workbench, before: str | None, cells: Manifest, hours: set[int]
) -> None:
    """Fill the temp table `changed_cells(user_id, course_id, slot)` with cells that differ now.

    Args:
        bench: the shared state.
        before: SQL of the live cells of `hours` as they were; None if there were none.
        cells: the manifest after `build_cells`.
        hours: the hours that were computed again.
    """
    parts = [sql for sql in (before, cells.live_sql(bench.home, hours)) if sql is not None]
    if parts:
        both = " UNION ALL ".join(parts)
        # A cell is in either state once, so what is the same in both is there twice.
        query = (
            "SELECT DISTINCT user_id, course_id, slot FROM "
            f"(SELECT * FROM ({both}) GROUP BY ALL HAVING count(*) = 1)"
        )
    else:
        query = "SELECT '' AS user_id, '' AS course_id, 0::INTEGER AS slot WHERE false"
    bench.engine.execute(f"CREATE OR REPLACE TEMP TABLE changed_cells AS {query}").fetchall()


def find_changed_days(bench: Workbench) -> set[int]:
    """Fill the temp table `changed_days(user_id, course_id, day)`: what `changed_cells` change.

    A cell changes its learner's own day in its course, and the gap before their next cell there,
    which may lie in the next day if it begins within the session limit.

    Returns:
        The days (since 1970, campus time) in it.
    """
    reach = bench.session_limit_s // SLOT_S + 1
    zone = bench.campus.timezone
    first, last = kernel.local_day_sql("slot", zone), kernel.local_day_sql(f"slot + {reach}", zone)
    bench.engine.execute(
        "CREATE OR REPLACE TEMP TABLE changed_days AS SELECT DISTINCT user_id, course_id, day "
        f"FROM changed_cells JOIN (SELECT slot, unnest(range({first}, {last} + 1))::INTEGER AS day "
        "FROM (SELECT DISTINCT slot FROM changed_cells)) USING (slot)"
    ).fetchall()
    return {day for (day,) in bench.engine.sql("SELECT DISTINCT day FROM changed_days").fetchall()}


def days_of_cells(bench: Workbench, cells: Manifest) -> set[int]:
    """Every local day in which a cell may lie."""
    register_integers(bench.engine, "hours_", cells.parts)
    slots = f"SELECT (value * {SLOTS_PER_HOUR})::BIGINT AS slot FROM hours_"
    slots += f" UNION SELECT (value * {SLOTS_PER_HOUR} + {SLOTS_PER_HOUR - 1})::BIGINT FROM hours_"
    found = bench.engine.sql(
        f"SELECT DISTINCT day FROM ({kernel.slot_days_sql(slots, bench.campus.timezone)})"
    ).fetchall()
    return {day for (day,) in found}


def build_days(
    bench: Workbench, cells: Manifest, days: Manifest, wanted: set[int], *, patch: bool = False
) -> None:
    """Compute `wanted` days again from their cells and put them in `days`.

    Args:
        bench: the shared state.
        cells: the manifest of the cells.
        days: the manifest to change.
        wanted: days since 1970.
        patch: compute only the rows in `changed_days`, and copy the days' other rows.
    """
    sizes = {day: max(1, cells.rows(_hours_of_day(day, bench.campus.timezone))) for day in wanted}
    with bench.progress.step(f"Adding up days ({bench.campus.slug})", len(wanted), "days") as step:
        for chunk in _chunks(sizes, CHUNK_CELLS):
            relative, path = bench.new_path("days")
            query = _patched_sql(bench, cells, days, chunk) if patch else None
            query = query or _days_sql(bench, cells, chunk)
            rows: dict[int, int] = {}
            if query is not None:
                bench.engine.execute(
                    f"COPY ({query}) TO {sql_text(path)} ({FILE_FORMAT})"
                ).fetchall()
                rows = period_counts(bench.engine, path, "day")
                if not rows:
                    path.unlink()
            days.replace(chunk, relative if rows else None, rows)
            step.advance(len(chunk))


def _days_sql(bench: Workbench, cells: Manifest, days: list[int]) -> str | None:
    """SQL of whole days from their cells, in order; None if they have no cells."""
    source = _cells_of_days(bench, cells, days)
    if source is None:
        return None
    _make_slot_days(bench, days)
    return f"{kernel.days_sql(source, bench.rules, bench.session_limit_s)} ORDER BY day"


def _patched_sql(bench: Workbench, cells: Manifest, days: Manifest, chunk: list[int]) -> str | None:
    """SQL of days as they are but for the rows in `changed_days`; None if there are none yet."""
    before = days.live_sql(bench.home, set(chunk))
    if before is None:
        return None
    # In the file's order, a day or two per row group; the few new rows follow in their own.
    same_row = _same("day", "user_id", "course_id")
    kept = f"SELECT * FROM ({before}) a ANTI JOIN changed_days b ON {same_row}"
    source = _cells_of_days(bench, cells, chunk)
    if source is None:
        return kept
    _make_slot_days(bench, chunk)
    # A gap lies within one learner and course, so nobody else's cells are needed.
    bench.engine.execute(
        f"CREATE OR REPLACE TEMP TABLE their_cells AS SELECT * FROM ({source}) a "
        "SEMI JOIN (SELECT DISTINCT user_id, course_id FROM changed_days) b "
        f"ON {_same('user_id', 'course_id')}"
    ).fetchall()
    fresh = kernel.days_sql("FROM their_cells", bench.rules, bench.session_limit_s)
    bench.engine.execute(
        f"CREATE OR REPLACE TEMP TABLE fresh_days AS SELECT * FROM ({fresh}) a "
        f"SEMI JOIN changed_days b ON {same_row} ORDER BY day"
    ).fetchall()
    return f"{kept} UNION ALL SELECT * FROM fresh_days"


def _same(*columns: str) -> str:
    """SQL condition that `a` and `b` agree; rules may let events without a course count."""
    return " AND ".join(f"a.{c} IS NOT DISTINCT FROM b.{c}" for c in columns)


def _cells_of_days(bench: Workbench, cells: Manifest, days: list[int]) -> str | None:
    """SQL of the days' cells and of those a gap that ends in the days may begin in."""
    needed: set[int] = set()
    lookback = -(-bench.session_limit_s // kernel.HOUR_S) + 1
    for day in days:
        hours = _hours_of_day(day, bench.campus.timezone)
        needed.update(range(hours.start - lookback, hours.stop))
    return cells.live_sql(bench.home, needed)


def _hours_of_day(day: int, timezone: str) -> range:
    """The UTC hours a local day touches, and a few more where clocks change around midnight."""
    zone = ZoneInfo(timezone)
    start = datetime(1970, 1, 1, tzinfo=zone) + timedelta(days=day)
    end = datetime(1970, 1, 1, tzinfo=zone) + timedelta(days=day + 1)
    low, high = int(start.timestamp()), int(end.timestamp())
    return range(low // kernel.HOUR_S - MARGIN_HOURS, -(-high // kernel.HOUR_S) + MARGIN_HOURS)


def _make_slot_days(bench: Workbench, days: list[int]) -> None:
    slots: set[int] = set()
    for day in days:
        hours = _hours_of_day(day, bench.campus.timezone)
        slots.update(range(hours.start * SLOTS_PER_HOUR, hours.stop * SLOTS_PER_HOUR))
    register_integers(bench.engine, "slots_", slots)
    register_integers(bench.engine, "wanted_days", days)
    mapping = kernel.slot_days_sql("SELECT value AS slot FROM slots_", bench.campus.timezone)
    bench.engine.execute(
        f"CREATE OR REPLACE TEMP TABLE slot_days AS SELECT slot::INTEGER AS slot, day "
        f"FROM ({mapping}) WHERE day IN (SELECT value FROM wanted_days)"
    ).fetchall()


def _chunks(sizes: dict[int, int], limit: int) -> list[list[int]]:
    """The keys in order, in runs of about equal size, of `limit` or a little more.

    Equal, so that what is left over after the last full run is no statement of its own.
    """
    total = sum(sizes.values())
    number = max(1, math.ceil(total / limit - SMALL_REST))
    chunks: list[list[int]] = [[] for _ in range(number)]
    done = 0
    for key in sorted(sizes):
        chunks[min(number - 1, done * number // max(1, total))].append(key)
        done += sizes[key]
    return [chunk for chunk in chunks if chunk]
