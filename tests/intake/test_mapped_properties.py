"""Whatever a line says, it is an event or a refusal, and the same in any company."""

import copy
import json
from typing import Any

import jsonschema_rs
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theon.intake.mapped import map_lines
from theon.intake.mapping import MAPPINGS, native_schema

T = "2026-03-01T09:30:00Z"
BASES: dict[str, list[Any]] = {
    "native": [
        {"id": "1", "event_name": "x", "occurred_at": T, "user_id": "u", "other": {"a": [1]}},
    ],
    "messages": [
        {"type": "UserCreated", "eventId": "1", "timestamp": T, "userId": 1, "data": {"a": 1}},
        {"event_name": "UserCreated", "id": "1", "occurred_at": T, "campus": "north"},
    ],
    "xapi": [
        {
            "id": "7d8dc490-2885-4cd1-abad-bb9627c88fb6",
            "actor": {"account": {"homePage": "http://lms", "name": "8"}},
            "verb": {"id": "http://adlnet.gov/expapi/verbs/completed"},
            "object": {
                "id": "http://lms/mod/quiz/attempt.php?attempt=3&cmid=6",
                "definition": {"type": "http://adlnet.gov/expapi/activities/attempt"},
            },
            "result": {"score": {"raw": 1, "min": 0, "max": 2, "scaled": 0.5}, "success": True},
            "context": {
                "registration": "r",
                "instructor": {"account": {"name": "2"}},
                "contextActivities": {"parent": [{"id": "http://lms/course/view.php?id=8"}]},
                "extensions": {
                    "http://lrs.learninglocker.net/define/extensions/info": {
                        "event_name": "\\mod_quiz\\event\\attempt_submitted"
                    }
                },
            },
            "timestamp": T,
        },
        {
            "actor": {"mbox": "mailto:a@b.c"},
            "verb": {"id": "v/viewed"},
            "object": {"id": "o"},
            "stored": T,
        },
    ],
    "edx": [
        {
            "name": "problem_check",
            "event_type": "problem_check",
            "event_source": "server",
            "context": {"user_id": 6, "course_id": "c", "module": {"usage_key": "k"}},
            "event": {"problem_id": "p", "attempts": 2, "grade": 1, "max_grade": 2},
            "time": T,
        },
        {
            "event_type": "play_video",
            "event_source": "browser",
            "context": {"user_id": ""},
            "event": '{"id": "v", "code": "x"}',
            "time": T,
        },
    ],
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["", "NaN", "{", "[1]", '{"a":"\\u0000"}', "\x00", "\ud800", "a" * 1001, T, "1e400", "null"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, mapping: str) -> str:
    """A good line with something else at up to three places, or cut, or with a byte changed."""
    base = copy.deepcopy(draw(st.sampled_from(BASES[mapping])))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(base)[1:]))
        inner = base
        for key in path[:-1]:
            inner = inner[key]
        if draw(st.booleans()):
            inner[path[-1]] = draw(VALUES)
        else:
            del inner[path[-1]]
        if len(places(base)) == 1:
            break
    return json.dumps(base)


def lines_of(mapping: str) -> st.SearchStrategy[list[bytes]]:
    whole = changed(mapping).map(lambda text: text.encode("utf-8", "surrogatepass"))
    cut = st.tuples(whole, st.integers(0, 400)).map(lambda pair: pair[0][: pair[1]])
    scratched = st.tuples(whole, st.integers(0, 400), st.binary(max_size=3)).map(
        lambda three: three[0][: three[1]] + three[2] + three[0][three[1] + 1 :]
    )
    return st.lists(whole | whole | cut | scratched | st.binary(max_size=40), max_size=8)


def table(lines: list[bytes], ordinals: list[int]) -> pa.Table:
    return pa.table(
        {"ordinal": pa.array(ordinals, pa.int32()), "line": pa.array(lines, pa.binary())}
    )


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_line_is_an_event_or_a_refusal_whatever_comes_with_it(mapping):
    """Nothing raises, nothing is lost, and the batches make no difference."""

    @settings(max_examples=30, deadline=None)
    @given(lines=lines_of(mapping))
    def check(lines: list[bytes]) -> None:
        together = map_lines(table(lines, list(range(len(lines)))), mapping)
        found = together.events["ordinal"].to_pylist() + together.refused["ordinal"].to_pylist()
        assert sorted(found) == list(range(len(lines)))
        alone = [map_lines(table([one], [at]), mapping) for at, one in enumerate(lines)]
        assert together.events.to_pylist() == [r for m in alone for r in m.events.to_pylist()]
        assert together.refused.to_pylist() == [r for m in alone for r in m.refused.to_pylist()]
        for row in together.refused.to_pylist():
            assert row["original"] == lines[row["ordinal"]]
        for row in together.events.to_pylist():
            texts = [value for value in row.values() if isinstance(value, str)]
            assert not any("\x00" in text for text in texts)
            if row["other"] is not None:
                json.loads(row["other"], parse_constant=pytest.fail)

    check()


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_quick_check_lets_nothing_pass_that_the_thorough_one_refuses(mapping, monkeypatch):
    """Both give the same events; the quick one only spares the questions."""
    from theon.intake import mapped

    @settings(max_examples=15, deadline=None)
    @given(lines=lines_of(mapping))
    def check(lines: list[bytes]) -> None:
        given_ = table(lines, list(range(len(lines))))
        usual = map_lines(given_, mapping)
        real = mapped._run

        def nothing_fits(engine: Any, rows: pa.Table, name: str, sql: str) -> pa.Table:
            found = real(engine, rows, name, sql)
            if name.endswith("_quick"):
                at = found.schema.get_field_index("fits")
                return found.set_column(at, "fits", pa.array([False] * found.num_rows, pa.bool_()))
            return found

        with monkeypatch.context() as patched:
            patched.setattr(mapped, "_run", nothing_fits)
            thorough = map_lines(given_, mapping)
        assert usual.events.equals(thorough.events)
        assert usual.refused.equals(thorough.refused)

    check()


def fits(sent: str) -> bool:
    """By the published schema."""
    return jsonschema_rs.is_valid(native_schema(), json.loads(sent))


def taken(sent: str) -> bool:
    """By the mapping."""
    lines = pa.table({"ordinal": pa.array([0], pa.int32()), "line": [sent]})
    return map_lines(lines, "native").refused.num_rows == 0


@given(sent=changed("native"))
def test_what_the_published_schema_refuses_is_refused(sent: str) -> None:
    if taken(sent):
        assert fits(sent)


@given(number=st.integers(-(1 << 64), 1 << 65) | st.sampled_from([-(1 << 63), (1 << 64) - 1]))
def test_the_published_schema_says_which_whole_numbers_are_ids(number: int) -> None:
    for moved in (number - 1, number, number + 1):
        sent = json.dumps({"id": moved, "event_name": "x", "occurred_at": T})
        assert fits(sent) == taken(sent)
