"""The exam that every delivery must pass, on the real ledger."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from sqlalchemy import text
from tests.jobs.redis_server import RedisServer
from tests.jobs.test_celery import until

from theon.errors import UnavailableError
from theon.jobs import ledger
from theon.jobs.deliveries.celery import CeleryConsumer, CeleryDelivery
from theon.jobs.deliveries.local import LocalDelivery
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message
from theon.store.engine import Store
from theon.store.scope import Scope

LEASE_S = 1.0
LONG_S = 600.0  # for messages that are not lost


@dataclass(frozen=True)
class Nothing:
    pass


@job("exam.nothing", queue="exam")
def nothing(ctx: Any, args: Nothing) -> None:
    """Do nothing."""


KINDS = Kinds([nothing])


class Worker:
    """What a supervisor does with messages, without children: start and finish in the ledger."""

    def __init__(self, store: Store) -> None:
        self.worker_id = "examiner"
        self.heard: list[Message] = []
        self.began: list[int] = []
        self._store = store
        self._lock = threading.Lock()

    def wait_for_room(self, limit_s: float) -> bool:
        return True

    def submit(self, messages: Sequence[Message]) -> None:
        with self._lock, self._store.transaction(Scope.district()) as conn:
            self.heard.extend(messages)
            attempts = ledger.start(conn, messages, self.worker_id)
            self.began.extend(attempt.job_id for attempt in attempts)
            ledger.finish(
                conn, [ledger.Outcome(a.job_id, a.token, "completed", "done") for a in attempts]
            )


class AnyDelivery(Protocol):
    name: str

    def send(self, messages: Sequence[Message], queue: str, *, together: int = 1) -> None: ...
    def close(self) -> None: ...


class Bench:
    """A delivery, the worker that it reaches, and a dispatcher's moves."""

    def __init__(self, store: Store, worker: Worker, delivery: AnyDelivery) -> None:
        self.store = store
        self.worker = worker
        self.delivery = delivery
        self._patience_s = LEASE_S
        self._heard, self._heard_s = 0, 0.0

    def enqueue(self, count: int) -> list[int]:
        with self.store.transaction(Scope.district()) as conn:
            ids = enqueue_many(conn, KINDS, [NewJob("exam.nothing")] * count)
            ledger.promote(conn)
        return ids

    def dispatch(self, ids: Sequence[int], lease_s: float = LONG_S) -> list[Message]:
        """Bring back what expired and hand out what is queued; the broker may be away."""
        with self.store.transaction(Scope.district()) as conn:
            ledger.expire(conn)
            messages = ledger.dispatch(conn, ids, lease_s=lease_s)
        with suppress(UnavailableError):  # the lease brings them back
            self.delivery.send(messages, "exam")
        return messages

    def dispatch_again(self, ids: Sequence[int]) -> None:
        """Once no message comes any more; with twice the lease and the patience each time.

        A busy machine would else be given ever more messages whose lease ends before it reads them.
        """
        heard, now_s = len(self.worker.heard), time.monotonic()
        if heard != self._heard:
            self._heard, self._heard_s = heard, now_s
        elif now_s - self._heard_s > self._patience_s and self.dispatch(ids, self._patience_s):
            self._heard_s, self._patience_s = now_s, self._patience_s * 2

    def completed(self) -> int:
        with self.store.transaction(Scope.district()) as conn:
            return int(
                conn.execute(
                    text("SELECT count(*) FROM theon.jobs WHERE state = 'completed'")
                ).scalar_one()
            )


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def by_celery(redis: RedisServer, store: Store) -> Iterator[Bench]:
    worker = Worker(store)
    delivery = CeleryDelivery(redis.url)
    consumer = CeleryConsumer(redis.url, ["exam"], worker)
    consumer.start()
    yield Bench(store, worker, delivery)
    consumer.stop()
    delivery.close()


@pytest.fixture
def by_local(store: Store) -> Bench:
    worker = Worker(store)
    return Bench(store, worker, LocalDelivery(worker))


@pytest.fixture(params=["by_local", pytest.param("by_celery", marks=pytest.mark.service)])
def bench(request: pytest.FixtureRequest) -> Bench:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Bench)
    return found


class TestEveryDelivery:
    """Rules of the port, whatever carries the messages."""

    def test_a_message_reaches_the_worker_exactly_as_it_was(self, bench: Bench):
        sent = bench.dispatch(bench.enqueue(1))
        until(lambda: bench.worker.heard, "a message")
        assert bench.worker.heard == sent
        until(lambda: bench.completed() == 1, "completed")

    def test_a_spent_token_begins_nothing(self, bench: Bench):
        sent = bench.dispatch(bench.enqueue(1))
        until(lambda: bench.completed() == 1, "completed")
        bench.delivery.send(sent, "exam")
        until(lambda: bench.worker.heard == sent * 2, "the message came twice")
        assert bench.worker.began == [sent[0].job_id]

    def test_many_are_sent_at_once(self, bench: Bench):
        ids = bench.enqueue(300)
        bench.dispatch(ids)
        until(lambda: bench.completed() == 300, "300 completed")
        assert sorted(bench.worker.began) == sorted(ids)

    def test_sending_nothing_is_allowed(self, bench: Bench):
        bench.delivery.send([], "exam")
        assert bench.worker.heard == []

    def test_closing_twice_is_once(self, bench: Bench):
        bench.delivery.close()
        bench.delivery.close()


def _stopped(redis: RedisServer) -> None:
    redis.stop()


def _flushed(redis: RedisServer) -> None:
    redis.flush()


def _restarted(redis: RedisServer) -> None:
    redis.restart()


@pytest.mark.service
@pytest.mark.parametrize("trouble", [_stopped, _flushed, _restarted])
def test_every_job_ends_once_whatever_redis_loses(
    trouble: Callable[[RedisServer], None], redis: RedisServer, by_celery: Bench
):
    """Redis may lose every message in mid-flight; the dispatch lease brings the jobs back."""
    ids = by_celery.enqueue(200)
    by_celery.dispatch(ids[:100], LEASE_S)
    until(lambda: by_celery.worker.began, "work has begun")
    trouble(redis)
    by_celery.dispatch(ids, LEASE_S)
    if trouble is _stopped:
        redis.start()

    def done() -> bool:
        by_celery.dispatch_again(ids)
        return by_celery.completed() == len(ids)

    until(done, "all completed")
    assert sorted(by_celery.worker.began) == sorted(ids)
