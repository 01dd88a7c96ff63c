"""Enqueueing: one transaction with the work, once per key, refused at once when it is wrong."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text

from theon.errors import InputError
from theon.jobs import ledger
from theon.jobs.enqueue import PRIORITIES, NewJob, enqueue, enqueue_many
from theon.jobs.errors import CycleError, DependencyError, UnknownKindError
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Outcome
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Count:
    """How far to count."""

    upto: int
    word: str = ""
    more: Any = None


@job("test.count", queue="test", max_attempts=2)
def count(ctx: Any, args: Count) -> None:
    """Count."""


KINDS = Kinds([count])
ONE = {"upto": 1}


def put(store: Store, *new: NewJob) -> list[int]:
    with store.transaction(DISTRICT) as conn:
        return enqueue_many(conn, KINDS, new)


def one(store: Store, job_id: int) -> Any:
    with store.transaction(DISTRICT) as conn:
        return conn.execute(text("SELECT * FROM theon.jobs WHERE id = :id"), {"id": job_id}).one()


def stored(store: Store) -> int:
    with store.transaction(DISTRICT) as conn:
        return int(conn.execute(text("SELECT count(*) FROM theon.jobs")).scalar_one())


def end(store: Store, job_id: int, outcome: str) -> None:
    with store.transaction(DISTRICT) as conn:
        begun = ledger.start(conn, ledger.dispatch(conn, [job_id]), "w")
        ended = [Outcome(a.job_id, a.token, outcome, transient=False) for a in begun]
        assert len(ledger.finish(conn, ended)) == 1


def test_a_job_that_was_rolled_back_leaves_nothing(store: Store) -> None:
    """It belongs to the caller's transaction: rows, history and counters go with it."""
    with store.transaction(DISTRICT) as conn:
        enqueue(conn, KINDS, NewJob("test.count", ONE))
        conn.get_transaction().rollback()  # type: ignore[union-attr]
    with store.transaction(DISTRICT) as conn:
        for table in ("jobs", "job_history", "job_counts", "job_dependencies"):
            found = conn.execute(text(f"SELECT count(*) FROM theon.{table}")).scalar_one()
            assert found == 0, table


def test_a_second_job_of_the_same_key_is_the_first(store: Store) -> None:
    """In one batch, in a later one, and with other arguments; another campus has its own."""
    add_campus(store, "oak", "UTC")
    new = NewJob("test.count", ONE, idempotency_key="k")
    first, second = put(store, new, new)
    (third,) = put(store, NewJob("test.count", {"upto": 2}, idempotency_key="k"))
    (other,) = put(store, NewJob("test.count", ONE, campus="oak", idempotency_key="k"))
    assert first == second == third != other
    assert one(store, first).arguments["upto"] == 1


@pytest.mark.parametrize("commits", [True, False])
def test_two_transactions_with_one_key_make_one_job(store: Store, commits: bool) -> None:
    """The second waits for the first: its job if it commits, one of its own if it does not."""
    new = NewJob("test.count", ONE, idempotency_key="k")
    with ThreadPoolExecutor(1) as pool:
        with store.transaction(DISTRICT) as conn:
            first = enqueue(conn, KINDS, new)
            second = pool.submit(put, store, new)
            wait_until_somebody_waits_for_a_lock(store)
            if not commits:
                conn.get_transaction().rollback()  # type: ignore[union-attr]
        assert (second.result(30) == [first]) == commits
    assert stored(store) == 1


def test_a_delayed_job_waits_for_its_time(store: Store) -> None:
    """It is scheduled, and is queued when its time has come, not before."""
    (job_id,) = put(store, NewJob("test.count", ONE, delay_s=3_600))
    with store.transaction(DISTRICT) as conn:
        assert ledger.promote(conn) == 0
        wait_s = ledger.next_ready_s(conn)
        assert 3_000 < (wait_s or 0) <= 3_600
        conn.execute(text("UPDATE theon.jobs SET ready_at = ready_at - interval '1 hour'"))
        assert ledger.promote(conn) == 1
    assert one(store, job_id).state == "queued"


def test_priority_is_the_order_and_age_is_worth_a_class(store: Store) -> None:
    """Urgent before background, but a job that waited long enough goes before an urgent one."""
    ids = put(store, *(NewJob("test.count", ONE, priority=p) for p in reversed(PRIORITIES)))
    in_order = text("SELECT id FROM theon.jobs ORDER BY rank_at, id")
    with store.transaction(DISTRICT) as conn:
        assert conn.execute(in_order).scalars().all() == ids[::-1]
        conn.execute(
            text("UPDATE theon.jobs SET rank_at = rank_at - interval '1 hour' WHERE id = :id"),
            {"id": ids[0]},
        )
        assert conn.execute(in_order).scalars().first() == ids[0]


def test_a_job_runs_after_ids_and_labels_each_once(store: Store) -> None:
    """`after` takes both; naming one twice waits for it once; order in the batch is free."""
    (first,) = put(store, NewJob("test.count", ONE))
    last, second = put(
        store,
        NewJob("test.count", ONE, after=[first, "second", first, "second"]),
        NewJob("test.count", ONE, label="second", after=[first]),
    )
    assert (one(store, last).waits_for, one(store, second).waits_for) == (2, 1)
    assert one(store, last).reason == "waits for 2 other jobs"
    assert one(store, second).reason == "waits for 1 other job"
    for done, left in ((first, 1), (second, 0)):
        with store.transaction(DISTRICT) as conn:
            ledger.promote(conn)
        end(store, done, "completed")
        assert one(store, last).waits_for == left
    with store.transaction(DISTRICT) as conn:
        assert ledger.promote(conn) == 1
    assert one(store, last).state == "queued"


def test_a_job_whose_needs_are_completed_may_run_at_once(store: Store) -> None:
    """A completed job is not waited for."""
    (first,) = put(store, NewJob("test.count", ONE))
    end(store, first, "completed")
    (second,) = put(store, NewJob("test.count", ONE, after=[first]))
    assert one(store, second).state == "queued"


def test_an_unknown_kind_is_refused_with_a_proposal(store: Store) -> None:
    """Nothing is enqueued, not even the good job beside it."""
    with pytest.raises(UnknownKindError, match=r"did you mean test\.count"):
        put(store, NewJob("test.count", ONE), NewJob("test.cuont", ONE))
    assert stored(store) == 0


def test_arguments_that_do_not_fit_are_refused(store: Store) -> None:
    """Each field is named."""
    with pytest.raises(InputError, match=r"upto: .*; word: "):
        put(store, NewJob("test.count", {"upto": "far", "word": 3}))
    assert stored(store) == 0


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
def test_a_need_that_cannot_complete_is_refused(store: Store, outcome: str) -> None:
    """The message says how it ended and how to retry it."""
    (first,) = put(store, NewJob("test.count", ONE))
    end(store, first, outcome)
    said = f"job {first}, which it needs, is {outcome}\n.*theon jobs retry {first}"
    with pytest.raises(DependencyError, match=said):
        put(store, NewJob("test.count", ONE, after=[first]))
    assert stored(store) == 1


def test_a_need_that_is_not_there_is_refused(store: Store) -> None:
    """Neither an id that nobody has, nor another scope's job, nor an unknown label."""
    add_campus(store, "oak", "UTC")
    add_campus(store, "elm", "UTC")
    (hidden,) = put(store, NewJob("test.count", ONE, campus="elm"))
    for missing in (hidden, 999_999):
        new = NewJob("test.count", ONE, campus="oak", after=[missing])
        with (
            pytest.raises(DependencyError, match=f"job {missing}, which it needs, does not exist"),
            store.transaction(Scope("oak")) as conn,
        ):
            enqueue(conn, KINDS, new)
    with pytest.raises(DependencyError, match="needs 'x', and no job of the batch has that label"):
        put(store, NewJob("test.count", ONE, after=["x"]))
    assert stored(store) == 1


def test_a_circle_is_refused_and_named(store: Store) -> None:
    """The message walks the circle; nothing is enqueued, also not what lies outside it."""
    with pytest.raises(CycleError) as caught:
        put(
            store,
            NewJob("test.count", ONE),
            NewJob("test.count", ONE, label="a", after=["b"]),
            NewJob("test.count", ONE, label="b", after=["c"]),
            NewJob("test.count", ONE, label="c", after=["a"]),
        )
    said = str(caught.value)
    assert any(p in said for p in ("a → b → c → a", "b → c → a → b", "c → a → b → c")), said
    with pytest.raises(CycleError, match="a → a"):
        put(store, NewJob("test.count", ONE, label="a", after=["a"]))
    assert stored(store) == 0


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (NewJob("test.count", ONE, campus="nowhere"), "there is no campus 'nowhere'"),
        (NewJob("test.count", ONE, priority="asap"), "there is no priority 'asap'"),
        (NewJob("test.count", ONE, max_attempts=0), "max_attempts is at least 1"),
        (NewJob("test.count", ONE, delay_s=float("nan")), "delay_s is a number of seconds"),
        (NewJob("test.count", ONE, delay_s=float("inf")), "delay_s is a number of seconds"),
    ],
)
def test_what_does_not_fit_is_refused(store: Store, new: NewJob, said: str) -> None:
    """A campus that is not there, a priority of no class, limits that mean nothing."""
    with pytest.raises(InputError, match=said):
        put(store, new)
    assert stored(store) == 0


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (NewJob("test.count", {"upto": 1, "word": "a\0b"}), r"arguments\.word has a NUL"),
        (NewJob("test.count", {"upto": 1, "more": ["x", {"a": "\0"}]}), r"more\[1\]\.a has a NUL"),
        (NewJob("test.count", {"upto": 1, "more": {"\0": 1}}), r"a name in arguments\.more has a"),
        (NewJob("test.count", {"upto": 1, "more": ["\ud800"]}), r"more\[0\] has half of a char"),
        (NewJob("test.count", ONE, idempotency_key="a\0b"), "idempotency_key has a NUL"),
        (NewJob("test.count", ONE, owner="\udfff"), "owner has half of a character"),
        (NewJob("test.count", ONE, campus="a\0b"), "campus has a NUL"),
        (NewJob("test.count\0", ONE), "there is no job"),
    ],
    ids=["word", "inside", "name", "half", "key", "owner", "campus", "kind"],
)
def test_what_the_database_cannot_keep_is_refused_by_name(
    store: Store, new: NewJob, said: str
) -> None:
    """A NUL character or half of a character; the good job beside it is not kept either."""
    with pytest.raises(InputError, match=said):
        put(store, NewJob("test.count", ONE), new)
    assert stored(store) == 0


def test_texts_that_only_look_so_are_kept(store: Store) -> None:
    """A backslash with digits, an emoji, every other control character."""
    words = "a\\u0000b \\ud800 \N{GRINNING FACE} \x01 \uffff"
    (job_id,) = put(store, NewJob("test.count", {"upto": 1, "word": words}, owner=words))
    found = one(store, job_id)
    assert (found.arguments["word"], found.owner) == (words, words)


def test_two_jobs_of_one_label_are_refused(store: Store) -> None:
    """A label names one job of the batch."""
    with pytest.raises(InputError, match="two jobs of the batch have this label"):
        put(store, *[NewJob("test.count", ONE, label="a")] * 2)


def test_twenty_thousand_jobs_go_in_one_call(store: Store) -> None:
    """Ids come back in order and the counters know them all."""
    ids = put(store, *(NewJob("test.count", {"upto": n}) for n in range(20_000)))
    assert len(set(ids)) == stored(store) == 20_000
    assert one(store, ids[12_345]).arguments["upto"] == 12_345
    with store.transaction(DISTRICT) as conn:
        total = conn.execute(text("SELECT sum(delta) FROM theon.job_counts")).scalar_one()
    assert total == 20_000


@pytest.mark.parametrize("finisher_first", [True, False])
def test_a_need_that_completes_meanwhile_leaves_nobody_waiting(
    store: Store, finisher_first: bool
) -> None:
    """Whoever locks the needed job first, its dependent may run after both have committed."""
    (first,) = put(store, NewJob("test.count", ONE))
    dependent = NewJob("test.count", ONE, after=[first])
    with store.transaction(DISTRICT) as conn:
        (begun,) = ledger.start(conn, ledger.dispatch(conn, [first]), "w")

    def complete() -> None:
        with store.transaction(DISTRICT) as conn:
            ledger.complete(conn, begun.message, None)

    with ThreadPoolExecutor(1) as pool:
        with store.transaction(DISTRICT) as conn:
            if finisher_first:
                ledger.complete(conn, begun.message, None)
                other: Future[Any] = pool.submit(put, store, dependent)
            else:
                second = enqueue(conn, KINDS, dependent)
                other = pool.submit(complete)
            wait_until_somebody_waits_for_a_lock(store)
        if finisher_first:
            (second,) = other.result(30)
        other.result(30)
    with store.transaction(DISTRICT) as conn:
        ledger.promote(conn)
    assert (one(store, second).waits_for, one(store, second).state) == (0, "queued")


def test_dependents_that_are_enqueued_while_needs_complete_all_run(store: Store) -> None:
    """Many pairs, enqueued and finished at the same time: none waits for ever."""
    needs = put(store, *(NewJob("test.count", {"upto": n}) for n in range(60)))
    with store.transaction(DISTRICT) as conn:
        begun = ledger.start(conn, ledger.dispatch(conn, needs), "w")
    barrier = threading.Barrier(2)

    def finish_all() -> None:
        barrier.wait(30)
        for attempt in begun:
            with store.transaction(DISTRICT) as conn:
                ledger.complete(conn, attempt.message, None)

    with ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(finish_all)
        barrier.wait(30)
        dependents = [put(store, NewJob("test.count", ONE, after=[n]))[0] for n in needs]
        finishing.result(60)
    with store.transaction(DISTRICT) as conn:
        ledger.promote(conn)
    assert {one(store, d).state for d in dependents} == {"queued"}


def wait_until_somebody_waits_for_a_lock(store: Store, limit_s: float = 30) -> None:
    """Until a transaction of another thread is blocked by the one that this thread holds."""
    until = time.monotonic() + limit_s
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
        " OR NOT granted AND locktype = 'transactionid'"
    )
    while time.monotonic() < until:
        with store.transaction(DISTRICT) as conn:
            if conn.execute(waiting).scalar_one():
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits")
