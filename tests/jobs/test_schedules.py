"""Schedules: once per fire time, whoever ticks, crashes, pauses or puts the clock back."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any, cast

import pytest
from tests.jobs.schedule_bench import (
    DISTRICT,
    HOURLY,
    KINDS,
    START,
    Bench,
    Count,
    at,
    end_all,
)

from theon.errors import ConflictError, InputError
from theon.jobs.errors import UnknownKindError
from theon.jobs.schedules import CAUGHT_UP_AT_MOST, Decision, Schedule, Scheduler, decide
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

# -- declaring -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": " "}, "has a name"),
        ({"cron": "0 0 30 2 *"}, "never fires"),
        ({"cron": "61 * * * *"}, "bad minute"),
        ({"timezone": "Mars/Base"}, "no time zone 'Mars/Base'|'Mars/Base' is no time zone"),
        ({"catch_up": "some"}, "no way to catch up 'some'"),
        ({"priority": "highest"}, "no priority 'highest'"),
        ({"catch_up": "all", "may_overlap": False}, "may not overlap"),
    ],
)
def test_a_schedule_that_could_not_work_is_refused_where_it_is_declared(
    change: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        replace(HOURLY, **change)


def test_a_scheduler_refuses_schedules_that_do_not_fit_the_kinds() -> None:
    """An unknown kind, arguments that do not validate, a name that is there twice."""
    nowhere = cast(Store, None)
    with pytest.raises(UnknownKindError, match=r"test\.cuont"):
        Scheduler(nowhere, KINDS, [replace(HOURLY, kind="test.cuont")])
    with pytest.raises(InputError, match="upto"):
        Scheduler(nowhere, KINDS, [replace(HOURLY, arguments={"upto": "far"})])
    with pytest.raises(InputError, match="two schedules"):
        Scheduler(nowhere, KINDS, [HOURLY, HOURLY])


def test_what_is_declared_is_what_is_there(store: Store) -> None:
    """A new line fires from now on; a pause stays; what is gone is removed with its runs."""
    bench = Bench(store, HOURLY, replace(HOURLY, name="other"))
    bench.tick("2026-03-02 10:00")
    with store.transaction(DISTRICT) as conn:
        bench.scheduler.pause(conn, "other", "ada")
    bench.clock.now = at("2026-03-02 10:20")
    changed = replace(HOURLY, name="other", cron="*/15 * * * *", arguments=Count(7))
    later = Scheduler(store, KINDS, [changed], clock=bench.clock)
    assert later.tick() == 0
    assert bench.do("SELECT name, cron, arguments, paused_by FROM theon.job_schedules") == [
        ("other", "*/15 * * * *", {"upto": 7}, "ada")
    ]
    assert bench.runs("hourly") == {}
    with store.transaction(DISTRICT) as conn:
        later.resume(conn, "other", "ada")
    bench.clock.now = at("2026-03-02 10:30")
    assert later.tick() == 1
    assert bench.runs("other") == {"02 10:00": "enqueued", "02 10:30": "enqueued"}


def test_a_schedule_per_campus_runs_in_the_time_of_each(store: Store) -> None:
    """Two in the morning comes when it comes there; a campus that is added gets its own."""
    add_campus(store, "london", "Europe/London")
    add_campus(store, "york", "America/New_York")
    nightly = Schedule("nightly", "test.count", "0 2 * * *", per_campus=True)
    bench = Bench(store, nightly)
    moments = {
        "2026-03-29 01:00": ("london", "29 01:00"),  # 02:00 there, one hour ahead since today
        "2026-03-29 02:00": ("district", "29 02:00"),
        "2026-03-29 06:00": ("york", "29 06:00"),
    }
    bench.tick("2026-03-28 12:00")
    end_all(store)
    for moment in moments:
        assert bench.tick(moment) == 1, moment
    for campus, fire_at in moments.values():
        assert bench.runs("nightly", campus)[fire_at] == "enqueued"
    add_campus(store, "kolkata", "Asia/Kolkata")
    bench.tick("2026-03-29 06:01")
    end_all(store)
    assert bench.tick("2026-03-29 20:30") == 1
    assert bench.runs("nightly", "kolkata") == {"29 20:30": "enqueued"}
    owners = bench.do("SELECT DISTINCT campus_id FROM theon.jobs")
    assert len(owners) == 4


@pytest.mark.parametrize(
    ("timezone", "before", "moments"),
    [
        ("Europe/London", "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        ("Europe/London", "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        ("America/New_York", "2026-10-31 12:00", ["2026-11-01 05:30", "2026-11-02 06:30"]),
    ],
)
def test_half_past_one_comes_once_a_day_whatever_clocks_do(
    store: Store, timezone: str, before: str, moments: list[str]
) -> None:
    """Looked at every ten minutes over two nights."""
    bench = Bench(store, replace(HOURLY, cron="30 1 * * *", timezone=timezone), start=at(before))
    for _ in range(6 * 44):
        bench.clock.now += timedelta(minutes=10)
        bench.scheduler.tick()
    assert bench.runs() == {f"{at(moment):%d %H:%M}": "enqueued" for moment in moments}


# -- what was missed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ("latest", ["missed", "missed", "enqueued"]),
        ("all", ["enqueued", "enqueued", "enqueued"]),
        ("none", ["missed", "missed", "missed"]),
    ],
)
def test_runs_that_were_missed_are_caught_up_as_declared(
    store: Store, catch_up: str, expected: list[str]
) -> None:
    bench = Bench(store, replace(HOURLY, catch_up=catch_up))
    assert bench.tick("2026-03-02 12:20") == expected.count("enqueued")
    assert list(bench.runs().values()) == expected
    assert bench.tick("2026-03-02 12:21") == 0
    assert bench.jobs() == expected.count("enqueued")


def test_a_run_that_is_on_time_stands_for_those_that_were_missed(store: Store) -> None:
    """Within a minute is on time, also for a schedule that catches nothing up."""
    for catch_up in ("latest", "none"):
        found = decide("0 * * * *", "UTC", catch_up, START, at("2026-03-02 11:01"))
        assert [d.outcome for d in found] == ["missed", "enqueued"]
    late = decide("0 * * * *", "UTC", "none", START, at("2026-03-02 11:01:01"))
    assert [d.outcome for d in late] == ["missed", "missed"]


def test_of_very_many_missed_runs_the_latest_are_caught_up_and_the_others_counted() -> None:
    """A year of minutes neither floods the queue nor the table."""
    now = START + timedelta(days=30)
    found = decide("* * * * *", "UTC", "all", START, now)
    older, *rest = found
    assert older == Decision(rest[0].fire_at - timedelta(minutes=1), "missed", older.fire_times)
    assert Counter(d.outcome for d in rest) == {"enqueued": CAUGHT_UP_AT_MOST + 2}
    assert older.fire_times + len(rest) == 30 * 24 * 60


def test_what_cannot_be_enqueued_stops_no_other_schedule(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in the log, and decided once it can be."""
    bench = Bench(store, HOURLY, replace(HOURLY, name="other"))
    bench.do("UPDATE theon.job_schedules SET kind = 'gone.kind' WHERE name = 'hourly'")
    assert bench.tick("2026-03-02 10:00") == 1
    assert bench.tick("2026-03-02 10:00:01") == 0
    assert len(caplog.records) == 1  # not once a second
    assert (bench.runs("hourly"), bench.runs("other")) == ({}, {"02 10:00": "enqueued"})
    assert "schedule hourly cannot be decided now: jobs: there is no job 'gone.kind'" in caplog.text
    bench.do("UPDATE theon.job_schedules SET kind = 'test.count' WHERE name = 'hourly'")
    assert bench.tick("2026-03-02 10:01") == 1


# -- overlap, pause, by hand ---------------------------------------------------------------


def test_a_run_does_not_begin_while_the_former_one_has_not_ended(store: Store) -> None:
    """It is recorded as overlapped; whether queued, running or waiting to be retried."""
    bench = Bench(store, replace(HOURLY, may_overlap=False))
    assert bench.tick("2026-03-02 10:00") == 1
    assert bench.tick("2026-03-02 11:00") == 0
    end_all(store, "failed")
    assert bench.tick("2026-03-02 12:00") == 1
    assert list(bench.runs().values()) == ["enqueued", "overlapped", "enqueued"]
    # A dead letter that a person retries runs again.
    end_all(store)
    bench.do("UPDATE theon.jobs SET state = 'scheduled' WHERE state = 'failed'")
    assert bench.tick("2026-03-02 13:00") == 0


def test_a_long_run_is_not_forgotten_behind_many_that_were_skipped(store: Store) -> None:
    bench = Bench(store, replace(HOURLY, cron="* * * * *", may_overlap=False))
    bench.tick("2026-03-02 09:31")
    bench.tick("2026-03-02 15:00")
    bench.tick("2026-03-02 21:00")
    assert bench.jobs() == 1


def test_a_schedule_that_rests_runs_nothing_and_catches_nothing_up(store: Store) -> None:
    bench = Bench(store, replace(HOURLY, catch_up="all"))
    with store.transaction(DISTRICT) as conn:
        assert bench.scheduler.pause(conn, "hourly", "ada") == 1
    assert bench.tick("2026-03-02 12:00") == 0
    with store.transaction(DISTRICT) as conn:
        (state,) = bench.scheduler.upcoming(conn)
        assert (state.paused_by, state.upcoming) == ("ada", ())
        assert bench.scheduler.resume(conn, "hourly", "bob") == 1
    assert bench.tick("2026-03-02 12:30") == 0
    assert bench.tick("2026-03-02 13:00") == 1
    assert bench.runs() == {"02 13:00": "enqueued"}
    audit = bench.do("SELECT actor, action, subject FROM theon.job_audit ORDER BY id")
    assert audit == [("ada", "pause", "schedule hourly"), ("bob", "resume", "schedule hourly")]


def test_a_run_by_hand_is_one_more(store: Store) -> None:
    """Also while it rests; not while the former one runs, unless they may overlap."""
    bench = Bench(store, replace(HOURLY, may_overlap=False, arguments=Count(3), priority="high"))
    with store.transaction(DISTRICT) as conn:
        bench.scheduler.pause(conn, "hourly", "ada")
        (job_id,) = bench.scheduler.run_now(conn, "hourly", "ada")
    row = bench.do("SELECT owner, arguments, priority FROM theon.jobs WHERE id = :id", id=job_id)
    assert row == [("ada", {"upto": 3}, 1)]
    assert bench.runs() == {"02 09:30": "by hand"}
    bench.clock.now += timedelta(seconds=1)
    with (
        pytest.raises(ConflictError, match=f"has not ended: job {job_id}"),
        store.transaction(DISTRICT) as conn,
    ):
        bench.scheduler.run_now(conn, "hourly", "ada")
    with (
        pytest.raises(InputError, match="no schedule 'hurly'"),
        store.transaction(DISTRICT) as conn,
    ):
        bench.scheduler.run_now(conn, "hurly", "ada")


def test_what_comes_and_what_was_is_shown(store: Store) -> None:
    """Next fire times, the last runs with the states of their jobs, how many were missed."""
    bench = Bench(store, replace(HOURLY, summary="Count up."))
    now = bench.do("SELECT date_trunc('hour', clock_timestamp())")[0][0].astimezone(UTC)
    seen_until = now + timedelta(minutes=1)
    bench.do("UPDATE theon.job_schedules SET seen_until = :at", at=seen_until)
    for hours in (1, 4):
        bench.clock.now = now + timedelta(hours=hours)
        bench.scheduler.tick()
        end_all(store)
    with store.transaction(DISTRICT) as conn:
        (state,) = bench.scheduler.upcoming(conn, runs=2)
    assert state.summary == "Count up."
    assert state.upcoming == tuple(bench.clock.now + timedelta(hours=n) for n in range(1, 6))
    assert [(r.outcome, r.job_state) for r in state.runs] == [
        ("enqueued", "completed"), ("missed", None),
    ]  # fmt: skip
    assert (state.runs[0].fire_at, state.missed) == (bench.clock.now, 2)


def test_a_zone_that_this_machine_does_not_know_hides_no_schedule(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """It is shown without fire times, the others fire, and the log says why it does not."""
    bench = Bench(store, HOURLY, replace(HOURLY, name="lost"))
    bench.do("UPDATE theon.job_schedules SET timezone = 'Mars/Base' WHERE name = 'lost'")
    assert bench.tick("2026-03-02 10:00") == 1
    with store.transaction(DISTRICT) as conn:
        hourly, lost = bench.scheduler.upcoming(conn)
        with pytest.raises(InputError, match="no schedule"):
            bench.scheduler.pause(conn, "a\0b", "ada", campus="\ud800")
    assert (len(hourly.upcoming), lost.upcoming) == (5, ())
    assert "schedule lost of district" in caplog.text


def test_a_campus_sees_and_changes_its_own_schedules_only(store: Store) -> None:
    """Pausing in a campus's scope leaves its sibling and the district alone."""
    add_campus(store, "north", "UTC")
    add_campus(store, "south", "UTC")
    bench = Bench(store, replace(HOURLY, per_campus=True), replace(HOURLY, name="whole"))
    with store.transaction(Scope("north")) as conn:
        assert [(s.name, s.campus) for s in bench.scheduler.upcoming(conn)] == [("hourly", "north")]
        assert bench.scheduler.pause(conn, "hourly", "nora") == 1
        for name, campus in (("whole", None), ("hourly", "south")):
            with pytest.raises(InputError, match="in this scope"):
                bench.scheduler.run_now(conn, name, "nora", campus=campus)
        (job_id,) = bench.scheduler.run_now(conn, "hourly", "nora")
    bench.tick("2026-03-02 10:00")
    assert bench.runs(campus="north") == {"02 09:30": "by hand"}
    assert bench.runs(campus="south") == {"02 10:00": "enqueued"}
    whose = bench.do("SELECT c.slug FROM theon.jobs JOIN theon.campuses AS c ON c.id = campus_id"
                     " WHERE jobs.id = :id", id=job_id)  # fmt: skip
    assert whose == [("north",)]
