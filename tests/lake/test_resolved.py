"""However log and report rows of the same events arrive, each event is there once."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from theon.events.retractions import RETRACTED_SCHEMA, retraction_events
from theon.events.schema import EVENT_SCHEMA
from theon.lake.engine import open_engine
from theon.lake.resolved import events_sql
from theon.lake.table import EventLake
from theon.settings import Settings

STAGED = pa.schema([f for f in EVENT_SCHEMA if f.name != "campus"])
AT = int(datetime(2026, 10, 1, 9, 0, tzinfo=UTC).timestamp())
LATER = datetime.fromtimestamp(AT + 2 * 3600, UTC)
Row = dict[str, Any]

# What happened: (second, user, event) and how often; the log and the reports each saw some of it.
happened = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["5", "6"]), st.sampled_from(["a", "b"])),
    min_size=1,
    max_size=14,
)


def _log_rows(events: list[tuple[int, str, str]]) -> list[Row]:
    return [
        {**_row(event), "event_id": f"moodle:{n}", "source": "moodle-log", "course_id": "6"}
        for n, event in enumerate(events)
    ]


def _report_rows(events: list[tuple[int, str, str]], course: str | None) -> list[Row]:
    seen: Counter[tuple[int, str, str]] = Counter()
    rows = []
    for event in events:
        seen[event] += 1
        name = f"report:{'-'.join(map(str, event))}:{seen[event]}" + (
            f"@{course}" if course else ""
        )
        rows.append(
            {**_row(event), "event_id": name, "source": "moodle-report", "course_id": course}
        )
    return rows


def _row(event: tuple[int, str, str]) -> Row:
    second, user, name = event
    at = datetime.fromtimestamp(AT + second, UTC)
    return {"occurred_at": at, "user_id": user, "event_name": name, "origin": "web"}


def _append_in_any_order(
    lake: EventLake, home: Path, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    """In two batches, of which the first comes again."""
    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(1, len(shuffled)))
    for part in (shuffled[:cut], shuffled[cut:], shuffled[:cut]):
        if part:
            full = [{**dict.fromkeys(STAGED.names), **row} for row in part]
            pq.write_table(pa.Table.from_pylist(full, STAGED), home / "staged")
            lake.append(home / "staged", "north")


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(log=happened, course=happened, site=happened, data=st.data())
def test_each_event_is_there_as_often_as_the_road_that_saw_most_of_it(
    tmp_path_factory: Any, log: list[Any], course: list[Any], site: list[Any], data: st.DataObject
) -> None:
    """Any order, any batches: per event the greatest count, log rows first, courses kept."""
    home: Path = tmp_path_factory.mktemp("lake")
    chosen = Settings(home=home, postgres_url=None)
    lake = EventLake(chosen)
    rows = _log_rows(log) + _report_rows(course, "6") + _report_rows(site, None)
    _append_in_any_order(lake, home, rows, data)
    with open_engine(chosen) as engine:
        columns = ["occurred_at", "user_id", "event_name", "source", "course_id"]
        query = events_sql(engine, lake.files("north"), [AT // 3600], columns)
        found = engine.sql(
            f"SELECT epoch(occurred_at)::BIGINT - {AT}, user_id, event_name, source, course_id "
            f"FROM ({query})"
        ).fetchall()
    most = Counter(log) | Counter(course) | Counter(site)
    assert Counter((s, u, e) for s, u, e, _, _ in found) == most
    by_source = Counter(source for *_, source, _ in found)
    assert by_source["moodle-log"] == len(log)
    # Of the reports' rows, what a course's report saw beyond the log's count knows its course,
    # unless only the site's report saw that often.
    without = Counter((s, u, e) for s, u, e, _, c in found if c is None)
    assert without == Counter(site) - (Counter(log) | Counter(course))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(log=happened, course=happened, data=st.data())
def test_what_is_retracted_is_not_there_and_nothing_comes_in_its_place(
    tmp_path_factory: Any, log: list[Any], course: list[Any], data: st.DataObject
) -> None:
    """Of log rows and report rows in two hours; marked, they are given with the others."""
    home: Path = tmp_path_factory.mktemp("lake")
    chosen = Settings(home=home, postgres_url=None)
    lake = EventLake(chosen)
    rows = _log_rows(log) + _report_rows(course, "6")
    rows += [{**row, "event_id": f"moodle:9{n}", "occurred_at": LATER, "source": "moodle-log"}
             for n, row in enumerate(rows)]  # fmt: skip
    gone = data.draw(st.lists(st.sampled_from(rows), unique_by=lambda row: row["event_id"]))
    named = pa.Table.from_pylist([{k: r[k] for k in RETRACTED_SCHEMA.names} for r in gone])
    rows += retraction_events(named.cast(RETRACTED_SCHEMA)).to_pylist() if gone else []
    _append_in_any_order(lake, home, rows, data)
    hours = [AT // 3600, AT // 3600 + 1, AT // 3600 + 2]
    columns = ["event_name", "event_id"]
    with open_engine(chosen) as engine:
        files = lake.files("north")
        found = engine.sql(events_sql(engine, files, hours, columns)).fetchall()
        marked = engine.sql(
            events_sql(engine, files, hours, columns, mark_retracted=True)
        ).fetchall()
    ids = {row["event_id"] for row in gone}
    assert {i for _, i in found}.isdisjoint(ids)
    assert sorted(found) == sorted((n, i) for n, i, retracted in marked if not retracted)
    assert {i for _, i, retracted in marked if retracted} <= ids
    most = (Counter(log) | Counter(course)).total() + len(log) + len(course)
    assert len(marked) == most
