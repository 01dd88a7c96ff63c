"""Courses and people in bulk: brought up to date, never doubled, never another campus's."""

import pyarrow as pa
import pytest
from sqlalchemy import text

from theon.errors import InputError
from theon.roster.campuses import Campus, add_campus
from theon.roster.people_and_courses import (
    COURSE_SCHEMA,
    PEOPLE_SCHEMA,
    upsert_courses,
    upsert_people,
)
from theon.store.engine import Store
from theon.store.scope import Scope


@pytest.fixture
def lincoln(store: Store) -> Campus:
    """A campus to fill."""
    return add_campus(store, "lincoln", "Europe/London")


def courses(store: Store, campus: Campus) -> dict[str, tuple[object, ...]]:
    with store.transaction(Scope(campus.slug)) as conn:
        rows = conn.execute(
            text("SELECT course_id, short_name, full_name, visible, deleted FROM theon.courses")
        )
        return {row[0]: tuple(row[1:]) for row in rows}


def test_courses_are_added_and_brought_up_to_date(store: Store, lincoln: Campus) -> None:
    """Only what changed is written; what the source does not say stays as it is."""
    first = pa.Table.from_pylist(
        [
            {"course_id": "6", "short_name": "M1", "full_name": 'Maths, "one"', "visible": False},
            {"course_id": "7", "short_name": None, "full_name": "", "deleted": None},
        ],
        COURSE_SCHEMA,
    )
    assert upsert_courses(store, lincoln, first) == 2
    assert courses(store, lincoln) == {
        "6": ("M1", 'Maths, "one"', False, False),
        "7": (None, "", True, False),
    }
    assert upsert_courses(store, lincoln, first) == 0
    second = pa.table({"course_id": ["6", "8"], "deleted": [True, False]})
    assert upsert_courses(store, lincoln, second) == 2
    assert courses(store, lincoln) == {
        "6": ("M1", 'Maths, "one"', False, True),
        "7": (None, "", True, False),
        "8": (None, None, True, False),
    }


def test_what_did_not_change_keeps_its_time(store: Store, lincoln: Campus) -> None:
    """`updated_at` says when a row last changed, not when it was last read."""
    rows = pa.table({"course_id": ["6", "7"], "full_name": ["a", "b"]})
    when = text("SELECT course_id, updated_at FROM theon.courses")
    upsert_courses(store, lincoln, rows)
    with store.transaction(Scope("lincoln")) as conn:
        before = {str(row[0]): row[1] for row in conn.execute(when)}
    upsert_courses(store, lincoln, pa.table({"course_id": ["6", "7"], "full_name": ["a", "c"]}))
    with store.transaction(Scope("lincoln")) as conn:
        after = {str(row[0]): row[1] for row in conn.execute(when)}
    assert after["6"] == before["6"]
    assert after["7"] > before["7"]


def test_people_of_two_campuses_do_not_mix(store: Store, lincoln: Campus) -> None:
    """The same id at two campuses is two people, each seen in its own scope."""
    south = add_campus(store, "south", "UTC")
    assert upsert_people(store, lincoln, pa.table({"user_id": ["1", "2"]})) == 2
    assert upsert_people(store, south, pa.table({"user_id": ["2"], "deleted": [True]})) == 1
    query = text("SELECT user_id, deleted FROM theon.people ORDER BY 1")
    with store.transaction(Scope("lincoln")) as conn:
        assert conn.execute(query).all() == [("1", False), ("2", False)]
    with store.transaction(Scope("south")) as conn:
        assert conn.execute(query).all() == [("2", True)]


def test_people_are_ids_and_nothing_more() -> None:
    """Neither the schema nor the table has a place for a name or an address."""
    assert PEOPLE_SCHEMA.names == ["user_id", "deleted"]


def test_a_stream_of_many_is_one_statement(store: Store, lincoln: Campus) -> None:
    """Any number of batches, added once and unchanged the second time."""
    people = pa.table({"user_id": pa.array(range(30_000)).cast(pa.string())})
    for expected in (30_000, 0):
        reader = pa.RecordBatchReader.from_batches(
            people.schema, iter(people.to_batches(max_chunksize=7_000))
        )
        assert upsert_people(store, lincoln, reader) == expected


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({"course_id": ["6", "6"]}, "course_id '6' 2 times"),
        ({"course_id": ["6", None]}, "without course_id"),
        ({"full_name": ["x"]}, "no column 'course_id'"),
        ({"course_id": ["6"], "email": ["x"]}, "unknown column 'email'"),
        ({"course_id": [6]}, "column 'course_id' is int64"),
        ({"course_id": ["6"], "visible": [1]}, "column 'visible' is int64"),
    ],
)
def test_rows_that_do_not_fit_are_refused_whole(
    store: Store, lincoln: Campus, rows: dict[str, list[object]], told: str
) -> None:
    """The message says what is wrong, and nothing is kept."""
    with pytest.raises(InputError) as caught:
        upsert_courses(store, lincoln, pa.table(rows))
    assert told in caught.value.message
    assert courses(store, lincoln) == {}
