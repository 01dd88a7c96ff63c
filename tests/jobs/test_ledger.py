"""The ledger's moves by real connections at once, and what each one promises."""

import random
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, text

from theon.jobs import alone, ledger, policy
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.errors import LostLeaseError
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Attempt, Message, Outcome, Progress
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()
THREADS = 6


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@job("test.noop", queue="test")
def noop(ctx: Any, args: Nothing) -> None:
    """Do nothing."""


KINDS = Kinds([noop])


def put(store: Store, number: int, after: Sequence[int] = ()) -> list[int]:
    with store.transaction(DISTRICT) as conn:
        return enqueue_many(conn, KINDS, [NewJob("test.noop", after=after)] * number)


def begin(store: Store, ids: Sequence[int], **lease: float) -> list[Attempt]:
    with store.transaction(DISTRICT) as conn:
        return ledger.start(conn, ledger.dispatch(conn, ids), "w", **lease)


def states(store: Store) -> Counter[str]:
    with store.transaction(DISTRICT) as conn:
        return Counter(conn.execute(text("SELECT state FROM theon.jobs")).scalars())


def test_jobs_that_run_alone_are_not_begun_beside_others(store: Store) -> None:
    """The database and the policy draw the same line."""
    lines = [(lost, max_lost) for max_lost in range(1, 6) for lost in range(max_lost)]
    ids = put(store, len(lines))
    with store.transaction(DISTRICT) as conn:
        for job_id, (lost, max_lost) in zip(ids, lines, strict=True):
            conn.execute(
                text("UPDATE theon.jobs SET lost = :l, max_lost = :m WHERE id = :i"),
                {"l": lost, "m": max_lost, "i": job_id},
            )
        messages = ledger.dispatch(conn, ids)
        begun = {a.job_id for a in ledger.start(conn, messages, "w", beside=True)}
        held = {m.job_id for m in alone.hold(conn, messages, "w")}
        then = {a.job_id for a in ledger.start(conn, messages, "w")}
    expected = {i for i, line in zip(ids, lines, strict=True) if policy.runs_alone(*line)}
    assert held == then == expected
    assert begun == set(ids) - expected


@pytest.mark.parametrize("outcome", ["completed", "failed", "lost", "released"])
def test_an_attempt_is_kept_with_its_worker_whatever_became_of_its_job(
    store: Store, outcome: str
) -> None:
    (attempt,) = begin(store, put(store, 1))
    with store.transaction(DISTRICT) as conn:
        ledger.finish(conn, [Outcome(attempt.job_id, attempt.token, outcome)])
        kept = conn.execute(text("SELECT worker, outcome FROM theon.job_attempts")).all()
    assert kept == [("w", outcome)]


def test_threads_on_the_same_jobs_complete_each_once(store: Store) -> None:
    """All dispatch, start, renew and finish the same ids in any order: no deadlock, none twice."""
    ids = put(store, 200)
    dependents = put(store, 50, after=ids[:20])
    begun: list[Message] = []
    completed: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - no secret is drawn
        own = [*ids, *dependents]
        while True:
            chance.shuffle(own)
            with store.transaction(DISTRICT) as conn:
                ledger.promote(conn)
                sent = ledger.dispatch(conn, own[:40])
            shared.extend(sent)
            seen = list(shared)
            chance.shuffle(seen)
            with store.transaction(DISTRICT) as conn:
                started = ledger.start(conn, seen, f"w{seed}")
            begun.extend(a.message for a in started)
            seen = list(begun)
            chance.shuffle(seen)
            with store.transaction(DISTRICT) as conn:
                ledger.renew(conn, [Progress(m.job_id, m.token, 1) for m in seen])
            with store.transaction(DISTRICT) as conn:
                given = [Outcome(m.job_id, m.token, "completed") for m in seen[:60]]
                completed.extend(ledger.finish(conn, given))
            if len(completed) == len(own):
                return

    shared: list[Message] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, seed) for seed in range(THREADS)]:
            done.result(120)
    assert states(store) == {"completed": 250}
    assert max(Counter(begun).values()) == max(Counter(completed).values()) == 1


def test_needs_that_complete_at_once_free_their_dependents_without_deadlock(store: Store) -> None:
    """Each need has the same dependents, so each finisher writes the same rows."""
    needs = put(store, THREADS * 10)
    # Rows whose order on disk differs from that of their ids.
    dependents = put(store, 100, after=needs)
    with store.transaction(DISTRICT) as conn:
        for job_id in dependents[::-2]:
            conn.execute(text("UPDATE theon.jobs SET size = 1 WHERE id = :id"), {"id": job_id})
    begun = begin(store, needs)

    def finish(part: list[Attempt]) -> None:
        for attempt in part:
            with store.transaction(DISTRICT) as conn:
                ledger.complete(conn, attempt.message, None)

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(finish, begun[n::THREADS]) for n in range(THREADS)]:
            done.result(120)
    with store.transaction(DISTRICT) as conn:
        assert ledger.promote(conn) == 100


def test_needs_that_complete_and_fail_at_once_settle_all_dependents(store: Store) -> None:
    """Dependents of a failed job fail down the chain, also those whose other needs complete."""
    needs = put(store, 20)
    middle = put(store, 20, after=needs)
    put(store, 20, after=middle)
    begun = begin(store, needs)

    def finish(number: int, attempt: Attempt) -> None:
        outcome = "failed" if number % 2 else "completed"
        with store.transaction(DISTRICT) as conn:
            ledger.finish(conn, [Outcome(attempt.job_id, attempt.token, outcome, transient=False)])

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(finish, n, attempt) for n, attempt in enumerate(begun)]:
            done.result(120)
    assert states(store) == {"completed": 10, "failed": 50}


def test_a_cancelled_dependent_that_is_retried_does_not_wait_for_what_is_done(
    store: Store,
) -> None:
    """A need that completes while its dependent is cancelled is not waited for afterwards."""
    (need,) = put(store, 1)
    (dependent,) = put(store, 1, after=[need])
    change = text("UPDATE theon.jobs SET state = :state WHERE id = :id")
    with store.transaction(DISTRICT) as conn:
        conn.execute(change, {"state": "cancelled", "id": dependent})
    (attempt,) = begin(store, [need])
    with store.transaction(DISTRICT) as conn:
        ledger.complete(conn, attempt.message, None)
        conn.execute(change, {"state": "scheduled", "id": dependent})
        assert ledger.promote(conn) == 1


def test_the_effect_of_a_stale_attempt_rolls_back(store: Store) -> None:
    """An attempt whose lease ended cannot complete: what it wrote beside goes with it."""
    (attempt,) = begin(store, put(store, 1), lease_s=-1)
    with store.transaction(DISTRICT) as conn:
        assert ledger.expire(conn) == (0, 1)
    with (
        pytest.raises(LostLeaseError, match=r"job 1, token 1: this attempt lost its lease"),
        store.transaction(DISTRICT) as conn,
    ):
        effect_of(conn, attempt)
    with store.transaction(DISTRICT) as conn:
        assert conn.execute(text("SELECT count(*) FROM theon.people")).scalar_one() == 0
    assert states(store) == {"scheduled": 1}


def effect_of(conn: Connection, attempt: Attempt) -> None:
    conn.execute(text("INSERT INTO theon.people (campus_id, user_id) VALUES (1, 'effect')"))
    ledger.complete(conn, attempt.message, None)


def test_losses_and_releases_spend_no_attempt(store: Store) -> None:
    """Only the job's own failures count; what was lost or given back keeps its checkpoint."""
    (job_id,) = put(store, 1)
    seen = []
    for outcome in ("released", "lost", "released", "lost", "failed"):
        (attempt,) = begin(store, [job_id])
        seen.append((attempt.attempt, attempt.lost, attempt.saved))
        with store.transaction(DISTRICT) as conn:
            ledger.checkpoint(conn, attempt.message, {"after": outcome})
            ledger.finish(conn, [Outcome(job_id, attempt.token, outcome)])
            ledger.promote(conn)
    assert [s[:2] for s in seen] == [(1, 0), (1, 0), (1, 1), (1, 1), (1, 2)]
    assert seen[-1][2] == {"after": "lost"}
    assert begin(store, [job_id])[0].attempt == 2


def test_a_message_with_a_later_token_begins_nothing(store: Store) -> None:
    """Only the token that the ledger gave begins an attempt."""
    (job_id,) = put(store, 1)
    with store.transaction(DISTRICT) as conn:
        (message,) = ledger.dispatch(conn, [job_id])
        assert ledger.start(conn, [Message(job_id, message.token + 1)], "w") == []
        assert ledger.start(conn, [], "w") == []
        assert len(ledger.start(conn, [message], "w")) == 1
