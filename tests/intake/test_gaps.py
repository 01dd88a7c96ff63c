"""Gaps are noticed once, warned of, and closed when they are filled, explained or over."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from moodle_logs import log_row, write_log
from sqlalchemy import text

from theon.errors import ConflictError, InputError
from theon.intake import moodle_ids
from theon.intake.gap_search import look_for_gaps
from theon.intake.gaps import (
    KAFKA_OFFSETS,
    Gap,
    KeptGap,
    NoSuchGapError,
    accept_gap,
    get_gap,
    list_gaps,
    notice,
)
from theon.intake.moodle_ids import find_holes
from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]
DISTRICT = Scope.district()


def offsets(first: int, last: int) -> Gap:
    words = f"Offsets {first} to {last} were gone before they were read."
    return Gap(KAFKA_OFFSETS, "kafka:user-events", words, first, last, last - first + 1)


def gaps(store: Store, scope: str = "district", **which: Any) -> list[KeptGap]:
    with store.transaction(Scope(scope)) as conn:
        return list_gaps(conn, **which)


def test_a_gap_is_news_once_and_the_same_gap_is_the_same_row(store: Store) -> None:
    campus = get_campus(store, "district")
    with store.transaction(DISTRICT) as conn:
        assert notice(conn, campus.id, offsets(5, 9))
        assert not notice(conn, campus.id, offsets(5, 9))
        assert notice(conn, campus.id, offsets(20, 29))
    assert [(g.first_id, g.missing, g.state) for g in gaps(store)] == [
        (20, 10, "open"), (5, 5, "open"),
    ]  # fmt: skip


def test_a_gap_of_the_district_is_not_a_schools_business(store: Store, lincoln: str) -> None:
    with store.transaction(DISTRICT) as conn:
        notice(conn, get_campus(store, "district").id, offsets(5, 9))
    assert gaps(store, lincoln) == []
    [gap] = gaps(store)
    with store.transaction(Scope(lincoln)) as conn, pytest.raises(NoSuchGapError):
        get_gap(conn, gap.id)


def test_a_gap_is_accepted_once_with_a_reason_and_stays_so(store: Store) -> None:
    campus = get_campus(store, "district")
    with store.transaction(DISTRICT) as conn:
        notice(conn, campus.id, offsets(5, 9))
    [gap] = gaps(store)
    with store.transaction(DISTRICT) as conn, pytest.raises(InputError):
        accept_gap(conn, gap.id, "ada", " ")
    with store.transaction(DISTRICT) as conn:
        done = accept_gap(conn, gap.id, "ada", "A test topic.")
    assert (done.state, done.ended_by) == ("accepted", "ada")
    assert done.explanation.endswith("A test topic.")
    with store.transaction(DISTRICT) as conn, pytest.raises(ConflictError):
        accept_gap(conn, gap.id, "ada", "Again.")
    with store.transaction(DISTRICT) as conn:
        assert not notice(conn, campus.id, offsets(5, 9))
    assert gaps(store) == []
    assert [g.state for g in gaps(store, state=None)] == ["accepted"]


# -- missing ids ---------------------------------------------------------------------------


@how(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    ids=st.sets(st.integers(1, 60), min_size=1),
    width=st.sampled_from([1, 3, 8, 65_536]),
)
def test_holes_are_all_ids_between_lowest_and_highest_that_are_not_there(
    ids: set[int], width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """However the ids lie across the buckets in which they are looked through."""
    monkeypatch.setattr(moodle_ids, "BUCKET_IDS", width)
    file = tmp_path / "ids.parquet"
    import duckdb

    rows = ", ".join(f"('moodle:{n}', TIMESTAMPTZ '2026-01-01 00:00:{n % 60:02}+00')" for n in ids)
    duckdb.sql(
        f"COPY (SELECT * FROM (VALUES {rows}, ('moodle:quiz:7', now()), ('report:5:1', now()))"
        f" AS e (event_id, occurred_at)) TO '{file}' (FORMAT parquet)"
    )

    class Lake:
        def files(self, campus: str) -> list[Any]:
            return [type("File", (), {"path": str(file)})]

    found = find_holes(Lake(), settings, "lincoln", [(n, n) for n in range(1, 61)])  # type: ignore[arg-type]
    missing = {n for run in found.told for n in range(run.first, run.last + 1)}
    assert missing == set(range(min(ids), max(ids) + 1)) - ids
    assert found.missing == len(missing)
    assert (found.lowest, found.highest) == (min(ids), max(ids))
    assert all(run.first - 1 in ids and run.last + 1 in ids for run in found.told)
    assert {n for n, _ in found.filled} == set(range(1, 61)) - missing


def test_where_ids_come_in_steps_only_unusual_holes_are_told(
    take: Take, lake: EventLake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster of three databases gives every third id."""
    monkeypatch.setattr(moodle_ids, "MOST_RUNS", 20)
    rows = [log_row(n) for n in range(1, 200, 3) if not 80 < n < 120]
    take(write_log(tmp_path / "log.csv", rows), "moodle-logstore")
    found = find_holes(lake, settings, "lincoln")
    assert found.runs > 20
    assert [(run.first, run.last) for run in found.told] == [(80, 120)]


def test_missing_ids_are_noticed_warned_of_and_closed_when_they_come(
    store: Store, lake: EventLake, settings: Settings, take: Take, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    times = {n: str(1_789_286_400 + n) for n in range(10)}
    rows = [log_row(n, timecreated=times[n]) for n in (1, 2, 5, 9)]
    take(write_log(tmp_path / "log.csv", rows), "moodle-logstore")
    with caplog.at_level(logging.WARNING):
        assert look_for_gaps(store, lake, settings, DISTRICT).noticed == 2
    assert "ids 3 to 4" in caplog.text
    assert look_for_gaps(store, lake, settings, DISTRICT).noticed == 0  # nothing is read again
    second, first = gaps(store)
    assert (first.first_id, first.last_id, first.missing) == (3, 4, 2)
    assert (second.first_id, second.last_id, second.missing) == (6, 8, 3)
    assert first.from_at == datetime.fromtimestamp(int(times[2]), UTC)
    assert first.to_at == datetime.fromtimestamp(int(times[5]), UTC)
    late = [log_row(n, timecreated=times[n]) for n in (3, 4, 7)]
    take(write_log(tmp_path / "late.csv", late), "moodle-logstore")
    found = look_for_gaps(store, lake, settings, DISTRICT)
    assert (found.noticed, found.ended, found.open) == (2, 2, 2)
    assert {(g.first_id, g.last_id) for g in gaps(store)} == {(6, 6), (8, 8)}
    assert {(g.first_id, g.last_id) for g in gaps(store, state="repaired")} == {(3, 4), (6, 8)}


def test_parts_of_an_explained_gap_are_explained(
    store: Store, lake: EventLake, settings: Settings, take: Take, tmp_path: Path
) -> None:
    take(write_log(tmp_path / "log.csv", [log_row(1), log_row(9)]), "moodle-logstore")
    look_for_gaps(store, lake, settings, DISTRICT)
    [gap] = gaps(store)
    with store.transaction(DISTRICT) as conn:
        accept_gap(conn, gap.id, "ada", "Deleted in Moodle.")
    take(write_log(tmp_path / "more.csv", [log_row(5)]), "moodle-logstore")
    assert look_for_gaps(store, lake, settings, DISTRICT).noticed == 0


# -- silences ------------------------------------------------------------------------------

# Wednesday, in the fifth week.
NOW = datetime(2026, 9, 30, 12, 5, tzinfo=UTC)


def deliver(store: Store, campus: str, source: str, hours: list[datetime]) -> None:
    rows = [
        {"source": source, "hour": hour, "last_at": hour + timedelta(minutes=50), "campus": campus}
        for hour in hours
    ]
    with store.transaction(Scope(campus)) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.delivery_counts (campus_id, source, hour, received, accepted,"
                " last_at) SELECT id, :source, :hour, 10, 10, :last_at FROM theon.campuses"
                " WHERE slug = :campus"
            ),
            rows,
        )


def test_a_source_that_stops_is_noticed_and_closed_when_it_sends_again(
    store: Store, lake: EventLake, settings: Settings, lincoln: str
) -> None:
    add_campus(store, "elm", "UTC")
    hours = [
        datetime(2026, 8, 31, tzinfo=UTC) + timedelta(days=day, hours=hour)
        for day in range(31)
        for hour in range(8, 16)
        if day % 7 < 5
    ]
    deliver(store, lincoln, "http:lms", [hour for hour in hours if hour < NOW - timedelta(hours=3)])
    deliver(store, lincoln, "replay:http:lms", [h for h in hours if h < NOW - timedelta(days=1)])
    deliver(store, "elm", "http:lms", [hour for hour in hours if hour <= NOW])
    found = look_for_gaps(store, lake, settings, DISTRICT, NOW - timedelta(hours=1, minutes=6))
    assert found.noticed == 0
    assert look_for_gaps(store, lake, settings, DISTRICT, NOW).noticed == 1
    assert look_for_gaps(store, lake, settings, DISTRICT, NOW + timedelta(hours=1)).noticed == 0
    [gap] = gaps(store)
    assert (gap.campus, gap.kind, gap.source) == ("lincoln", "silence", "http:lms")
    assert gap.from_at == datetime(2026, 9, 30, 9, 50, tzinfo=UTC)
    deliver(store, lincoln, "http:lms", [datetime(2026, 9, 30, 14, tzinfo=UTC)])
    assert look_for_gaps(store, lake, settings, DISTRICT, NOW + timedelta(hours=3)).ended == 1
    [gap] = gaps(store, state="repaired")
    assert gap.to_at == datetime(2026, 9, 30, 14, tzinfo=UTC)
