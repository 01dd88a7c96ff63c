"""One measured task per process, so that each starts cold and shows its own peak memory.

`python -m bench.work TASK EVENTS` prints one line of JSON: seconds, peak_mb and what else the
task found.
"""

import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import text

from bench import data, queries
from theon.bootstrap import Theon, open_theon
from theon.events.activity import load_rules
from theon.events.schema import EVENT_SCHEMA, PARTITION_COLUMNS
from theon.intake.pipeline import ingest
from theon.lake.engine import open_engine, sql_list
from theon.metrics import derive
from theon.metrics.catalog import load_catalog
from theon.metrics.manifest import Manifest
from theon.metrics.refresh import hours_of_files, refresh
from theon.metrics.rows import metric_sql
from theon.observability.progress import ProgressReporter, SilentProgress, Step
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.bulk import copy_in
from theon.store.scope import Scope

Result = dict[str, Any]
LATE_EVENTS = 1_000
LATE_HOURS = 50
ROW_SCHEMA = pa.schema([f for f in EVENT_SCHEMA if f.name not in PARTITION_COLUMNS])
POSTGRES_TYPES = {
    pa.string(): "text",
    pa.timestamp("us", tz="UTC"): "timestamptz",
    pa.int16(): "smallint",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.bool_(): "boolean",
}


def settings(events: int, **changes: Any) -> Settings:
    """Settings of the home of that size, untouched by the environment."""
    return Settings(home=data.home(events), postgres_url=None, postgres_app_url=None, **changes)


def lake_files(events: int) -> list[str]:
    """The lake's data files, for those who read them without Theon."""
    folder = data.home(events) / "lake" / "events"
    return sorted(str(p) for p in folder.glob("campus=*/*.parquet"))


def timed(function: Callable[[], Result | None]) -> Result:
    """Run, and add seconds and this process's peak memory in megabytes."""
    started = time.perf_counter()
    found = function() or {}
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 3), "peak_mb": round(peak_mb), **found}


def theirs_csv_to_parquet(events: int) -> Result:
    out = data.FOLDER / "theirs.parquet"
    with duckdb.connect(config={"threads": 2}) as engine:
        result = timed(
            lambda: (
                engine.execute(
                    f"COPY (FROM read_csv('{data.log_csv(events)}')) TO '{out}'"
                ).fetchall()
                and None
            )
        )
    out.unlink()
    return result


class _Timed(SilentProgress):
    """Remembers how long each step took, in seconds, by the first word of its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, operation: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
        begun = time.perf_counter()
        with super().step(operation, total, unit) as step:
            yield step
        self.seconds[operation.split(maxsplit=1)[0]] = time.perf_counter() - begun


def ours_ingest(events: int) -> Result:
    """`outcomes_s` of its seconds observers see what the events say of outcomes."""
    csv = data.log_csv(events)
    steps = _Timed()
    shutil.rmtree(data.home(events), ignore_errors=True)
    with open_theon(settings(events)) as theon:
        add_campus(theon.store, data.CAMPUS, data.TIMEZONE)

        def run() -> Result:
            summary = ingest(
                theon.store,
                theon.lake,
                theon.settings,
                location=str(csv),
                format="moodle-logstore",
                campus=data.CAMPUS,
                progress=steps,
            )
            return {"new": summary.new}

        found = timed(run)
    return {**found, "outcomes_s": round(steps.seconds["Outcomes"], 3)}


def ours_rebuild(events: int) -> Result:
    """`outcomes_s` of its seconds it derives the outcomes, which late activity leaves alone."""
    steps = _Timed()
    with open_theon(settings(events)) as theon:
        found = timed(lambda: {"cells": _refresh(theon, rebuild=True, progress=steps).cells})
    return {**found, "outcomes_s": round(steps.seconds["Outcomes"], 3)}


def ours_refresh(events: int) -> Result:
    with open_theon(settings(events)) as theon:
        return timed(lambda: {"hours": _refresh(theon).hours})


def _refresh(
    theon: Theon, *, rebuild: bool = False, progress: ProgressReporter | None = None
) -> Any:
    return refresh(theon.store, theon.lake, theon.settings, rebuild=rebuild, progress=progress)


def ours_late(events: int) -> Result:
    """A thousand late events of the last fifty hours with events, then a refresh."""
    return _late(events, lambda _, hours: hours[-LATE_HOURS:])


def ours_late_scattered(events: int) -> Result:
    """A thousand late events in fifty hours drawn from the whole history, then a refresh."""
    return _late(events, lambda draw, hours: draw.sample(hours, LATE_HOURS))


def _late(events: int, choose: Callable[[random.Random, list[int]], list[int]]) -> Result:
    with open_theon(settings(events)) as theon:
        refresh(theon.store, theon.lake, theon.settings)
        late = _late_events(theon, choose)
        theon.lake.append(late, data.CAMPUS)
        found = timed(lambda: {"hours": _refresh(theon).hours})
    assert found["hours"] == LATE_HOURS, found
    return found


def _late_events(theon: Theon, choose: Callable[[random.Random, list[int]], list[int]]) -> Path:
    draw = random.Random(time.time_ns())  # noqa: S311 - rows to measure with, no secret
    with theon.store.transaction(Scope.district()) as conn:
        people = conn.execute(
            text("SELECT user_id, course_id FROM metrics.user_course_week LIMIT 100000")
        ).all()
        hours = conn.execute(
            text("SELECT period FROM theon.derived_parts WHERE dataset = 'cells'")
        ).scalars()
        chosen = choose(draw, sorted(hours))
    rows = []
    for n in range(LATE_EVENTS):
        user, course = draw.choice(people)
        second = chosen[n % LATE_HOURS] * 3600 + draw.randrange(3600)
        rows.append(
            {
                "event_id": f"late:{draw.getrandbits(64)}",
                "source": "moodle-log",
                "occurred_at": second * 1_000_000,
                "user_id": user,
                "course_id": course,
                "event_name": "\\core\\event\\course_viewed",
                "component": "core",
                "action": "viewed",
                "origin": "web",
                "anonymous": False,
            }
        )
    path = data.FOLDER / "late.parquet"
    full = [{**dict.fromkeys(ROW_SCHEMA.names), **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(full, ROW_SCHEMA), path)
    return path


def ours_kernel(events: int) -> Result:
    """Events to cells to days to `user_course_week`, files written as in a refresh."""
    return _kernel(events, from_cells=False)


def ours_weeks(events: int) -> Result:
    """The same from existing cells: what a changed session limit costs."""
    return _kernel(events, from_cells=True)


def _kernel(events: int, *, from_cells: bool) -> Result:
    chosen = settings(events)
    metric = load_catalog()["user_course_week"]
    with open_theon(chosen) as theon, open_engine(chosen, ordered=False) as engine:
        campus = get_campus(theon.store, data.CAMPUS)
        scratch = data.FOLDER / "kernel"
        bench = derive.Workbench(
            engine,
            scratch,
            campus,
            load_rules(),
            chosen.session_limit_s,
            SilentProgress(),
            theon.lake.files(data.CAMPUS),
        )
        cells, days = Manifest("cells", "hour"), Manifest("days", "day")

        def to_cells() -> None:
            hours = hours_of_files(bench, bench.files, complete=True)
            derive.build_cells(bench, cells, hours, complete=True)

        def to_weeks() -> None:
            derive.build_days(bench, cells, days, derive.days_of_cells(bench, cells))
            query = metric_sql(bench, metric, str(days.live_sql(scratch)), restricted=False)
            engine.execute(f"CREATE TEMP TABLE weeks AS {query}").fetchall()

        if from_cells:
            to_cells()
            result = timed(to_weeks)
        else:

            def all_the_way() -> None:
                to_cells()
                to_weeks()

            result = timed(all_the_way)
        result["digest"] = _digest(
            engine,
            "SELECT * REPLACE (epoch(first_access)::BIGINT AS first_access, "
            "epoch(last_access)::BIGINT AS last_access) FROM weeks",
        )
        shutil.rmtree(scratch)
    return result


def theirs_duckdb(events: int) -> Result:
    source = f"read_parquet({sql_list(lake_files(events))}, hive_partitioning = false)"
    with duckdb.connect(config={"threads": 2}) as engine:
        query = queries.duckdb_sql(source, data.TIMEZONE)
        result = timed(lambda: engine.execute(f"CREATE TABLE weeks AS {query}").fetchall() and None)
        result["digest"] = _digest(engine, f"SELECT {queries.COLUMNS} FROM weeks")
    return result


def theirs_clickhouse(events: int) -> Result:
    from chdb import session  # noqa: PLC0415 - a bench dependency

    folder = data.home(events) / "lake" / "events"
    source = f"file('{folder}/*/*.parquet', Parquet)"
    query = queries.clickhouse_sql(source, data.TIMEZONE)
    database = session.Session()
    result = timed(
        lambda: (
            database.query(
                f"CREATE TABLE weeks ENGINE = Memory AS {query} SETTINGS max_threads = 2"
            )
            and None
        )
    )
    out = data.FOLDER / "clickhouse.parquet"
    database.query(f"SELECT * FROM weeks INTO OUTFILE '{out}' TRUNCATE FORMAT Parquet")
    with duckdb.connect() as engine:
        result["digest"] = _digest(engine, f"SELECT {queries.COLUMNS} FROM read_parquet('{out}')")
    out.unlink()
    return result


def theirs_postgres(events: int) -> Result:
    with open_theon(settings(events)) as theon, theon.store.owner_transaction() as conn:
        conn.execute(text("DROP TABLE IF EXISTS bench_events, bench_weeks"))
        # The whole rows of the same files, as Moodle's own table has them.
        columns = ", ".join(f"{f.name} {POSTGRES_TYPES[f.type]}" for f in ROW_SCHEMA)
        conn.execute(text(f"CREATE TABLE bench_events ({columns})"))
        _load(conn, lake_files(events))
        conn.execute(text("ANALYZE bench_events"))
        query = queries.postgres_sql("bench_events", data.TIMEZONE).replace(":", "\\:")
        result = timed(lambda: conn.execute(text(f"CREATE TABLE bench_weeks AS {query}")) and None)
        conn.execute(text("DROP TABLE bench_events, bench_weeks"))
    return result


def _load(conn: Any, files: list[str]) -> None:
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'").fetchall()
        reader = engine.sql(
            f"SELECT {', '.join(ROW_SCHEMA.names)} "
            f"FROM read_parquet({sql_list(files)}, hive_partitioning = false)"
        ).to_arrow_reader(65_536)
        copy_in(conn, "bench_events", reader)


def _digest(engine: duckdb.DuckDBPyConnection, query: str) -> str:
    """A number that two equal results share, whatever the order of their rows."""
    columns = engine.sql(query).columns[:12]
    casts = ", ".join(f"#{n + 1}::VARCHAR" for n in range(len(columns)))
    [(rows, total)] = engine.sql(
        f"SELECT count(*), sum(hash(concat_ws('|', {casts}))::HUGEINT) "
        f"FROM (SELECT {casts} FROM ({query}))"
    ).fetchall()
    return f"{rows}:{total}"


TASKS: dict[str, Callable[[int], Result]] = {
    f.__name__: f
    for f in (
        theirs_csv_to_parquet,
        ours_ingest,
        ours_rebuild,
        ours_refresh,
        ours_late,
        ours_late_scattered,
        ours_kernel,
        ours_weeks,
        theirs_duckdb,
        theirs_clickhouse,
        theirs_postgres,
    )
}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](int(sys.argv[2]))))
