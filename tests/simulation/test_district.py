"""The simulated district keeps what it promises, and is the same for the same seed."""

import csv
import hashlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pytest

from theon.errors import InputError
from theon.simulation import (
    Delivery,
    last_sunday_before,
    plan_district,
    write_district,
    write_logstore,
)
from theon.simulation.days import Block, simulate_days
from theon.simulation.moodle_events import KINDS

UNTIL = date(2026, 11, 15)  # London's clocks change on 25 October, New York's on 1 November
HEADER = (
    "id,eventname,component,action,target,objecttable,objectid,crud,edulevel,contextid,"
    "contextlevel,contextinstanceid,userid,courseid,relateduserid,anonymous,other,timecreated,"
    "origin,ip,realuserid"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Delivery]:
    district = plan_district(until=UNTIL, learners=90, courses=9)
    return write_district(district, tmp_path_factory.mktemp("district"), threads=1)


@pytest.fixture(scope="module")
def usual() -> list[Block]:
    """All rows of the usual district, a block per campus."""
    district = plan_district(until=UNTIL)
    return [Block.join(list(simulate_days(district, campus))) for campus in range(3)]


@pytest.fixture
def log(small: list[Delivery]) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as db:
        for name, path in (("main", small[0].main), ("late", small[0].late)):
            db.execute(
                f"CREATE TABLE {name} AS SELECT * FROM read_csv(?, header = true, "
                "all_varchar = true)",
                [str(path)],
            )
        yield db


def _digests(deliveries: list[Delivery]) -> list[str]:
    files = [path for d in deliveries for path in (d.main, d.late)]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(
    small: list[Delivery], tmp_path: Path
) -> None:
    again = write_district(plan_district(until=UNTIL, learners=90, courses=9), tmp_path, threads=4)
    assert _digests(again) == _digests(small)


def test_another_seed_gives_another_district(small: list[Delivery], tmp_path: Path) -> None:
    other = write_district(plan_district(until=UNTIL, seed=2, learners=90, courses=9), tmp_path)
    assert not set(_digests(other)) & set(_digests(small))


def test_files_have_the_columns_of_moodles_log(small: list[Delivery]) -> None:
    for delivery in small:
        for path in (delivery.main, delivery.late):
            with path.open(encoding="utf-8") as file:
                assert file.readline().strip() == HEADER


def test_counts_given_are_the_rows_written(small: list[Delivery]) -> None:
    for delivery in small:
        rows = []
        for path in (delivery.main, delivery.late):
            with path.open(encoding="utf-8", newline="") as file:
                rows.append(sum(1 for _ in csv.reader(file)) - 1)
        assert rows == [delivery.events, delivery.late_events + delivery.duplicates]
        assert delivery.late_events > 0
        assert delivery.duplicates > 0


def test_the_second_delivery_is_late_events_and_the_same_rows_again(
    log: duckdb.DuckDBPyConnection, small: list[Delivery]
) -> None:
    again = log.sql("SELECT count(*) FROM (FROM late INTERSECT ALL FROM main)").fetchall()
    assert again == [(small[0].duplicates,)]
    new = log.sql("SELECT count(*), min(id::INT) FROM late ANTI JOIN main USING (id)").fetchall()
    assert new == [(small[0].late_events, small[0].events + 1)]


def test_late_events_fall_into_hours_that_were_delivered(log: duckdb.DuckDBPyConnection) -> None:
    outside = log.sql(
        "SELECT count(*) FROM late ANTI JOIN (SELECT DISTINCT timecreated::INT // 86400 AS day "
        "FROM main) AS m ON late.timecreated::INT // 86400 = m.day"
    ).fetchall()
    assert outside == [(0,)]
    hours = log.sql(
        "SELECT count(DISTINCT l.timecreated::INT // 3600) FROM late AS l SEMI JOIN main AS m "
        "ON l.timecreated::INT // 3600 = m.timecreated::INT // 3600 WHERE l.id NOT IN "
        "(SELECT id FROM main)"
    ).fetchall()
    assert hours[0][0] >= 3


def test_ids_are_in_the_order_of_time_and_unique(log: duckdb.DuckDBPyConnection) -> None:
    rows = log.sql("SELECT count(*), count(DISTINCT id), min(id::INT), max(id::INT) FROM main")
    count, distinct, first, last = rows.fetchall()[0]
    assert (distinct, first, last) == (count, 1, count)
    # Only what was going on at midnight may be numbered out of order.
    jumps = log.sql(
        "SELECT count(*) FROM (SELECT timecreated::INT - lag(timecreated::INT) OVER "
        "(ORDER BY id::INT) AS step FROM main) WHERE step < 0"
    ).fetchall()
    assert jumps[0][0] <= 56


def test_event_names_give_component_action_and_target(log: duckdb.DuckDBPyConnection) -> None:
    rows = log.sql("SELECT DISTINCT eventname, component, action, target FROM main").fetchall()
    assert len(rows) > 25
    for name, component, action, target in rows:
        assert name == f"\\{component}\\event\\{target}_{action}"


def test_there_is_everything_that_must_not_count(usual: list[Block]) -> None:
    for rows in usual:
        anonymous = np.array([kind.anonymous for kind in KINDS])[rows.kind]
        cli = np.array([kind.origin == "cli" for kind in KINDS])[rows.kind]
        assert (anonymous == 1).any()
        assert cli.any()
        assert (rows.real_user > 0).any()
        assert (rows.user <= 0).any()
        assert (rows.course == 0).any()


def test_the_usual_district_has_a_million_events_of_1500_learners_and_40_courses(
    usual: list[Block],
) -> None:
    assert sum(len(rows) for rows in usual) >= 1_000_000
    learners = sum(len(np.unique(rows.user[rows.user > 100])) for rows in usual)
    assert 1450 <= learners <= 1500
    assert sum(len(np.unique(rows.course[rows.course > 0])) for rows in usual) == 40


def test_school_life_has_its_rhythm(usual: list[Block]) -> None:
    """Mondays are the peak, weekends are quiet, nights are nearly empty, evenings are not."""
    for campus, rows in zip(plan_district(until=UNTIL).campuses, usual, strict=True):
        local = _local(rows, campus.timezone)
        first = datetime(2026, 9, 21, tzinfo=UTC).timestamp()
        day = ((local - first) // 86400).astype(int)
        holiday = np.zeros(len(day), dtype=bool)
        for start, end in campus.holidays:
            holiday |= (day >= start) & (day <= end)
        per_day = np.bincount(day % 7, minlength=7)
        assert per_day[0] == per_day.max() or campus.slug != "harbour"
        assert per_day[5:].sum() < 0.25 * per_day[:5].sum()
        hour = (local % 86400 // 3600).astype(int)
        by_hour = np.bincount(hour, minlength=24)
        assert by_hour[2:6].sum() < 0.01 * by_hour[9:15].sum()
        assert by_hour[19] > 0.3 * by_hour[9]
        weekday = (day % 7 < 5) & ~holiday
        assert holiday.sum() / len(np.unique(day[holiday])) < 0.3 * (
            weekday.sum() / len(np.unique(day[weekday]))
        )


def test_lessons_stay_where_they_are_on_the_wall_when_clocks_change(usual: list[Block]) -> None:
    """In London the first lesson is at 7:30 UTC before 25 October and at 8:30 UTC after it."""
    rows = usual[0]
    change = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()
    lessons = rows.user > 100
    for part, first_hour in ((rows.at < change, 7), (rows.at >= change, 8)):
        hours = np.bincount(rows.at[part & lessons] % 86400 // 3600, minlength=24)
        assert hours[first_hour] > 10 * hours[first_hour - 1]


def test_nothing_is_outside_the_period(usual: list[Block]) -> None:
    for campus, rows in zip(plan_district(until=UNTIL).campuses, usual, strict=True):
        zone = ZoneInfo(campus.timezone)
        assert rows.at.min() >= datetime(2026, 9, 21, tzinfo=zone).timestamp()
        assert rows.at.max() < datetime(2026, 11, 16, tzinfo=zone).timestamp()


def test_some_learners_are_engaged_and_some_go_quiet(usual: list[Block]) -> None:
    rows = usual[0]
    people = rows.user > 100
    per_learner = np.bincount(rows.user[people])[101:]
    assert np.quantile(per_learner, 0.9) > 4 * np.quantile(per_learner, 0.1)
    last_week = datetime(2026, 11, 9, tzinfo=UTC).timestamp()
    seen_last = set(np.unique(rows.user[people & (rows.at >= last_week)]))
    seen_before = set(np.unique(rows.user[people & (rows.at < last_week)]))
    assert 5 <= len(seen_before - seen_last) <= 100


def test_courses_differ_in_popularity(usual: list[Block]) -> None:
    for rows in usual:
        per_course = np.bincount(rows.course[rows.course > 0])
        per_course = per_course[per_course > 0]
        assert per_course.max() > 2 * per_course.min()


@pytest.mark.parametrize("events", [30_000, 120_000])
def test_the_generator_scales_to_a_number_of_events(tmp_path: Path, events: int) -> None:
    path = tmp_path / "log.csv"
    written = write_logstore(path, events=events, until=UNTIL, weeks=4)
    assert written == pytest.approx(events, rel=0.1)
    with path.open(encoding="utf-8", newline="") as file:
        assert sum(1 for _ in csv.reader(file)) - 1 == written
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize("weekday", range(7))
def test_the_last_sunday_lies_before_the_day_and_within_a_week(weekday: int) -> None:
    day = date(2026, 11, 16) + timedelta(days=weekday)
    sunday = last_sunday_before(day)
    assert sunday.isoweekday() == 7
    assert timedelta(0) < day - sunday <= timedelta(days=7)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"until": date(2026, 11, 14)}, "2026-11-14 is not a Sunday"),
        ({"learners": 29}, "29 learners"),
        ({"courses": 2}, "2 courses"),
        ({"weeks": 0}, "0 weeks"),
        ({"seed": -1}, "seed -1"),
        ({"events": 0}, "0 events"),
    ],
)
def test_a_plan_that_cannot_be_says_which_argument(given: dict[str, object], named: str) -> None:
    arguments: dict[str, object] = {"until": UNTIL} | given
    with pytest.raises(InputError, match=named):
        plan_district(**arguments)  # type: ignore[arg-type]


def _local(rows: Block, timezone: str) -> np.ndarray:
    """Epoch seconds as if the wall clock were UTC, without the simulation's own tables."""
    with duckdb.connect() as db:
        db.register("t", {"at": rows.at})
        sql = 'SELECT epoch(timezone($zone, to_timestamp("at")))::BIGINT AS s FROM t'
        return db.execute(sql, {"zone": timezone}).fetchnumpy()["s"]
