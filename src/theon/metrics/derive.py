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
    """Fill the temp table `changed_cells(slot)` with slots whose cells differ now.

    Args:
        bench: the shared state.
        before: SQL of the live cells of `hours` as they were; None if there were none.
        cells: the manifest after `build_cells`.
        hours: the hours that were computed again.
    """
    after = cells.live_sql(bench.home, hours)
    _difference(bench.engine, "changed_cells", ["slot"], before, after)


def reopened_days(bench: Workbench) -> set[int]:
    """Days (since 1970, campus time) that `changed_cells` can change.

    A cell changes its own day, and the gap before the learner's next cell, which may lie in
    the next day if it begins within the session limit.
    """
    reach = bench.session_limit_s // SLOT_S + 1
    zone = bench.campus.timezone
    first, last = kernel.local_day_sql("slot", zone), kernel.local_day_sql(f"slot + {reach}", zone)
    found = bench.engine.sql(
        f"SELECT DISTINCT unnest(range({first}, {last} + 1)) FROM changed_cells"
    ).fetchall()
    return {day for (day,) in found}


def days_of_cells(bench: Workbench, cells: Manifest) -> set[int]:
    """Every local day in which a cell may lie."""
    register_integers(bench.engine, "hours_", cells.parts)
    slots = f"SELECT (value * {SLOTS_PER_HOUR})::BIGINT AS slot FROM hours_"
    slots += f" UNION SELECT (value * {SLOTS_PER_HOUR} + {SLOTS_PER_HOUR - 1})::BIGINT FROM hours_"
    found = bench.engine.sql(
        f"SELECT DISTINCT day FROM ({kernel.slot_days_sql(slots, bench.campus.timezone)})"
    ).fetchall()
    return {day for (day,) in found}


def build_days(bench: Workbench, cells: Manifest, days: Manifest, wanted: set[int]) -> None:
    """Compute `wanted` days again from their cells and put them in `days`."""
    sizes = {day: max(1, cells.rows(_hours_of_day(day, bench.campus.timezone))) for day in wanted}
    with bench.progress.step(f"Adding up days ({bench.campus.slug})", len(wanted), "days") as step:
        for chunk in _chunks(sizes, CHUNK_CELLS):
            needed: set[int] = set()
            for day in chunk:
                hours = _hours_of_day(day, bench.campus.timezone)
                lookback = -(-bench.session_limit_s // kernel.HOUR_S) + 1
                needed.update(range(hours.start - lookback, hours.stop))
            source = cells.live_sql(bench.home, needed)
            rows: dict[int, int] = {}
            relative, path = bench.new_path("days")
            if source is not None:
                _make_slot_days(bench, chunk)
                query = kernel.days_sql(source, bench.rules, bench.session_limit_s)
                bench.engine.execute(
                    f"COPY ({query} ORDER BY day) TO {sql_text(path)} ({FILE_FORMAT})"
                ).fetchall()
                rows = period_counts(bench.engine, path, "day")
                if not rows:
                    path.unlink()
            days.replace(chunk, relative if rows else None, rows)
            step.advance(len(chunk))


def find_changed_days(
    bench: Workbench, before: str | None, days: Manifest, wanted: set[int]
) -> None:
    """Fill the temp table `changed_days(user_id, course_id, day)` with rows that differ now."""
    after = days.live_sql(bench.home, wanted)
    _difference(bench.engine, "changed_days", ["user_id", "course_id", "day"], before, after)


def _difference(
    engine: duckdb.DuckDBPyConnection,
    table: str,
    keys: list[str],
    before: str | None,
    after: str | None,
) -> None:
    columns = ", ".join(keys)
    parts = [sql for sql in (before, after) if sql is not None]
    if len(parts) == 2:
        query = (
            f"SELECT DISTINCT {columns} FROM (SELECT * FROM ({before} UNION ALL {after}) "
            "GROUP BY ALL HAVING count(*) = 1)"
        )
    elif parts:
        query = f"SELECT DISTINCT {columns} FROM ({parts[0]})"
    else:
        types = {"slot": "INTEGER", "day": "INTEGER"}
        nothing = ", ".join(f"NULL::{types.get(k, 'VARCHAR')} AS {k}" for k in keys)
        query = f"SELECT {nothing} WHERE false"
    engine.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {query}").fetchall()


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
