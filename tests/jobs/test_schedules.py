"""Schedules: once per fire time, whoever ticks, crashes, pauses or puts the clock back."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any, ClassVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import Connection, text

from theon.errors import ConflictError, InputError
from theon.jobs import ledger
from theon.jobs.cron import fires
from theon.jobs.enqueue import NewJob, enqueue
from theon.jobs.errors import UnknownKindError
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Outcome
from theon.jobs.schedules import CAUGHT_UP_AT_MOST, Decision, Schedule, Scheduler, decide
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Count:
    """How far to count."""

    upto: int = 1


@job("test.count", queue="test")
def count(ctx: Any, args: Count) -> None:
    """Count."""


KINDS = Kinds([count])
HOURLY = Schedule("hourly", "test.count", "0 * * * *", timezone="UTC", may_overlap=True)
START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


def at(words: str) -> datetime:
    return datetime.fromisoformat(words).replace(tzinfo=UTC)


class Clock:
    """A clock that stands still until it is put."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now
        self.asked: Callable[[], None] | None = None  # what happens while somebody looks at it

    def __call__(self) -> datetime:
        if self.asked is not None:
            asked, self.asked = self.asked, None
            asked()
        return self.now


class Bench:
    """A scheduler, its clock, and what the tables say."""

    def __init__(self, store: Store, *schedules: Schedule, start: datetime = START) -> None:
        self.store, self.clock = store, Clock(start)
        self.scheduler = Scheduler(store, KINDS, schedules, clock=self.clock)
        self.scheduler.tick()

    def tick(self, words: str) -> int:
        self.clock.now = at(words)
        return self.scheduler.tick()

    def runs(self, name: str = "hourly", campus: str = "district") -> dict[str, str]:
        return {
            f"{fire_at:%d %H:%M}": outcome
            for fire_at, outcome in self.do(
                "SELECT fire_at, outcome FROM theon.job_schedule_runs AS r"
                " JOIN theon.campuses AS c ON c.id = r.campus_id"
                " WHERE schedule = :name AND c.slug = :campus ORDER BY fire_at",
                name=name,
                campus=campus,
            )
        }

    def do(self, statement: str, **values: Any) -> list[Any]:
        with self.store.transaction(DISTRICT) as conn:
            found = conn.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def jobs(self) -> int:
        return int(self.do("SELECT count(*) FROM theon.jobs")[0][0])


def end_all(store: Store, outcome: str = "completed") -> None:
    """Run every queued job to its end."""
    with store.transaction(DISTRICT) as conn:
        ids = conn.execute(text("SELECT id FROM theon.jobs WHERE state = 'queued'")).scalars()
        begun = ledger.start(conn, ledger.dispatch(conn, ids.all()), "w")
        ended = [Outcome(a.job_id, a.token, outcome, transient=False) for a in begun]
        ledger.finish(conn, ended)


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


# -- many schedulers -----------------------------------------------------------------------


def test_schedulers_that_tick_together_give_one_run_per_fire_time(store: Store) -> None:
    """Eight at once, on several campuses, through several hours."""
    for n in range(5):
        add_campus(store, f"c{n}", "UTC")
    schedules = [replace(HOURLY, per_campus=True), replace(HOURLY, name="all", catch_up="all")]
    clock = Clock()
    schedulers = [Scheduler(store, KINDS, schedules, clock=clock) for _ in range(8)]
    schedulers[0].tick()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            clock.now += timedelta(minutes=90)
            list(pool.map(lambda s: s.tick(), schedulers))
    schedulers[0].tick()  # what a scheduler held while another looked
    with store.transaction(DISTRICT) as conn:
        found = conn.execute(
            text(
                "SELECT schedule, count(*), sum(fire_times), count(job_id),"
                " count(DISTINCT job_id) FROM theon.job_schedule_runs GROUP BY 1 ORDER BY 1"
            )
        ).all()
        jobs = conn.execute(text("SELECT count(*) FROM theon.jobs")).scalar_one()
    # From 9:30 to 15:30; of a late one the latest counts: one for each of the four looks.
    assert [tuple(row) for row in found] == [("all", 6, 6, 6, 6), ("hourly", 36, 36, 24, 24)]
    assert jobs == 30


def test_the_clock_is_the_databases(store: Store) -> None:
    """Without another, and the machine's own clock plays no part."""
    scheduler = Scheduler(store, KINDS, [replace(HOURLY, cron="* * * * *")])
    scheduler.tick()
    with store.transaction(DISTRICT) as conn:
        conn.execute(
            text("UPDATE theon.job_schedules SET seen_until = seen_until - interval '2 minutes'")
        )
    assert scheduler.tick() >= 1
    scheduler.start()
    scheduler.stop()
    scheduler.join(60)


class CrashError(Exception):
    """The process ended here."""


class Crashing:
    """A store whose transactions can be made to end before their commit."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.crash_in: int | None = None

    @contextmanager
    def transaction(self, scope: Scope) -> Iterator[Connection]:
        with self.store.transaction(scope) as conn:
            yield conn
            if self.crash_in is not None:
                self.crash_in -= 1
                if self.crash_in < 0:
                    self.crash_in = None
                    raise CrashError


OFTEN = replace(HOURLY, cron="*/2 * * * *")
NAMES = {
    "latest": replace(OFTEN, name="latest"),
    "all": replace(OFTEN, name="all", catch_up="all"),
    "none": replace(OFTEN, name="none", catch_up="none"),
    "alone": replace(OFTEN, name="alone", may_overlap=False),
}
APART = timedelta(minutes=2)
workers = st.integers(0, 2)
seconds = st.sampled_from([1, 30, 50, 59, 61, 80, 120, 300, 20_000])
names = st.sampled_from(sorted(NAMES))


class SchedulersMachine(RuleBasedStateMachine):
    """Three schedulers in arbitrary order, inside each other, with crashes and clock jumps."""

    base: ClassVar[Store]

    @initialize()
    def begin(self) -> None:
        with self.base.owner_transaction() as conn:
            conn.exec_driver_sql(
                "TRUNCATE theon.jobs, theon.job_counts, theon.job_schedules CASCADE"
            )
        self.clock = Clock()
        self.stores = [Crashing(self.base) for _ in range(3)]
        self.schedulers = [
            Scheduler(cast(Store, s), KINDS, NAMES.values(), clock=self.clock) for s in self.stores
        ]
        self.ticked = {0}
        self.schedulers[0].tick()
        self.rested: dict[str, list[tuple[datetime, datetime]]] = {name: [] for name in NAMES}
        self.paused: dict[str, datetime] = {}
        self.jobs: dict[tuple[str, datetime], int] = {}

    @rule(seconds=seconds)
    def time_passes(self, seconds: int) -> None:
        self.clock.now += timedelta(seconds=seconds)

    @rule(seconds=st.sampled_from([1, 59, 61, 200, 1_000, 20_000]))
    def the_clock_is_put_back(self, seconds: int) -> None:
        self.clock.now -= timedelta(seconds=seconds)

    @rule(who=workers, seconds=seconds)
    def tick(self, who: int, seconds: int) -> None:
        """After a tick every fire time has its decision."""
        self.clock.now += timedelta(seconds=seconds)
        self.schedulers[who].tick()
        self.ticked.add(who)
        for name in set(NAMES) - set(self.paused):
            decided = self.decided(name)
            due = takewhile(lambda m: m <= self.clock.now, fires(OFTEN.cron, "UTC", START))
            for moment in due:
                rested = any(a < moment <= b for a, b in self.rested[name])
                assert rested or any(last - n * APART < moment <= last for last, n in decided)

    @rule(who=workers, after=st.integers(0, 5))
    def crash(self, who: int, after: int) -> None:
        """A scheduler ends before one of its commits; another begins in its place."""
        self.stores[who].crash_in = after
        with suppress(CrashError):
            self.schedulers[who].tick()
        self.stores[who].crash_in = None
        self.ticked.discard(who)
        self.schedulers[who] = Scheduler(
            cast(Store, self.stores[who]), KINDS, NAMES.values(), clock=self.clock
        )

    @rule(who=workers, other=workers, crashes=st.booleans())
    def tick_inside_a_tick(self, who: int, other: int, crashes: bool) -> None:
        """While one holds what it decides, another ticks; the first commits, or does not."""

        def looked() -> None:  # the first look is before anything is held
            self.clock.asked = lambda: self.schedulers[other].tick() and None

        # One thread plays both, so neither may wait for the other, as a first tick would.
        if who == other or not {who, other} <= self.ticked:
            return
        self.clock.asked = looked
        if crashes:
            self.stores[who].crash_in = 1
        with suppress(CrashError):
            self.schedulers[who].tick()
        self.stores[who].crash_in = self.clock.asked = None

    @rule(name=names)
    def pause_or_resume(self, name: str) -> None:
        with self.base.transaction(DISTRICT) as conn:
            if name in self.paused:
                self.schedulers[0].resume(conn, name, "ada")
                self.rested[name].append((self.paused.pop(name), self.clock.now))
            else:
                self.schedulers[0].pause(conn, name, "ada")
                seen_until = text("SELECT seen_until FROM theon.job_schedules WHERE name = :name")
                self.paused[name] = conn.execute(seen_until, {"name": name}).scalar_one()

    @rule(name=names)
    def run_now(self, name: str) -> None:
        try:
            with self.base.transaction(DISTRICT) as conn:
                self.schedulers[0].run_now(conn, name, "ada")
        except ConflictError:
            pass

    @rule(outcome=st.sampled_from(["completed", "failed", "cancelled"]))
    def jobs_end(self, outcome: str) -> None:
        end_all(self.base, outcome)

    def decided(self, name: str) -> list[tuple[datetime, int]]:
        with self.base.transaction(DISTRICT) as conn:
            found = conn.execute(
                text("SELECT fire_at, fire_times FROM theon.job_schedule_runs WHERE schedule = :n"),
                {"n": name},
            )
            return [(fire_at, n) for fire_at, n in found]

    @invariant()
    def one_job_for_each_run(self) -> None:
        """No fire time has two, no job is nobody's, and what was enqueued stays so."""
        if not hasattr(self, "jobs"):
            return
        with self.base.transaction(DISTRICT) as conn:
            runs = conn.execute(
                text("SELECT schedule, fire_at, outcome, job_id FROM theon.job_schedule_runs")
            ).all()
            found = conn.execute(text("SELECT id, idempotency_key FROM theon.jobs"))
            jobs = {int(job_id): str(key) for job_id, key in found}
            alone = conn.execute(
                text(
                    "SELECT count(*) FROM theon.jobs WHERE idempotency_key LIKE 'schedule:alone:%'"
                    " AND state NOT IN ('completed', 'failed', 'cancelled')"
                )
            ).scalar_one()
        with_job = {(r.schedule, r.fire_at): r.job_id for r in runs if r.job_id is not None}
        assert sorted(with_job.values()) == sorted(jobs)
        for (name, fire_at), job_id in with_job.items():
            assert jobs[job_id] == f"schedule:{name}:{fire_at.astimezone(UTC).isoformat()}"
        assert all((r.job_id is None) == (r.outcome in ("missed", "overlapped")) for r in runs)
        assert self.jobs.items() <= with_job.items()
        self.jobs = with_job
        assert alone <= 1


def test_every_fire_time_is_run_once_whatever_happens(store: Store) -> None:
    """No leader, crashes before any commit, a clock that jumps: one job per fire time."""
    SchedulersMachine.base = store
    run(
        SchedulersMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_clock_that_was_wrong_for_a_while_stops_no_schedule(store: Store) -> None:
    """A year ahead and back: it fires again at its next time, and what had a run has no second."""
    bench = Bench(store, replace(HOURLY, catch_up="none"))
    bench.tick("2026-03-02 10:00")
    bench.tick("2027-03-02 10:00")
    for moment in ("09:50", "10:30", "11:00", "12:00"):
        bench.tick(f"2026-03-02 {moment}")
    expected = [at(f"2026-03-02 {hour}:00") for hour in (10, 11, 12)] + [at("2027-03-02 10:00")]
    found = bench.do(
        "SELECT fire_at FROM theon.job_schedule_runs WHERE outcome = 'enqueued' ORDER BY fire_at"
    )
    assert [row[0] for row in found] == expected
    assert bench.jobs() == 4


def test_a_job_that_has_the_key_of_a_fire_time_is_its_run(store: Store) -> None:
    """Also where the schedule was removed and came again, and its runs were lost with it."""
    bench = Bench(store, HOURLY)
    bench.tick("2026-03-02 10:00")
    bench.do("DELETE FROM theon.job_schedules")
    bench.clock.now = at("2026-03-02 09:50")
    again = Scheduler(store, KINDS, [HOURLY], clock=bench.clock)
    again.tick()
    bench.clock.now = at("2026-03-02 10:00")
    again.tick()
    assert (bench.runs(), bench.jobs()) == ({"02 10:00": "enqueued"}, 1)
    with store.transaction(DISTRICT) as conn:
        enqueue(conn, KINDS, NewJob("test.count"))
    assert bench.jobs() == 2
