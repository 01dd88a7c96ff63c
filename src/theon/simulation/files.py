"""Writes the simulated log as files in the form of Moodle's `logstore_standard_log`."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from theon.observability.progress import ProgressReporter, SilentProgress, Step
from theon.simulation.days import Block, simulate_days
from theon.simulation.district import CampusPlan, District, plan_district
from theon.simulation.moodle_events import KINDS

DUPLICATES = 0.003
"""Share of the main file's rows that the second delivery holds again."""

GROUP_ROWS = 120_000
"""Rows written at a time, or those of the busiest day where it has more."""

# No join: with one, DuckDB may take the events for the side to keep in memory, and would
# neither stream them nor keep their order.
_ROW_SQL = """
SELECT id, eventname, component, action, target, nullif(objecttable, '') AS objecttable,
       CASE object_id WHEN 'module' THEN module % 1000 + 1 WHEN 'row' THEN id
            WHEN 'user' THEN userid WHEN 'course' THEN courseid END AS objectid,
       crud, edulevel,
       CASE contextlevel WHEN 70 THEN module + 1000000 WHEN 50 THEN courseid + 100000
            WHEN 30 THEN userid + 200000 ELSE 1 END AS contextid,
       contextlevel,
       CASE contextlevel WHEN 70 THEN module WHEN 50 THEN courseid
            WHEN 30 THEN userid ELSE 0 END AS contextinstanceid,
       userid, courseid,
       CASE WHEN target = 'course_module_completion' THEN userid END AS relateduserid,
       anonymous,
       replace(replace(replace(other, '{cm}', module::VARCHAR), '{row}', id::VARCHAR),
               '{user}', userid::VARCHAR) AS other,
       timecreated,
       CASE WHEN kind_origin <> 'cli' AND phone THEN 'ws' ELSE kind_origin END AS origin,
       CASE WHEN kind_origin <> 'cli'
            THEN '10.' || (ip // 65536) || '.' || (ip // 256 % 256) || '.' || (ip % 256)
       END AS ip,
       nullif(realuserid, 0) AS realuserid
FROM log_rows
"""

_KIND_COLUMNS: dict[str, Any] = {
    "eventname": pa.array([k.eventname for k in KINDS]),
    "component": pa.array([k.component for k in KINDS]),
    "action": pa.array([k.action for k in KINDS]),
    "target": pa.array([k.target for k in KINDS]),
    "objecttable": pa.array([k.objecttable for k in KINDS]),
    "object_id": pa.array([k.object_id for k in KINDS]),
    "crud": pa.array([k.crud for k in KINDS]),
    "edulevel": pa.array([k.edulevel for k in KINDS]),
    "contextlevel": pa.array([k.contextlevel for k in KINDS]),
    "anonymous": pa.array([k.anonymous for k in KINDS]),
    "other": pa.array([k.other for k in KINDS]),
    "kind_origin": pa.array([k.origin for k in KINDS]),
}

_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("id", pa.int64()),
    pa.field("userid", pa.int64()),
    pa.field("courseid", pa.int64()),
    pa.field("module", pa.int64()),
    pa.field("timecreated", pa.int64()),
    pa.field("ip", pa.int64()),
    pa.field("phone", pa.bool_()),
    pa.field("realuserid", pa.int64()),
    *(pa.field(name, pa.dictionary(pa.int16(), c.type)) for name, c in _KIND_COLUMNS.items()),
]
_ROW_SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True)
class Delivery:
    """The files of one campus.

    Attributes:
        campus: whose log it is.
        courses: how many courses the campus has.
        main: the first delivery; rows are in order of id.
        late: the second one: `late_events` new rows of hours that the first covers, then
            `duplicates` rows of the first again.
        events: rows of `main`.
    """

    campus: CampusPlan
    courses: int
    main: Path
    late: Path
    events: int
    late_events: int
    duplicates: int


def write_district(
    district: District,
    folder: Path,
    *,
    progress: ProgressReporter | None = None,
    threads: int = 0,
) -> list[Delivery]:
    """Write two CSV files per campus into `folder`, which is made if it is missing.

    The same district gives the same bytes, whatever the number of threads. Memory is
    bounded by the busiest day.

    Args:
        district: see `plan_district`.
        folder: files are `<slug>.csv` and `<slug>-late.csv`; older ones are replaced.
        progress: told of each simulated day.
        threads: threads of the CSV writer; 0 takes one per core.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reporter = progress or SilentProgress()
    days = 7 * district.weeks * len(district.campuses)
    with reporter.step("Simulating the district", days, "days") as step:
        return [
            _write_campus(district, index, folder, step, threads)
            for index in range(len(district.campuses))
        ]


def write_logstore(
    path: Path,
    *,
    events: int,
    until: date,
    seed: int = 1,
    weeks: int = 8,
    progress: ProgressReporter | None = None,
    threads: int = 0,
) -> int:
    """Write one campus of about `events` rows as a logstore CSV, for measurements.

    Learners and courses grow with the events: about 90 events per learner and week, 37
    learners per course. Nothing is late or twice. Memory is bounded by the busiest day.

    Returns:
        Rows written, without the header.
    """
    learners = max(events // (90 * weeks), 10)
    campus = CampusPlan("bench", "Bench", "Europe/London", 1.0, (), 0)
    district = plan_district(
        until=until,
        seed=seed,
        learners=learners,
        courses=max(learners // 37, 1),
        weeks=weeks,
        events=events,
        campuses=(campus,),
    )
    reporter = progress or SilentProgress()
    writer = _Numbering()
    with reporter.step("Generating events", 7 * weeks, "days") as step:
        blocks = _counted(simulate_days(district, 0), step)
        return _copy(map(writer.number, blocks), path, threads)


class _Numbering:
    """Gives rows their log ids, one after the other from 1."""

    def __init__(self) -> None:
        self.last_id = 0

    def number(self, rows: Block) -> pa.RecordBatch:
        ids = np.arange(self.last_id + 1, self.last_id + 1 + len(rows), dtype=np.int64)
        self.last_id += len(rows)
        numbers = (
            ids,
            rows.user,
            rows.course,
            rows.module,
            rows.at,
            rows.ip,
            rows.phone,
            rows.real_user,
        )
        kind = rows.kind.astype(np.int16)
        words = (pa.DictionaryArray.from_arrays(kind, c) for c in _KIND_COLUMNS.values())
        return pa.RecordBatch.from_arrays(
            [*(pa.array(c) for c in numbers), *words], schema=_ROW_SCHEMA
        )


def _counted(blocks: Iterator[Block], step: Step) -> Iterator[Block]:
    for block in blocks:
        yield block
        step.advance()


def _write_campus(
    district: District, index: int, folder: Path, step: Step, threads: int
) -> Delivery:
    campus = district.campuses[index]
    rng = np.random.default_rng([district.seed, index, 13])
    writer = _Numbering()
    late: list[Block] = []
    again: list[pa.RecordBatch] = []

    def delivered() -> Iterator[pa.RecordBatch]:
        for block in _counted(simulate_days(district, index), step):
            late.append(block.take(block.late))
            batch = writer.number(block.take(~block.late))
            again.append(batch.filter(pa.array(rng.random(len(batch)) < DUPLICATES)))
            yield batch

    main = folder / f"{campus.slug}.csv"
    events = _copy(delivered(), main, threads)
    # Moodle numbers a row when it arrives, so late rows have the highest ids.
    late_rows = writer.number(Block.join(late))
    second = folder / f"{campus.slug}-late.csv"
    in_second = _copy([late_rows, *again], second, threads)
    return Delivery(
        campus=campus,
        courses=district.campus_sizes()[index][1],
        main=main,
        late=second,
        events=events,
        late_events=len(late_rows),
        duplicates=in_second - len(late_rows),
    )


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Batches as tables of at least `GROUP_ROWS` rows, but for the last; at least one table."""
    group: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        group.append(batch)
        rows += len(batch)
        if rows >= GROUP_ROWS:
            yield pa.Table.from_batches(group)
            group, rows = [], 0
    yield pa.Table.from_batches(group, _ROW_SCHEMA)


def _copy(batches: Iterable[pa.RecordBatch], path: Path, threads: int) -> int:
    """Spell the rows out as Moodle's columns and write them as CSV; return how many.

    In groups of days, for one COPY over all of them would hold too many in memory to keep
    their order. A half-written file never takes the place of a whole one.
    """
    config: dict[str, str | bool | int | float | list[str]] = {"preserve_insertion_order": True}
    if threads:
        config["threads"] = threads
    part, piece = path.with_suffix(".part"), path.with_suffix(".piece")
    target = str(piece).replace("'", "''")
    rows = 0
    try:
        with duckdb.connect(":memory:", config=config) as db, part.open("wb") as out:
            for table in _gathered(batches):
                pieces = table.to_batches(8192)  # one each for the threads to take
                db.register("log_rows", pa.Table.from_batches(pieces, _ROW_SCHEMA))
                header = "true" if out.tell() == 0 else "false"
                db.execute(f"COPY ({_ROW_SQL}) TO '{target}' (FORMAT csv, HEADER {header})")
                rows += len(table)
                with piece.open("rb") as written:
                    shutil.copyfileobj(written, out, 1 << 20)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        piece.unlink(missing_ok=True)
    return rows
