"""What changed since one last looked: every change once, whenever its transaction commits."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from theon.jobs import changes, ledger
from theon.jobs.changes import Changes, latest, missed
from theon.jobs.enqueue import NewJob, enqueue
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Progress
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@job("test.nothing", queue="test")
def nothing(ctx: Any, args: Nothing) -> None:
    """Do nothing."""


KINDS = Kinds([nothing])
# A job is put into the youngest open transaction or into the oldest, or into one of its own.
STEPS = (
    "open", "put", "put in oldest", "put alone", "read", "commit oldest", "commit youngest",
    "roll back oldest", "roll back youngest",
)  # fmt: skip


def put(store: Store, campus: str = "district") -> int:
    with store.transaction(DISTRICT) as conn:
        return enqueue(conn, KINDS, NewJob("test.nothing", campus=campus))


def begin(store: Store) -> Changes:
    with store.transaction(DISTRICT) as conn:
        return Changes(conn)


def read(store: Store, seen: Changes) -> dict[int, set[str]]:
    with store.transaction(DISTRICT) as conn:
        return {job_id: set(states) for job_id, states in seen.read(conn).states.items()}


def test_each_change_is_read_once_with_the_states_before_and_after(store: Store) -> None:
    put(store)
    seen = begin(store)
    assert read(store, seen) == {}
    job_id = put(store)
    assert read(store, seen) == {job_id: {"queued"}}
    assert read(store, seen) == {}
    with store.transaction(DISTRICT) as conn:
        (attempt,) = ledger.start(conn, ledger.dispatch(conn, [job_id]), "w")
    assert read(store, seen) == {job_id: {"queued", "dispatched", "running"}}
    with store.transaction(DISTRICT) as conn:
        ledger.renew(conn, [Progress(job_id, attempt.token, 1, 2, "half")])
    assert read(store, seen) == {job_id: {"running"}}
    assert read(store, seen) == {}
    with store.transaction(DISTRICT) as conn:
        ledger.complete(conn, attempt.message, None)
    assert read(store, seen) == {job_id: {"running", "completed"}}
    assert read(store, seen) == {}


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "is rolled back"])
def test_a_lower_number_that_comes_later_is_not_missed(store: Store, commits: bool) -> None:
    """The position waits for it; and for one that never comes, only until its transaction ends."""
    seen = begin(store)
    with store.transaction(DISTRICT) as conn:
        late = enqueue(conn, KINDS, NewJob("test.nothing"))
        early = put(store)
        assert read(store, seen) == {early: {"queued"}}
        held = seen.position
        assert read(store, seen) == {}
        assert seen.position == held
        if not commits:
            conn.get_transaction().rollback()  # type: ignore[union-attr]
    assert read(store, seen) == ({late: {"queued"}} if commits else {})
    assert read(store, seen) == {}
    assert seen.position > held


def test_what_is_under_way_when_one_begins_to_look_is_not_missed(store: Store) -> None:
    with store.transaction(DISTRICT) as conn:
        late = enqueue(conn, KINDS, NewJob("test.nothing"))
        put(store)
        seen = begin(store)
    assert read(store, seen) == {late: {"queued"}}


def test_very_much_is_read_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "ROWS_PER_READ", 3)
    seen = begin(store)
    ids = [put(store) for _ in range(7)]
    found: list[int] = []
    more = True
    while more:
        with store.transaction(DISTRICT) as conn:
            changed = seen.read(conn)
        found += changed.states
        more = changed.more
    assert found == ids


def test_very_many_that_commit_late_are_told_in_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "GAPS_PER_READ", 2)
    seen = begin(store)
    with store.transaction(DISTRICT) as conn:
        late = [enqueue(conn, KINDS, NewJob("test.nothing")) for _ in range(5)]
        early = put(store)
        assert set(read(store, seen)) == {early}
        held = seen.position
        assert [read(store, seen) for _ in range(4)] == [{}] * 4
    found = [list(read(store, seen)) for _ in range(3)]
    assert sorted(job_id for part in found for job_id in part) == late
    assert max(map(len, found)) == 2
    assert seen.position > held


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(STEPS), max_size=30))
def test_in_whatever_order_transactions_end_every_change_is_told(
    store: Store, steps: list[str]
) -> None:
    """Once all have ended, what was told is what was committed, and the position is the last."""
    seen = begin(store)
    told: list[int] = []
    committed: set[int] = set()
    with ExitStack() as whatever_happens:
        open_: list[tuple[ExitStack, Any, list[int]]] = []
        for step in steps:
            place = 0 if step.endswith("oldest") else -1
            if step == "open" and len(open_) < 3:
                stack = whatever_happens.enter_context(ExitStack())
                open_.append((stack, stack.enter_context(store.transaction(DISTRICT)), []))
            elif step == "read":
                told += read(store, seen)
            elif step == "put alone":
                committed.add(put(store))
            elif open_ and step.startswith("put"):
                _, conn, ids = open_[place]
                ids.append(enqueue(conn, KINDS, NewJob("test.nothing")))
            elif open_ and step != "open":
                stack, conn, ids = open_.pop(place)
                if step.startswith("commit"):
                    committed.update(ids)
                else:
                    conn.get_transaction().rollback()
                stack.close()
        committed.update(job_id for _, _, ids in open_ for job_id in ids)
    last = put(store)
    told += read(store, seen)
    told += read(store, seen)
    assert sorted(told) == sorted({*committed, last})
    with store.transaction(DISTRICT) as conn:
        assert seen.position == latest(conn)


def test_many_who_write_at_the_same_time_are_all_told(store: Store) -> None:
    seen = begin(store)
    told: set[int] = set()
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(put, store) for _ in range(200)]
        while not all(one.done() for one in running):
            told |= set(read(store, seen))
        ids = {one.result() for one in running}
    told |= set(read(store, seen))
    told |= set(read(store, seen))
    assert told == ids


def test_what_was_missed_is_of_the_scope_and_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None where it is too much to tell, and for a position that nobody gave out."""
    add_campus(store, "oak", "UTC")
    first = put(store, "oak")
    with store.transaction(DISTRICT) as conn:
        position = latest(conn)
    second, _ = put(store, "oak"), put(store)

    def ask(position: int) -> set[int] | None:
        with store.transaction(DISTRICT) as conn:
            until = latest(conn)
        with store.transaction(Scope("oak")) as conn:
            found = missed(conn, position, until)
        return None if found is None else set(found.states)

    assert ask(position) == {second}
    assert ask(0) == {first, second}
    assert ask(1_000_000) is None
    monkeypatch.setattr(changes, "MISSED_AT_MOST", 1)
    assert ask(position) == {second}
    assert ask(0) is None
