"""Celery on Redis: it hears again after whatever happened to Redis, and fails quickly."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest
from tests.jobs.redis_server import RedisServer
from tests.ports import held_port

from theon.cli_worker import run_worker, worker
from theon.errors import InputError, UnavailableError
from theon.jobs.deliveries.celery import DEAF_S, CeleryConsumer, CeleryDelivery, shown
from theon.jobs.ledger import Message
from theon.settings import Settings
from theon.store.engine import Store

pytestmark = pytest.mark.service
WAIT_S = 200.0


class Inbox:
    """Takes messages as a supervisor does, and keeps them."""

    def __init__(self) -> None:
        self.worker_id = "test"
        self.messages: list[Message] = []
        self.pieces: list[list[Message]] = []
        self.room = True
        self.busy = 0
        self.state = "running"
        self.asked_to_drain = False
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def drain(self) -> None:
        self.calls.append("drain")

    def join(self, timeout_s: float) -> None:
        self.calls.append("join")

    def stop(self) -> None:
        self.calls.append("stop")

    def wait_for_room(self, limit_s: float) -> bool:
        end = time.monotonic() + limit_s
        while not self.room and time.monotonic() < end:
            time.sleep(0.02)
        return self.room

    def submit(self, messages: Sequence[Message]) -> None:
        self.messages.extend(messages)
        self.pieces.append(list(messages))


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def delivery(redis: RedisServer) -> Iterator[CeleryDelivery]:
    delivery = CeleryDelivery(redis.url)
    yield delivery
    delivery.close()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def consumer(redis: RedisServer, inbox: Inbox) -> Iterator[CeleryConsumer]:
    consumer = CeleryConsumer(redis.url, ["a", "b"], inbox)
    consumer.start()
    yield consumer
    consumer.stop()


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as port:
        yield port


def arrives(delivery: CeleryDelivery, inbox: Inbox, job_id: int) -> None:
    """Send until it arrives, as the dispatcher does when a dispatch lease ended."""

    def sent() -> bool:
        try:
            delivery.send([Message(job_id, 1)], "a")
        except UnavailableError:
            return False
        end = time.monotonic() + 2
        while time.monotonic() < end and Message(job_id, 1) not in inbox.messages:
            time.sleep(0.02)
        return Message(job_id, 1) in inbox.messages

    until(sent, f"job {job_id} arrived")


def test_messages_arrive_as_they_were_from_each_queue(
    delivery: CeleryDelivery, consumer: CeleryConsumer, inbox: Inbox
):
    sent = [Message(n, n + 1) for n in range(200)]
    delivery.send(sent[:100], "a")
    delivery.send(sent[100:], "b")
    until(lambda: len(inbox.messages) >= 200, "200 messages")
    assert sorted(inbox.messages, key=lambda m: m.job_id) == sent


def test_short_jobs_travel_together_and_are_taken_apart(
    delivery: CeleryDelivery, consumer: CeleryConsumer, inbox: Inbox
):
    sent = [Message(n, n + 1) for n in range(70)]
    delivery.send(sent, "a", together=32)
    until(lambda: len(inbox.messages) >= 70, "70 messages")
    assert sorted(inbox.messages, key=lambda m: m.job_id) == sent
    assert sorted(map(len, inbox.pieces)) == [6, 32, 32]


def test_a_worker_without_room_leaves_messages_to_others(
    redis: RedisServer, delivery: CeleryDelivery, consumer: CeleryConsumer, inbox: Inbox
):
    """They stay in Redis, and the worker is not taken for deaf."""
    arrives(delivery, inbox, 1)
    inbox.room = False
    delivery.send([Message(n, 1) for n in range(100, 140)], "a")
    time.sleep(9)  # longer than a deaf worker is left alone
    with redis.client() as client:
        assert client.llen("a") > 20
    assert consumer.rebuilt == 0
    inbox.room = True
    until(lambda: len(inbox.messages) >= 41, "all messages")


@pytest.mark.parametrize("happens", ["restart", "flush", "stop", "freeze"])
def test_the_worker_hears_again(
    happens: str,
    redis: RedisServer,
    delivery: CeleryDelivery,
    consumer: CeleryConsumer,
    inbox: Inbox,
):
    """After Redis came back, whatever it lost, messages arrive."""
    arrives(delivery, inbox, 1)
    getattr(redis, happens)()
    if happens == "stop":
        until(lambda: not consumer.broker_reachable, "the loss was noticed")
        redis.start()
    if happens == "freeze":
        until(lambda: not consumer.broker_reachable, "the silence was noticed")
        redis.thaw()
    arrives(delivery, inbox, 2)
    until(lambda: consumer.state == "listening", "listening")


def test_a_deaf_consumer_is_replaced(
    redis: RedisServer, delivery: CeleryDelivery, consumer: CeleryConsumer, inbox: Inbox
):
    """A thread that lives and takes nothing from a sound Redis does not stay so."""
    arrives(delivery, inbox, 1)
    controller = consumer._ear.controller
    controller.consumer.task_consumer.cancel()  # sound connection, no subscription
    delivery.send([Message(2, 1)], "a")
    until(lambda: consumer.rebuilt > 0, "replaced")
    arrives(delivery, inbox, 3)
    rebuilt = consumer.rebuilt
    time.sleep(DEAF_S + 2)
    assert consumer.rebuilt == rebuilt, "one that hears is left alone"


def test_a_worker_waits_for_a_redis_that_is_not_there_yet(
    redis: RedisServer, delivery: CeleryDelivery, inbox: Inbox, caplog: pytest.LogCaptureFixture
):
    redis.stop()
    consumer = CeleryConsumer(redis.url, ["a"], inbox)
    consumer.start()
    try:
        until(lambda: "does not answer" in caplog.text, "a line in the log")
        redis.start()
        arrives(delivery, inbox, 1)
    finally:
        consumer.stop()


@pytest.mark.parametrize("happens", ["stop", "freeze"])
def test_sending_to_a_redis_that_is_away_fails_with_a_message(
    happens: str, redis: RedisServer, delivery: CeleryDelivery
):
    delivery.send([Message(1, 1)], "a")
    getattr(redis, happens)()
    with pytest.raises(UnavailableError, match="2 of 2 messages were not sent"):
        delivery.send([Message(2, 1), Message(3, 1)], "a")


def test_a_sender_connects_anew_after_a_restart(redis: RedisServer, delivery: CeleryDelivery):
    delivery.send([Message(1, 1)], "a")
    redis.restart()
    delivery.send([Message(2, 1)], "a")
    with redis.client() as client:
        assert client.llen("a") == 1


def test_stopping_twice_is_once_and_leaves_nothing_of_the_worker(
    redis: RedisServer, consumer: CeleryConsumer
):
    until(lambda: consumer.state == "listening", "listening")
    consumer.stop()
    consumer.stop()
    assert consumer.state == "stopped"
    with redis.client() as client:
        assert client.keys("*echo*") == []


def test_what_a_killed_worker_leaves_in_redis_ends_by_itself(
    redis: RedisServer, consumer: CeleryConsumer
):
    until(lambda: consumer.state == "listening", "listening")
    with redis.client() as client:
        until(lambda: client.keys("*echo*"), "kombu's notes")
        until(lambda: all(client.ttl(k) != -1 for k in client.keys("*echo*")), "an end for each")


def test_a_password_is_never_shown():
    assert shown("redis://user:secret@host:6379/1") == "redis://host:6379/1"


def test_a_worker_that_is_asked_to_drain_ends_as_at_sigterm(
    redis: RedisServer, inbox: Inbox, port: int, store: Store, store_settings: Settings
):
    """It hears no new messages first, so that none comes to a supervisor that takes no more."""
    update = {"redis_url": redis.url, "worker_port": port, "drain_s": 1.0}
    inbox.asked_to_drain = True
    inbox.state = "stopped"  # it had nothing to do, so it ended before the worker looked
    settings = store_settings.model_copy(update=update)
    run_worker(inbox, ["a"], 2, store, settings)  # type: ignore[arg-type]
    assert inbox.calls == ["start", "drain", "join", "stop"]


def test_a_worker_tells_its_health_and_drains_at_sigterm(
    redis: RedisServer, inbox: Inbox, port: int, store: Store, store_settings: Settings
):
    """200 while it hears, 503 while Redis is away; SIGTERM drains before it stops."""
    update = {"redis_url": redis.url, "worker_port": port, "drain_s": 1.0}
    settings = store_settings.model_copy(update=update)
    seen: list[httpx.Response] = []

    def status(wanted: int) -> bool:
        try:
            seen.append(httpx.get(f"http://127.0.0.1:{port}/health", timeout=WAIT_S))
        except httpx.TransportError:
            return False
        return seen[-1].status_code == wanted

    def watch() -> None:
        try:
            until(lambda: status(200), "healthy")
            redis.stop()
            until(lambda: status(503), "unhealthy")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run_worker(inbox, ["a"], 2, store, settings)  # type: ignore[arg-type]
    watcher.join()
    assert inbox.calls == ["start", "drain", "join", "stop"]
    healthy = next(r for r in seen if r.status_code == 200).json()
    assert healthy == {
        "worker_id": "test",
        "state": "running",
        "slots": 2,
        "busy": 0,
        "queues": ["a"],
        "consumer": "listening",
        "broker_reachable": True,
        "database_reachable": True,
    }
    assert seen[-1].json()["broker_reachable"] is False


def test_a_worker_without_redis_is_told_what_runs_jobs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(InputError, match="`theon serve` runs jobs itself"):
        worker()
