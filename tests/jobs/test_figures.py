"""Figures: what they count, over which time, for whom, and what they say is to be done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from theon.jobs import admin, figures, ledger
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.figures import KindFigures, Pause, QueueFigures, Target
from theon.jobs.health import NOTHING, find_bottleneck, health
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message, Outcome
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@job("test.quick", queue="test")
def quick(ctx: Any, args: Nothing) -> None:
    """Be quick."""


@job("import.slow", queue="imports")
def slow(ctx: Any, args: Nothing) -> None:
    """Be slow."""


KINDS = Kinds([quick, slow])


def put(store: Store, *new: NewJob) -> list[int]:
    with store.transaction(DISTRICT) as conn:
        return enqueue_many(conn, KINDS, new)


def begin(store: Store, *ids: int) -> list[Message]:
    with store.transaction(DISTRICT) as conn:
        ledger.promote(conn)
        return [a.message for a in ledger.start(conn, ledger.dispatch(conn, ids), "w")]


def end(store: Store, messages: Sequence[Message], outcome: str = "completed", **how: Any) -> None:
    with store.transaction(DISTRICT) as conn:
        given = [
            Outcome(m.job_id, m.token, outcome, **{"transient": False, **how}) for m in messages
        ]
        ledger.finish(conn, given)


def do(store: Store, statement: str, **values: Any) -> None:
    with store.transaction(DISTRICT) as conn:
        conn.execute(text(statement), values)


def ran(
    store: Store, kind: str, outcomes: Mapping[str, int], *, seconds: float, **new: Any
) -> None:
    """Attempts of a kind that ended just now and took so long."""
    for outcome, count in outcomes.items():
        ids = put(store, *[NewJob(kind, **new)] * count)
        end(store, begin(store, *ids), outcome, error_kind="LineError", peak_memory_mb=64.0)
    do(
        store,
        "UPDATE theon.job_attempts SET started_at = ended_at - make_interval(secs => :seconds),"
        " waited_s = 7 WHERE kind = :kind",
        seconds=seconds,
        kind=kind,
    )


def add_worker(
    store: Store, name: str, *, start_s: float, beat_s: float = 0, slots: int = 2
) -> None:
    do(
        store,
        "INSERT INTO theon.job_workers (id, campus_id, host, pid, delivery, queues, state, slots,"
        " started_at, heartbeat_at) SELECT :name, id, 'h', 1, 'local', '{test}', 'running', :slots,"
        " clock_timestamp() - make_interval(secs => :start_s),"
        " clock_timestamp() - make_interval(secs => :beat_s)"
        " FROM theon.campuses WHERE slug = 'district'",
        name=name,
        slots=slots,
        start_s=start_s,
        beat_s=beat_s,
    )


def found_targets(store: Store, scope: str = "district") -> dict[str, Target]:
    with store.transaction(Scope(scope)) as conn:
        window = figures.look_back(conn)
        kinds = figures.kind_figures(conn, window)
        return {target.name: target for target in figures.targets(conn, kinds, window)}


# -- figures -------------------------------------------------------------------------------


def test_a_queue_tells_its_depth_rate_and_waits(store: Store) -> None:
    """Depths are the counters', and stay right when these are folded."""
    ran(store, "test.quick", {"completed": 4, "failed": 2}, seconds=1)
    put(store, *[NewJob("test.quick")] * 3, NewJob("import.slow", delay_s=900))
    with store.transaction(DISTRICT) as conn:
        imports, test = figures.queue_figures(conn)
    assert {state: n for state, n in test.depth.items() if n} == {
        "completed": 4, "failed": 2, "queued": 3,
    }  # fmt: skip
    assert (test.waiting, imports.waiting, imports.depth["scheduled"]) == (3, 0, 1)
    assert test.ended_per_minute == pytest.approx(6 / 60)
    assert (test.wait_p50_s, test.wait_p95_s, imports.wait_p95_s) == (7, 7, None)


def test_a_kind_tells_how_it_ended_and_how_long_it_took(store: Store) -> None:
    """What was given back without fault, or cancelled, is no attempt that failed."""
    ran(
        store,
        "import.slow",
        {"completed": 6, "failed": 2, "released": 1, "cancelled": 1},
        seconds=40,
    )
    ran(store, "test.quick", {"completed": 1}, seconds=1)
    with store.transaction(DISTRICT) as conn:
        found, other = figures.kind_figures(conn)
        assert figures.kind_figures(conn, figures.look_back(conn, 0.000001)) == []
    assert (found.kind, found.attempts, found.completed, found.failed, found.lost) == (
        "import.slow", 8, 6, 2, 0,
    )  # fmt: skip
    assert (found.failure_share, found.error_kind) == (0.25, "LineError")
    assert (found.run_p50_s, found.run_p95_s, found.wait_p50_s) == (40, 40, 7)
    assert (found.busy_s, found.memory_p95_mb) == (400, 64)
    assert (other.kind, other.run_mean_s, other.failure_share) == ("test.quick", 1, 0)


def test_dead_letters_are_grouped_by_what_broke_them(store: Store) -> None:
    ids = put(store, *[NewJob("test.quick")] * 3, NewJob("import.slow"), NewJob("test.quick"))
    messages = begin(store, *ids)
    end(store, messages[:2], "failed", error="line 4", error_kind="LineError")
    end(store, messages[2:4], "failed", error="no room", error_kind="RoomError")
    end(store, messages[4:], "completed")
    with store.transaction(DISTRICT) as conn:
        found = figures.dead_letters(conn)
    assert [(g.kind, g.error_kind, g.count, g.newest_id, g.newest_error) for g in found] == [
        ("test.quick", "LineError", 2, ids[1], "line 4"),
        ("import.slow", "RoomError", 1, ids[3], "no room"),
        ("test.quick", "RoomError", 1, ids[2], "no room"),
    ]
    assert found[0].first_at <= found[0].last_at


def test_of_very_many_attempts_the_latest_tell(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate and the span are of the time that these cover, not of the whole window."""
    ran(store, "test.quick", {"completed": 20}, seconds=1)
    do(
        store,
        "UPDATE theon.job_attempts SET ended_at = clock_timestamp()"
        " - make_interval(secs => 10 * (job_id - 1))",
    )
    with store.transaction(DISTRICT) as conn:
        assert figures.look_back(conn).seconds == 3_600
        monkeypatch.setattr(figures, "ATTEMPTS_LOOKED_AT", 10)
        assert 100 <= figures.look_back(conn).seconds < 110
        (queue,) = figures.queue_figures(conn)
        (kind,) = figures.kind_figures(conn)
    assert 5.5 < queue.ended_per_minute <= 6
    assert kind.attempts == 10


# -- the five targets ----------------------------------------------------------------------


def test_nothing_happened_is_no_figure(store: Store) -> None:
    for target in found_targets(store).values():
        assert (target.value, target.met) == (None, None)


def test_completion_counts_jobs_and_failures_count_attempts(store: Store) -> None:
    """A job that completed at its second attempt is one completed job, and one failure of two."""
    (retried, dead, discarded, waits) = put(store, *[NewJob("test.quick")] * 4)
    end(store, begin(store, retried), "failed", transient=True)
    end(store, begin(store, retried))
    end(store, begin(store, dead), "failed")
    end(store, begin(store, discarded), "failed")
    end(store, begin(store, waits), "failed", transient=True, wait_s=900)
    with store.transaction(DISTRICT) as conn:
        admin.discard(conn, [discarded], "ada")
    (cancelled,) = put(store, NewJob("test.quick"))
    end(store, begin(store, cancelled), "cancelled")
    found = found_targets(store)
    assert found["completion"].value == pytest.approx(1 / 3)
    assert found["completion"].met is False
    assert found["failures"].value == pytest.approx(4 / 5)
    assert found["failures"].met is False


def test_the_mean_run_is_that_of_completed_attempts(store: Store) -> None:
    ran(store, "test.quick", {"completed": 3, "failed": 5}, seconds=4)
    ran(store, "import.slow", {"completed": 1}, seconds=80)
    found = found_targets(store)["mean_run"]
    assert (found.value, found.met) == (pytest.approx((3 * 4 + 80) / 4), True)


def test_utilisation_is_time_held_of_time_offered(store: Store) -> None:
    """Of attempts that ended and that still run; a worker that is gone offers no more."""
    add_worker(store, "here", start_s=1_000)
    add_worker(store, "gone", start_s=3_000, beat_s=2_000, slots=1)
    ran(store, "test.quick", {"completed": 3}, seconds=300)
    (job_id,) = put(store, NewJob("test.quick"))
    begin(store, job_id)
    do(
        store,
        "UPDATE theon.jobs SET started_at = clock_timestamp() - interval '600 seconds'"
        " WHERE state = 'running'",
    )
    found = found_targets(store)["utilisation"]
    assert (found.value, found.met) == (pytest.approx((900 + 600) / 3_000, rel=0.02), True)


def test_an_attempt_from_before_the_window_counts_from_its_begin(store: Store) -> None:
    add_worker(store, "here", start_s=10_000, slots=1)
    ran(store, "test.quick", {"completed": 1}, seconds=9_000)
    found = found_targets(store)["utilisation"]
    assert (found.value, found.met) == (pytest.approx(1.0, rel=0.02), False)


def test_uptime_is_time_with_a_worker_since_the_first_one(store: Store) -> None:
    """Workers that are there together count once; a gap counts against it."""
    add_worker(store, "a", start_s=1_000, beat_s=600)
    add_worker(store, "b", start_s=900, beat_s=500)
    assert found_targets(store)["uptime"].value == pytest.approx(0.5, rel=0.02)
    add_worker(store, "c", start_s=450)
    assert found_targets(store)["uptime"].value == pytest.approx(0.95, rel=0.02)
    add_worker(store, "long ago", start_s=9_000, beat_s=8_000)
    assert found_targets(store)["uptime"].value == pytest.approx(950 / 3_600, rel=0.02)


# -- scope ---------------------------------------------------------------------------------


def test_a_campus_counts_its_own_jobs_only(store: Store) -> None:
    """Depths, attempts, dead letters and pauses; workers are the district's to see."""
    add_campus(store, "north", "UTC")
    add_campus(store, "south", "UTC")
    add_worker(store, "here", start_s=1_000)
    ran(store, "test.quick", {"completed": 2, "failed": 1}, seconds=1, campus="south")
    ran(store, "import.slow", {"completed": 1, "failed": 2}, seconds=1, campus="north")
    put(store, NewJob("import.slow", campus="south"), NewJob("import.slow"))
    with store.transaction(DISTRICT) as conn:
        admin.pause(conn, KINDS, "campus", "south", "ada")
    with store.transaction(Scope("north")) as conn:
        (queue,) = figures.queue_figures(conn)
        assert (queue.queue, queue.waiting, queue.depth["failed"]) == ("imports", 0, 2)
        (kind,) = figures.kind_figures(conn)
        assert (kind.kind, kind.attempts) == ("import.slow", 3)
        assert [g.count for g in figures.dead_letters(conn)] == [2]
        assert (figures.list_pauses(conn), figures.list_workers(conn)) == ([], [])
        assert figures.served_queues(conn) == {"test"}
        assert health(conn).bottleneck == NOTHING
    found = found_targets(store, "north")
    assert found["completion"].value == pytest.approx(1 / 3)
    assert (found["utilisation"].value, found["uptime"].value) == (None, None)


def test_workers_and_pauses_are_shown_as_they_are(store: Store) -> None:
    """A worker whose heartbeat is old is lost, whatever its row says."""
    add_worker(store, "a", start_s=100)
    add_worker(store, "b", start_s=100, beat_s=60)
    add_worker(store, "c", start_s=200_000, beat_s=190_000)
    until = datetime.now(UTC) + timedelta(days=1)
    with store.transaction(DISTRICT) as conn:
        assert figures.served_queues(conn) == {"test"}
        assert [(w.id, w.state, w.alive) for w in figures.list_workers(conn)] == [
            ("a", "running", True), ("b", "lost", False),
        ]  # fmt: skip
        admin.pause(conn, KINDS, "queue", "test", "ada", reason="exams", until=until)
        admin.pause(conn, KINDS, "kind", "import.slow", "bob")
        first, second = figures.list_pauses(conn)
        assert (first.subject, first.value, first.campus, first.reason, first.paused_by) == (
            "queue", "test", "district", "exams", "ada",
        )  # fmt: skip
        assert (first.until, second.until) == (until, None)
        conn.execute(text("UPDATE theon.job_pauses SET until = clock_timestamp()"))
        assert figures.list_pauses(conn) == []


# -- the bottleneck ------------------------------------------------------------------------

NOW = datetime(2026, 3, 2, tzinfo=UTC)
QUEUE = QueueFigures("test", {"queued": 1_200}, 60.0, 0.1, 5.0)
KIND = KindFigures(
    "test.quick", 100, 100, 0, 0, 0.0, None, 2.0, 1.0, 5.0, 200.0, 0.1, 5.0, 60.0
)  # fmt: skip
FINE = (Target("utilisation", 0.2, 0.7, above=False), Target("mean_run", 2.0, 30.0, above=False))
REST = Pause("queue", "test", "north", "exams", "ada", NOW, None)


def sentence(**change: Any) -> str:
    given: dict[str, Any] = {
        "queues": [QUEUE], "kinds": [KIND], "targets": FINE, "pauses": [], "served": {"test"},
    }  # fmt: skip
    found = find_bottleneck(**{**given, **change})
    assert found.recommendation
    return found.sentence


def test_where_nothing_holds_jobs_up_it_says_so() -> None:
    """A deep queue that is worked off is none, nor a queue without a worker and without jobs."""
    idle = replace(QUEUE, queue="idle", depth={"completed": 9})
    assert sentence(queues=[QUEUE, idle]) == "Nothing holds jobs up."
    assert sentence(queues=[], kinds=[], targets=(), served=()) == "Nothing holds jobs up."


def test_the_bottleneck_is_named_and_what_stands_still_comes_first() -> None:
    failing = replace(KIND, failed=40, failure_share=0.4, error_kind="LineError")
    full = (
        Target("utilisation", 0.93, 0.7, above=False),
        Target("mean_run", 55.0, 30.0, above=False),
    )
    busy = replace(KIND, kind="import.slow", busy_s=600.0, run_mean_s=80.0)
    waits = replace(QUEUE, wait_p95_s=600.0)
    everything = {"kinds": [failing, busy], "queues": [waits], "targets": full, "pauses": [REST]}
    assert (
        sentence(**everything, served=())
        == "No worker takes jobs of the queue test, and 1,200 jobs wait."
    )
    assert (
        sentence(**everything)
        == "The queue test is paused in north by ada (exams), and 1,200 jobs wait."
    )
    everything["pauses"] = []
    assert sentence(**everything).startswith(
        "test.quick fails in 40% of 100 attempts, mostly with LineError"
    )
    everything["kinds"] = [replace(failing, attempts=19), busy]
    assert (
        sentence(**everything)
        == "Workers are busy 93% of their time; import.slow takes 75% of that."
    )
    everything["targets"] = (FINE[0], full[1])
    assert sentence(**everything) == "One in twenty jobs of the queue test waits more than 10 min."
    everything["queues"] = [QUEUE]
    assert (
        sentence(**everything)
        == "A run takes 55 s on average; most of that is import.slow, with 80 s."
    )


def test_health_is_all_of_it(store: Store) -> None:
    """From the real ledger: the slowest, the most failing, and what to do."""
    add_worker(store, "here", start_s=3_000)
    ran(store, "test.quick", {"completed": 21, "failed": 2, "lost": 1}, seconds=1)
    ran(store, "import.slow", {"completed": 3}, seconds=9)
    with store.transaction(DISTRICT) as conn:
        found = health(conn)
    assert [kind.kind for kind in found.slowest] == ["import.slow", "test.quick"]
    assert [kind.kind for kind in found.most_failing] == ["test.quick"]
    assert [target.name for target in found.targets] == [
        "completion", "mean_run", "failures", "utilisation", "uptime",
    ]  # fmt: skip
    assert found.window_s == 3_600
    assert found.bottleneck.sentence.startswith("test.quick fails in 12% of 24 attempts")
