"""Consumers that die in the middle of any step, a broker and a database that die beside them.

At the end every message is in the lake and in the metrics once.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import Producer
from sqlalchemy import text

from tests.kafka_broker import KafkaBroker
from theon.errors import UnavailableError
from theon.intake.kafka_client import CONSUMED, PUBLISHED
from theon.intake.kafka_status import read_status
from theon.lake.table import EventLake
from theon.metrics.refresh import refresh
from theon.pipeline import land_all
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store import postmaster
from theon.store.engine import Store
from theon.store.scope import Scope

pytestmark = [pytest.mark.slow, pytest.mark.service]

STEPS = ("collected", "locked", "accepted", "advanced", "committed")
TIMES = "3"  # a step is done before one dies after it
AGAIN = 300  # messages are sent twice
PER_S = 400
THEON = [sys.executable, "-c", "from theon.cli import main; main()"]
HOUR = datetime(2026, 11, 20, 10, tzinfo=UTC)


@pytest.fixture
def broker() -> Iterator[KafkaBroker]:
    try:
        broker = KafkaBroker()
    except UnavailableError as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture
def settings(broker: KafkaBroker) -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="theon-chaos-") as folder:
        properties = Path(folder) / "kafka.properties"
        properties.write_text("session.timeout.ms=2000\nheartbeat.interval.ms=500\n")
        home = Path(folder) / "home"
        yield Settings(
            home=home,
            postgres_url=None,
            postgres_app_url=None,
            kafka_brokers=broker.brokers,
            kafka_campus="lincoln",
            kafka_batch_events=100,
            kafka_properties=properties,
        )
        postmaster.stop(home / "postgres" / "data", limit_s=20)


def message(number: int) -> bytes:
    """One view by one of a hundred learners; one in three has no id of its own."""
    said = {
        "event_name": "\\core\\event\\course_viewed",
        "occurred_at": (HOUR + timedelta(seconds=number)).isoformat(),
        "user_id": str(number % 100 + 100),
        "course_id": "6",
        "component": "core",
        "action": "viewed",
    }
    return json.dumps(said if number % 3 == 0 else {"id": f"e{number}", **said}).encode()


class Feed(threading.Thread):
    """Sends messages at a steady rate until it is stopped, and then some of them again."""

    def __init__(self, brokers: str) -> None:
        super().__init__(daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": brokers, "enable.idempotence": True, "log_level": 0}
        )
        self._stopping = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            for number in range(self.sent, self.sent + PER_S // 10):
                self._send(number)
            self.sent += PER_S // 10
            time.sleep(0.1)
        for number in range(AGAIN):
            self._send(3 * number + 1)  # one with an id

    def _send(self, number: int) -> None:
        self._producer.produce(CONSUMED[number % 3], value=message(number), key=str(number % 100))
        self._producer.poll(0)

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        assert self._producer.flush(60) == 0


@contextmanager
def process(settings: Settings, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "THEON_HOME": str(settings.home),
        "KAFKA_BROKERS": str(settings.kafka_brokers),
        "THEON_KAFKA_CAMPUS": str(settings.kafka_campus),
        "THEON_KAFKA_BATCH_EVENTS": str(settings.kafka_batch_events),
        "THEON_KAFKA_PROPERTIES": str(settings.kafka_properties),
    }
    started = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
            try:
                started.wait(40)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait(10)


@pytest.mark.timeout(240)
def test_whatever_dies_when_each_message_counts_once(
    broker: KafkaBroker, settings: Settings
) -> None:
    for topic in (*CONSUMED, PUBLISHED):
        broker.create_topic(topic, 2)
    with Store.open(settings) as store:
        add_campus(store, "lincoln", "UTC")
        feed = Feed(broker.brokers)
        feed.start()
        with process(settings, *THEON, "kafka", "consume"):
            for step in STEPS:
                victim = (sys.executable, "-m", "tests.system.kafka_chaos_consumer", step)
                with process(settings, *victim, TIMES) as dies:
                    assert dies.wait(90) == -signal.SIGKILL
                if step == "locked":
                    broker.kill()
                    broker.start()
                if step == "advanced":
                    kill_server(settings.home)
        feed.stop()
        with process(settings, *THEON, "kafka", "consume"):
            wait_until_read(store, settings)
        lake = EventLake(settings)
        land_all(store, lake, settings)
        refresh(store, lake, settings)
        with store.transaction(Scope("lincoln")) as conn:
            counted = sum(int(row["total_actions"]) for row in daily(conn))
            received, accepted, duplicate = conn.execute(
                text(
                    "SELECT sum(received), sum(accepted), sum(duplicate) FROM theon.delivery_counts"
                )
            ).one()
        assert (received, accepted, duplicate) == (feed.sent + AGAIN, feed.sent, AGAIN)
        assert counted == feed.sent


def daily(conn: object) -> list[dict[str, object]]:
    rows = conn.execute(text("SELECT * FROM metrics.user_day")).mappings()  # type: ignore[attr-defined]
    return [dict(row) for row in rows]


def kill_server(home: Path) -> None:
    file = home / "postgres" / "data" / "postmaster.pid"
    # The file is empty for a moment while the server writes it.
    with suppress(FileNotFoundError, IndexError, ProcessLookupError):
        os.kill(int(file.read_text().split()[0]), signal.SIGKILL)


def wait_until_read(store: Store, settings: Settings) -> None:
    until_s = time.monotonic() + 90
    while (found := read_status(store, settings)).lag or not found.partitions:
        assert time.monotonic() < until_s, found
        time.sleep(0.5)
