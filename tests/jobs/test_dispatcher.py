"""The dispatcher on the real ledger, with a delivery that keeps what it was given."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from sqlalchemy import text

from theon.errors import UnavailableError
from theon.jobs import alone, ledger
from theon.jobs.dispatcher import Dispatcher, _alone
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.kinds import JobContext, Kinds, job
from theon.jobs.ledger import Message
from theon.jobs.predict import AHEAD_S
from theon.jobs.waiting import why_waiting
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Nothing:
    pass


@job("test.nothing", queue="q")
def nothing(ctx: JobContext, args: Nothing) -> None:
    """Do nothing."""


@job("test.single", queue="q", at_once=1)
def single(ctx: JobContext, args: Nothing) -> None:
    """Do nothing, one at a time."""


KINDS = Kinds([nothing, single])


class Kept:
    """A delivery that keeps messages; `away` makes it a broker that does not answer."""

    name = "kept"

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.pieces: list[int] = []
        self.away = False

    def send(self, messages: Sequence[Message], queue: str, *, together: int = 1) -> None:
        if self.away:
            raise UnavailableError("the broker is away")
        self.sent.extend(messages)
        self.pieces.append(together)

    def close(self) -> None:
        pass


def add(store: Store, kind: str, count: int) -> list[int]:
    with store.transaction(DISTRICT) as conn:
        return enqueue_many(conn, KINDS, [NewJob(kind) for _ in range(count)])


def add_history(store: Store, kind: str, count: int, run_s: float) -> None:
    with store.transaction(DISTRICT) as conn:
        conn.execute(
            text(
                "WITH made AS (INSERT INTO theon.jobs (campus_id, kind, queue, category,"
                "  arguments, state, priority, rank_at, ready_at, max_attempts, max_lost,"
                "  timeout_s, memory_mb) SELECT c.id, :kind, 'q', 'system', '{}', 'completed', 0,"
                "  now(), now(), 1, 1, 1, 1 FROM theon.campuses AS c, generate_series(1, :count)"
                "  RETURNING campus_id, id)"
                " INSERT INTO theon.job_attempts (campus_id, job_id, token, attempt, kind,"
                "  started_at, ended_at, waited_s, outcome, run_s) SELECT campus_id, id, 1, 1,"
                "  :kind, now() - interval '5 s', now(), 0, 'completed', :run_s FROM made"
            ),
            {"kind": kind, "count": count, "run_s": run_s},
        )


def add_worker(store: Store, slots: int) -> None:
    with store.transaction(DISTRICT) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.job_workers (id, campus_id, host, pid, delivery, queues,"
                " state, slots) SELECT 'w', id, 'h', 1, 'kept', '{q}', 'running', :slots"
                " FROM theon.campuses"
            ),
            {"slots": slots},
        )


def test_no_more_is_handed_out_than_there_are_slots(store: Store) -> None:
    add_worker(store, slots=3)
    ids = add(store, "test.nothing", 20)
    kept = Kept()
    dispatcher = Dispatcher(store, KINDS, kept)
    assert dispatcher.tick() == 3
    assert dispatcher.tick() == 0
    assert [m.job_id for m in kept.sent] == ids[:3]
    assert kept.pieces == [1]


def test_of_short_jobs_a_slot_gets_as_many_as_it_works_off_soon(store: Store) -> None:
    """Some of them travel together; a long job does not, and needs a slot of its own."""
    add_worker(store, slots=2)
    add_history(store, "test.nothing", count=10, run_s=0.05)
    short = add(store, "test.nothing", 200)
    kept = Kept()
    dispatcher = Dispatcher(store, KINDS, kept)
    dispatcher.tick()
    dispatcher.tick()
    count = round(2 * AHEAD_S / 0.05)
    assert [m.job_id for m in kept.sent] == short[:count]
    assert dispatcher.tick() == 0
    assert min(kept.pieces) > 1
    with store.transaction(DISTRICT) as conn:
        messages = kept.sent
        assert len(ledger.start(conn, messages, "w")) == count
    assert dispatcher.tick() == 0


def test_short_jobs_keep_no_long_one_from_its_slot(store: Store) -> None:
    add_worker(store, slots=1)
    add_history(store, "test.nothing", count=10, run_s=0.05)
    add(store, "test.nothing", 9)
    (long,) = add(store, "test.single", 1)
    later = add(store, "test.nothing", 9)
    kept = Kept()
    Dispatcher(store, KINDS, kept).tick()
    assert long in {m.job_id for m in kept.sent}
    assert not {m.job_id for m in kept.sent} & set(later)


def test_two_dispatchers_hand_out_no_job_twice_and_keep_caps(store: Store) -> None:
    add_worker(store, slots=50)
    add(store, "test.nothing", 40)
    add(store, "test.single", 5)
    kept = Kept()
    pair = [Dispatcher(store, KINDS, kept) for _ in range(2)]
    for dispatcher in pair:
        dispatcher.start()
    until = time.monotonic() + 30
    while len(kept.sent) < 41 and time.monotonic() < until:
        time.sleep(0.02)
    for dispatcher in pair:
        dispatcher.stop()
    for dispatcher in pair:
        dispatcher.join(10)
    assert len({m.job_id for m in kept.sent}) == len(kept.sent) == 41


def test_a_job_whose_message_was_never_sent_comes_back_and_spends_no_attempt(
    store: Store,
) -> None:
    add_worker(store, slots=1)
    (job_id,) = add(store, "test.nothing", 1)
    kept = Kept()
    kept.away = True
    with pytest.raises(UnavailableError):
        Dispatcher(store, KINDS, kept).tick()
    with store.transaction(DISTRICT) as conn:
        conn.execute(text("UPDATE theon.jobs SET lease_until = clock_timestamp() - interval '1s'"))
    kept.away = False
    assert Dispatcher(store, KINDS, kept).tick() == 1
    assert kept.sent == [Message(job_id, 2)]
    with store.transaction(DISTRICT) as conn:
        assert ledger.start(conn, [Message(job_id, 1)], "w") == []
        assert ledger.start(conn, kept.sent, "w")[0].attempt == 1


def test_a_job_that_runs_alone_is_handed_to_one_worker_and_no_broker(store: Store) -> None:
    """A broker brings a message to whoever comes first. Its worker gets nothing else meanwhile."""
    add_worker(store, slots=2)
    (suspect,) = add(store, "test.nothing", 1)
    with store.transaction(DISTRICT) as conn:
        conn.execute(text("UPDATE theon.jobs SET lost = 2"))
    kept = Kept()
    dispatcher = Dispatcher(store, KINDS, kept)
    dispatcher.tick()
    others = add(store, "test.nothing", 3)
    dispatcher.tick()
    assert kept.sent == []
    with store.transaction(DISTRICT) as conn:
        assert alone.hold(conn, [], "another") == []
        held = alone.hold(conn, [], "w")
        assert [m.job_id for m in held] == [suspect]
        ledger.release_dispatched(conn, held, "given back")
        conn.execute(text("UPDATE theon.jobs SET lost = 0"))
    Dispatcher(store, KINDS, kept).tick()  # one that has not read the queue before
    assert {m.job_id for m in kept.sent} == {suspect, others[0]}


def test_a_dispatcher_that_is_frozen_in_its_turn_loses_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one hands out at a time; the others do not wait for one that does not go on."""
    add_worker(store, slots=1)
    add(store, "test.nothing", 1)
    kept = Kept()
    with ledger.turn(store) as held:
        assert _alone(held)
        assert Dispatcher(store, KINDS, kept).tick() == 0
    monkeypatch.setattr(ledger, "IDLE_S", 0.5)

    def freeze() -> None:
        with ledger.turn(store) as frozen:
            assert _alone(frozen)
            until = time.monotonic() + 30
            while not kept.sent and time.monotonic() < until:
                Dispatcher(store, KINDS, kept).tick()
            frozen.execute(text("SELECT 1"))

    with pytest.raises(UnavailableError):
        freeze()
    assert len(kept.sent) == 1


def test_a_page_says_why_a_job_waits(store: Store) -> None:
    (job_id,) = add(store, "test.single", 1)
    with store.transaction(DISTRICT) as conn:
        assert why_waiting(conn, job_id, KINDS) == "no worker serves the queue q"
    add_worker(store, slots=1)
    with store.transaction(DISTRICT) as conn:
        assert why_waiting(conn, job_id, KINDS).startswith("it may run now")
        conn.execute(
            text(
                "INSERT INTO theon.job_pauses (campus_id, subject, value, paused_by)"
                " SELECT id, 'queue', 'q', 'ann' FROM theon.campuses"
            )
        )
        assert why_waiting(conn, job_id, KINDS) == "queue q is paused"
    assert Dispatcher(store, KINDS, Kept()).tick() == 0


def test_folding_the_counters_changes_no_depth(store: Store) -> None:
    add_worker(store, slots=2)
    add(store, "test.nothing", 5)
    Dispatcher(store, KINDS, Kept()).tick()
    depths = "SELECT state, sum(delta)::int FROM theon.job_counts GROUP BY 1 ORDER BY 1"
    with store.transaction(DISTRICT) as conn:
        before = conn.execute(text(depths)).all()
    Dispatcher(store, KINDS, Kept()).tick()
    with store.transaction(DISTRICT) as conn:
        assert conn.execute(text(depths)).all() == before == [("dispatched", 2), ("queued", 3)]
