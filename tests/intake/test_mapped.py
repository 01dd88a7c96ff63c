"""Lines of JSON become canonical events, or are refused for a reason."""

import json
from typing import Any

import pyarrow as pa
import pytest

from theon.intake import mapped as mapped_module
from theon.intake.arrivals import ARRIVAL_SCHEMA, REFUSED_SCHEMA
from theon.intake.mapped import map_lines, read_arrival
from theon.intake.mapping import native_schema

NEEDED = {"id": "e1", "event_name": "CourseViewed", "occurred_at": "2026-03-01T09:30:00+02:00"}


def line(**more: Any) -> str:
    return json.dumps(NEEDED | more)


def mapped(*lines: str | bytes, mapping: str = "native") -> tuple[list[Any], list[Any]]:
    """(events without what is null, refused) as rows."""
    raw = [one.encode() if isinstance(one, str) else one for one in lines]
    arrival = read_arrival(pa.array(raw, pa.binary()), mapping)
    assert arrival.events.schema == ARRIVAL_SCHEMA
    assert arrival.refused.schema == REFUSED_SCHEMA
    events = [{k: v for k, v in row.items() if v is not None} for row in arrival.events.to_pylist()]
    return events, arrival.refused.to_pylist()


def refusal(one: str | bytes, mapping: str = "native") -> tuple[str, str | None]:
    events, refused = mapped(one, mapping=mapping)
    assert events == []
    assert refused[0]["original"] == (one.encode() if isinstance(one, str) else one)
    return refused[0]["reason"], refused[0]["detail"]


def test_a_native_event_says_its_columns_itself():
    """Times become UTC, whole numbers are ids as text, `other` stays JSON."""
    events, refused = mapped(
        line(user_id=7, course_id="c1", component="mod_page", action="viewed", other={"a": [1, 2]})
    )
    assert refused == []
    (event,) = events
    assert event.pop("occurred_at").isoformat() == "2026-03-01T07:30:00+00:00"
    assert event == {
        "event_id": "e1",
        "source": "native",
        "event_name": "CourseViewed",
        "user_id": "7",
        "course_id": "c1",
        "component": "mod_page",
        "action": "viewed",
        "target": "course",
        "origin": "web",
        "other": '{"a":[1,2]}',
        "ordinal": 0,
    }


def test_the_name_of_a_native_event_says_what_the_sender_leaves_out():
    """So that an assessment is left to the observers whoever tells of it."""
    (event,), _ = mapped(line(event_name="AssessmentCompleted"))
    assert (event["component"], event["action"], event["origin"]) == (
        "mod_quiz",
        "submitted",
        "web",
    )
    (event,), _ = mapped(line(event_name="UserEnrolled"))
    assert event["origin"] == "system"


GOOD = '"id": "e1", "event_name": "x", "occurred_at": "2026-03-01T09:30:00Z"'


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("", "not JSON", None),
        ('{"id": "e1"', "not JSON", None),
        (b"\xff\xfe{}", "not UTF-8", None),
        ("[1, 2]", "not a JSON object", None),
        ("null", "not a JSON object", None),
        ('{"event_name": "x"}', "id is missing", None),
        (line(id=None), "id is missing", None),
        (line(id="retraction:xapi:1"), "id is one of Theon's own", None),
        (line(event_name=None), "event_name is missing", None),
        (line(occurred_at=None), "occurred_at is missing", None),
        (line(occurred_at=1772357400), "occurred_at is of the wrong type", "1772357400"),
        (line(occurred_at="yesterday"), "occurred_at is not a time", "yesterday"),
        (line(occurred_at="2026-02-30T00:00:00Z"), "occurred_at is not a time",
         "2026-02-30T00:00:00Z"),
        (line(occurred_at="2026-03-01T09:30:00+99:00"), "occurred_at is not a time",
         "2026-03-01T09:30:00+99:00"),
        (line(occurred_at="2026-03-01T09:30:00.5+0275"), "occurred_at is not a time",
         "2026-03-01T09:30:00.5+0275"),
        (line(occurred_at="2026-03-01"), "occurred_at is a time without offset", "2026-03-01"),
        (line(occurred_at="2026-03-01T09:30:00"), "occurred_at is a time without offset",
         "2026-03-01T09:30:00"),
        (line(occurred_at="1970-01-01T00:00:00Z"), "occurred_at is before 2000",
         "1970-01-01T00:00:00Z"),
        (line(occurred_at="2970-01-01T00:00:00Z"), "occurred_at is more than a day ahead",
         "2970-01-01T00:00:00Z"),
        (line(user_id=""), "user_id is empty", ""),
        (line(user_id=1.5), "user_id is of the wrong type", "1.5"),
        (line(user_id=True), "user_id is of the wrong type", "true"),
        (line(action=3), "action is of the wrong type", "3"),
        (line(target="ä" * 1001), "target is longer than 1,000 characters", "ä" * 200),
        (line(other="text"), "other is of the wrong type", "text"),
        (line(other={"a": "x" * (1 << 20)}), "other is larger than 1 MB",
         '{"a":"' + "x" * 194),
        (line(other={"a": float("nan")}), "other is holding NaN or Infinity", '{"a":NaN}'),
        (line(user="7", cuorse="c"), "unknown field", "user, cuorse"),
        ("{" + GOOD + ', "id": "e2"}', "a field twice", "id"),
        (line(user_id="a\x00b"), "NUL character", None),
        ("{" + GOOD + ', "user_id": "\\ud800"}', "half of a surrogate pair", None),
        ("{" + GOOD + ', "other": {"a": ' + "[" * 70 + "]" * 70 + "}}", "nested deeper than 64",
         None),
        ("[" * 100_000, "not JSON", None),
        ("x" * (3 << 20), "larger than 2 MB", None),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_for_its_own_reason(text, reason, detail):
    assert refusal(text) == (reason, detail)


@pytest.mark.parametrize(
    "other",
    [
        {"a": "[[[[" * 40},
        {"a": [[]] * 200},
        {"a": "NaN, Infinity"},
        {"a": "\\u0000"},
        {"a": "x" * 1_000_000},
    ],
)
def test_what_only_looks_suspicious_is_taken(other):
    (event,), refused = mapped(line(other=other))
    assert refused == []
    assert json.loads(event["other"]) == other


def test_a_time_may_be_written_as_rfc_3339_allows():
    """With small letters, a blank, a fraction, any offset that there may be."""
    times = ("2026-03-01t09:30:00z", "2026-03-01 12:30:00.000+03", "2026-02-28T09:31:00-23:59")
    events, refused = mapped(*(line(id=time, occurred_at=time) for time in times))
    assert refused == []
    assert {event["occurred_at"].isoformat() for event in events} == {"2026-03-01T09:30:00+00:00"}


def test_a_batch_keeps_its_order_and_accounts_for_every_line():
    lines = [line(id=f"e{n}") if n % 3 else f"garbage {n}" for n in range(30)]
    events, refused = mapped(*lines)
    assert [event["ordinal"] for event in events] == [n for n in range(30) if n % 3]
    assert [row["ordinal"] for row in refused] == list(range(0, 30, 3))


def test_the_callers_ordinals_and_ids_are_kept():
    table = pa.table(
        {
            "ordinal": pa.array([5, 9], pa.int32()),
            "line": ['{"type": "UserCreated", "timestamp": "2026-03-01T00:00:00Z"}', "x"],
            "default_id": ["kafka:t:0:5", "kafka:t:0:9"],
        }
    )
    found = map_lines(table, "messages")
    assert found.events["event_id"].to_pylist() == ["kafka:t:0:5"]
    assert found.events["ordinal"].to_pylist() == [5]
    assert found.refused["ordinal"].to_pylist() == [9]


def test_the_published_schema_names_every_field():
    schema = native_schema()
    assert schema["required"] == ["id", "event_name", "occurred_at"]
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) >= {"user_id", "course_id", "other", "origin"}


def test_lines_that_were_mapped_leave_no_memory_behind():
    lines = pa.array([line(id=f"e{n}", other={"a": "x" * 2000}) for n in range(2000)])
    for _ in range(12):
        assert read_arrival(lines, "native").events.num_rows == 2000
    [(held,)] = (
        mapped_module._engine()
        .sql("SELECT sum(memory_usage_bytes) FROM duckdb_memory()")
        .fetchall()
    )
    assert held < 32 << 20
