"""The ledger under every interleaving: dispatchers, workers, stale workers, expiry, clock jumps."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run
from sqlalchemy import Connection, text

from theon.jobs import ledger
from theon.jobs.enqueue import AGEING_S, PRIORITIES, NewJob, enqueue_many
from theon.jobs.errors import DependencyError, LostLeaseError
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message, Outcome, Progress
from theon.jobs.states import ENDED, State, may_become
from theon.store.engine import Store
from theon.store.scope import Scope

MAX_LOST = 2
# Jumps are whole thousands and waits end between them: the real seconds that a slow machine
# takes never decide whether a wait is over.
DISPATCH_S, RUN_S, WAIT_S, DELAY_S = 500.0, 1_500.0, 500.0, 2_500.0
FAR_S = 100.0  # ranks that are nearer than this may stand in either order


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@job("test.noop", queue="test", max_lost=MAX_LOST)
def noop(ctx: Any, args: Nothing) -> None:
    """Do nothing."""


KINDS = Kinds([noop])


@dataclass
class Model:
    """What the ledger should say of one job; times are of the model's own clock."""

    state: State
    max_attempts: int
    needs: list[int]
    ready_at: float
    rank_at: float
    priority: int
    token: int = 0
    attempts: int = 0
    lost: int = 0
    cancel_asked: bool = False
    lease_until: float = 0.0
    checkpoint: Any = None
    done: float | None = None
    started: set[int] = field(default_factory=set)


picks = st.lists(st.integers(0, 30), min_size=1, max_size=5)
outcomes = st.sampled_from(["completed", "failed", "permanent", "lost", "released", "cancelled"])


class LedgerMachine(RuleBasedStateMachine):
    """Moves the ledger and a plain model side by side, and compares them after each step."""

    store: ClassVar[Store]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[int, Model] = {}
        self.sent: list[Message] = []  # every message there ever was: stale workers keep theirs
        self.now = 0.0

    @initialize(max_attempts=st.integers(1, 3), held=st.integers(1, 5))
    def begin(self, max_attempts: int, held: int) -> None:
        """A few jobs under way and some that need them: each rule has something to work on."""
        with self.store.owner_transaction() as conn:
            conn.exec_driver_sql("TRUNCATE theon.jobs, theon.job_counts CASCADE")
        for count, needs in ((5, []), (2, [0]), (2, [1, 2, 5])):
            self.enqueue(count, max_attempts, "normal", 0.0, needs, kept=True)
        self.dispatch(list(range(held)))
        self.start(list(range(1, held)) or [0], "a")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.store.transaction(Scope.district()) as conn:
            yield conn

    def ids(self, numbers: list[int]) -> list[int]:
        known = list(self.jobs)
        return list(dict.fromkeys(known[n % len(known)] for n in numbers))

    def messages(self, numbers: list[int]) -> list[Message]:
        """Some messages, counted from the newest, so that the present ones are met often."""
        return list(dict.fromkeys(self.sent[-1 - n % len(self.sent)] for n in numbers))

    def holds(self, message: Message, state: State) -> bool:
        model = self.jobs[message.job_id]
        return model.state == state and model.token == message.token

    def open_needs(self, model: Model) -> int:
        return sum(self.jobs[n].state != State.COMPLETED for n in model.needs)

    def fall(self, job_id: int) -> None:
        """The jobs that need a failed or cancelled one fail, and theirs in turn."""
        for other, model in self.jobs.items():
            if job_id in model.needs and model.state == State.SCHEDULED:
                model.state = State.FAILED
                self.fall(other)

    @rule(
        count=st.integers(1, 3),
        max_attempts=st.integers(1, 3),
        priority=st.sampled_from(sorted(PRIORITIES)),
        delay_s=st.sampled_from([0.0, 0.0, DELAY_S]),
        needs=st.one_of(st.just([]), st.lists(st.integers(0, 30), max_size=3)),
        kept=st.sampled_from([True, True, True, False]),
    )
    def enqueue(
        self,
        count: int,
        max_attempts: int,
        priority: str,
        delay_s: float,
        needs: list[int],
        kept: bool,
    ) -> None:
        """Enqueue jobs that need earlier ones; a transaction that rolls back leaves nothing."""
        after = self.ids(needs) if self.jobs else []
        new = NewJob(
            "test.noop", priority=priority, delay_s=delay_s, after=after, max_attempts=max_attempts
        )
        if any(self.jobs[n].state in (State.FAILED, State.CANCELLED) for n in after):
            with pytest.raises(DependencyError), self.transaction() as conn:
                enqueue_many(conn, KINDS, [new] * count)
            return
        with self.transaction() as conn:
            found = enqueue_many(conn, KINDS, [new] * count)
            if not kept:
                conn.get_transaction().rollback()  # type: ignore[union-attr]
                return
        for job_id in found:
            rank = self.now + delay_s - PRIORITIES[priority] * AGEING_S
            model = Model(
                State.SCHEDULED, max_attempts, after, self.now + delay_s, rank, PRIORITIES[priority]
            )
            if not self.open_needs(model) and not delay_s:
                model.state = State.QUEUED
            self.jobs[job_id] = model

    @rule()
    def promote(self) -> None:
        due = [
            model
            for model in self.jobs.values()
            if model.state == State.SCHEDULED
            and model.ready_at <= self.now
            and not self.open_needs(model)
        ]
        with self.transaction() as conn:
            assert ledger.promote(conn) == len(due)
        for model in due:
            model.state = State.QUEUED

    @precondition(lambda self: self.jobs)
    @rule(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=12))
    def dispatch(self, numbers: list[int]) -> None:
        ids = self.ids(numbers)
        with self.transaction() as conn:
            sent = ledger.dispatch(conn, ids, lease_s=DISPATCH_S)
        queued = [i for i in ids if self.jobs[i].state == State.QUEUED]
        assert sorted(m.job_id for m in sent) == sorted(queued)
        for message in sent:
            model = self.jobs[message.job_id]
            model.state, model.token = State.DISPATCHED, model.token + 1
            model.lease_until = self.now + DISPATCH_S
            assert message.token == model.token
        self.sent += sent

    @precondition(lambda self: self.sent)
    @rule(numbers=picks, worker=st.sampled_from("ab"))
    def start(self, numbers: list[int], worker: str) -> None:
        """A message that came twice, or too late, begins nothing; a token begins once."""
        messages = self.messages(numbers)
        with self.transaction() as conn:
            begun = ledger.start(conn, messages + messages, worker, lease_s=RUN_S)
        expected = [m for m in messages if self.holds(m, State.DISPATCHED)]
        assert Counter(a.message for a in begun) == Counter(expected)
        for attempt in begun:
            model = self.jobs[attempt.job_id]
            assert attempt.token not in model.started
            model.started.add(attempt.token)
            model.state, model.attempts, model.done = State.RUNNING, model.attempts + 1, None
            model.lease_until = self.now + RUN_S
            assert (attempt.attempt, attempt.saved) == (model.attempts, model.checkpoint)

    @precondition(lambda self: self.jobs)
    @rule(numbers=picks)
    def proceed(self, numbers: list[int]) -> None:
        """A healthy machine: what is due is queued, dispatched and begun; some of it completes."""
        self.promote()
        known = len(self.sent)
        self.dispatch(list(range(len(self.jobs))))
        if new := len(self.sent) - known:
            self.start(list(range(new)), "c")
            self.finish([n % new for n in numbers], "completed")

    @precondition(lambda self: self.sent)
    @rule(numbers=picks, done=st.floats(0, 100))
    def renew(self, numbers: list[int], done: float) -> None:
        messages = self.messages(numbers)
        with self.transaction() as conn:
            held = ledger.renew(
                conn, [Progress(m.job_id, m.token, done) for m in messages], lease_s=RUN_S
            )
        expected = {m for m in messages if self.holds(m, State.RUNNING)}
        assert {Message(h.job_id, h.token) for h in held} == expected
        for one in held:
            model = self.jobs[one.job_id]
            assert one.cancel_asked == model.cancel_asked
            model.done, model.lease_until = done, self.now + RUN_S

    @precondition(lambda self: self.sent)
    @rule(numbers=picks, saved=st.integers(0, 100))
    def checkpoint(self, numbers: list[int], saved: int) -> None:
        for message in self.messages(numbers):
            if self.holds(message, State.RUNNING):
                with self.transaction() as conn:
                    ledger.checkpoint(conn, message, {"at": saved})
                self.jobs[message.job_id].checkpoint = {"at": saved}
            else:
                with pytest.raises(LostLeaseError), self.transaction() as conn:
                    ledger.checkpoint(conn, message, {"at": -1})

    @precondition(lambda self: self.sent)
    @rule(numbers=picks, outcome=outcomes)
    def finish(self, numbers: list[int], outcome: str) -> None:
        messages = self.messages(numbers)
        given = [
            Outcome(
                m.job_id,
                m.token,
                "failed" if outcome == "permanent" else outcome,
                transient=outcome != "permanent",
                wait_s=WAIT_S,
            )
            for m in messages
        ]
        with self.transaction() as conn:
            states = ledger.finish(conn, given)
        held = [m for m in messages if self.holds(m, State.RUNNING)]
        assert set(states) == {m.job_id for m in held}
        self.end(held, outcome)
        assert all(self.jobs[i].state == state for i, state in states.items())

    @precondition(lambda self: self.sent)
    @rule(numbers=picks)
    def complete(self, numbers: list[int]) -> None:
        """Completing under an old token is refused with the effect beside it."""
        for message in self.messages(numbers):
            if self.holds(message, State.RUNNING):
                with self.transaction() as conn:
                    ledger.complete(conn, message, {"ok": True})
                self.end([message], "completed")
            else:
                with pytest.raises(LostLeaseError), self.transaction() as conn:
                    ledger.complete(conn, message, {"ok": False})

    def end(self, messages: list[Message], outcome: str, wait_s: float = WAIT_S) -> None:
        for message in messages:
            model = self.jobs[message.job_id]
            model.state = self.after(model, outcome)
            model.attempts -= outcome in ("lost", "released")
            model.lost += outcome == "lost"
            if model.state == State.SCHEDULED:
                model.ready_at = self.now + wait_s
                model.rank_at = model.ready_at - model.priority * AGEING_S
        for message in messages:
            if self.jobs[message.job_id].state in (State.FAILED, State.CANCELLED):
                self.fall(message.job_id)

    @staticmethod
    def after(model: Model, outcome: str) -> State:
        if outcome == "completed":
            return State.COMPLETED
        if model.cancel_asked or outcome == "cancelled":
            return State.CANCELLED
        again = {
            "released": True,
            "lost": model.lost + 1 < MAX_LOST,
            "failed": model.attempts < model.max_attempts,
        }.get(outcome, False)
        if not again:
            return State.FAILED
        return State.QUEUED if outcome == "released" else State.SCHEDULED

    @rule()
    def expire(self) -> None:
        late = {
            state: [
                Message(i, model.token)
                for i, model in self.jobs.items()
                if model.state == state and model.lease_until < self.now
            ]
            for state in (State.DISPATCHED, State.RUNNING)
        }
        with self.transaction() as conn:
            assert ledger.expire(conn) == tuple(len(found) for found in late.values())
        for message in late[State.DISPATCHED]:
            self.jobs[message.job_id].state = State.QUEUED
        self.end(late[State.RUNNING], "lost", wait_s=0.0)

    @precondition(lambda self: self.sent)
    @rule(numbers=picks)
    def release_dispatched(self, numbers: list[int]) -> None:
        messages = self.messages(numbers)
        with self.transaction() as conn:
            given = ledger.release_dispatched(conn, messages, "no room")
        held = [m for m in messages if self.holds(m, State.DISPATCHED)]
        assert given == len(held)
        for message in held:
            self.jobs[message.job_id].state = State.QUEUED

    @precondition(lambda self: self.jobs)
    @rule(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=2))
    def cancel(self, numbers: list[int]) -> None:
        """A waiting job is cancelled at once, a running one is asked."""
        for job_id in self.ids(numbers):
            model = self.jobs[job_id]
            if model.state in ENDED:
                continue
            running = model.state == State.RUNNING
            change = "cancel_asked = true" if running else "state = 'cancelled'"
            with self.transaction() as conn:
                conn.execute(text(f"UPDATE theon.jobs SET {change} WHERE id = :id"), {"id": job_id})
                if not running:
                    ledger.settle_dependents(conn, {job_id: "cancelled"})
            if running:
                model.cancel_asked = True
            else:
                model.state = State.CANCELLED
                self.fall(job_id)

    @precondition(lambda self: self.jobs)
    @rule(numbers=picks)
    def retry(self, numbers: list[int]) -> None:
        """A person retries dead letters whose needs can still be completed."""
        for job_id in self.ids(numbers):
            model = self.jobs[job_id]
            dead = (State.FAILED, State.CANCELLED)
            if model.state not in dead or any(self.jobs[n].state in dead for n in model.needs):
                continue
            with self.transaction() as conn:
                conn.execute(
                    text(
                        "UPDATE theon.jobs SET state = 'scheduled', attempts = 0, lost = 0,"
                        " cancel_asked = false WHERE id = :id"
                    ),
                    {"id": job_id},
                )
            model.state, model.attempts, model.lost = State.SCHEDULED, 0, 0
            model.cancel_asked = False

    @precondition(lambda self: self.jobs)
    @rule(numbers=picks, priority=st.sampled_from(sorted(PRIORITIES.values())))
    def prioritise(self, numbers: list[int], priority: int) -> None:
        ids = self.ids(numbers)
        with self.transaction() as conn:
            conn.execute(
                text(
                    "UPDATE theon.jobs SET priority = :p,"
                    " rank_at = ready_at - make_interval(secs => :p * :ageing)"
                    " WHERE id = ANY (:ids)"
                ),
                {"p": priority, "ageing": AGEING_S, "ids": ids},
            )
        for model in map(self.jobs.__getitem__, ids):
            model.priority, model.rank_at = priority, model.ready_at - priority * AGEING_S

    @rule(jump_s=st.sampled_from([1_000.0, 2_000.0, -1_000.0]), expires=st.booleans())
    def jump(self, jump_s: float, expires: bool) -> None:
        """The clock jumps, also back: leases and waits end earlier or later, nothing breaks."""
        columns = ("lease_until", "ready_at", "rank_at")
        moves = ", ".join(f"{c} = {c} - make_interval(secs => :s)" for c in columns)
        with self.transaction() as conn:
            conn.execute(text(f"UPDATE theon.jobs SET {moves}"), {"s": jump_s})
        self.now += jump_s
        if expires:
            self.expire()

    @invariant()
    def agrees(self) -> None:
        """Nothing is lost: rows, counters, order and history say what the model says."""
        with self.transaction() as conn:
            rows = conn.execute(
                text(
                    "SELECT id, state, token, attempts, lost, waits_for, checkpoint, done,"
                    " cancel_asked, max_attempts, max_lost FROM theon.jobs"
                )
            ).all()
            counts = conn.execute(
                text(
                    "SELECT state, sum(delta) FROM theon.job_counts GROUP BY state"
                    " HAVING sum(delta) <> 0"
                )
            ).all()
            order = conn.execute(
                text("SELECT id FROM theon.jobs WHERE state = 'queued' ORDER BY rank_at, id")
            ).scalars()
            ranks = [self.jobs[i].rank_at for i in order]
            history = conn.execute(
                text("SELECT job_id, before, after FROM theon.job_history ORDER BY id")
            ).all()
            kept = conn.execute(text("SELECT job_id, token FROM theon.job_attempts")).all()
        assert {row.id for row in rows} == set(self.jobs)
        for row in rows:
            self.row_agrees(row)
        assert {s: int(n) for s, n in counts} == Counter(m.state for m in self.jobs.values())
        assert all(b >= a - FAR_S for a, b in pairwise(ranks))
        self.history_agrees([tuple(row) for row in history])
        assert {tuple(k) for k in kept} == {
            (i, token)
            for i, m in self.jobs.items()
            for token in m.started
            if not (m.state == State.RUNNING and token == m.token)
        }

    def row_agrees(self, row: Any) -> None:
        model = self.jobs[row.id]
        assert (row.state, row.token) == (model.state, model.token)
        assert (row.attempts, row.lost) == (model.attempts, model.lost)
        assert (row.checkpoint, row.done) == (model.checkpoint, model.done)
        assert row.cancel_asked == model.cancel_asked
        assert row.attempts <= row.max_attempts
        assert row.lost <= row.max_lost
        assert row.waits_for == self.open_needs(model)
        if row.state not in (*ENDED, State.SCHEDULED):
            assert row.waits_for == 0, "it may run before what it needs is completed"

    def history_agrees(self, history: list[tuple[Any, ...]]) -> None:
        """The history of each job is a path of legal transitions without a gap."""
        at: dict[int, str] = {}
        for job_id, before, after in history:
            assert at.get(job_id) == before
            assert before is None or may_become(State(before), State(after))
            at[job_id] = after
        assert at == {i: model.state for i, model in self.jobs.items()}


def test_no_interleaving_makes_the_ledger_lie(store: Store) -> None:
    """Whatever the order of moves, crashes and clock jumps: nothing is lost or run twice."""
    LedgerMachine.store = store
    run(
        LedgerMachine,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
