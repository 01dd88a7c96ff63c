"""Many schedulers: a fire time is run once, whoever ticks or crashes, whatever the clock does."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import ClassVar, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import Connection, text
from tests.jobs.schedule_bench import DISTRICT, HOURLY, KINDS, START, Bench, Clock, at, end_all

from theon.errors import ConflictError
from theon.jobs.cron import fires
from theon.jobs.enqueue import NewJob, enqueue
from theon.jobs.schedules import Scheduler
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope


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
