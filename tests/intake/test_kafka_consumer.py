"""Kafka: every message is taken in once, whatever ends, returns or goes away meanwhile."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import Producer
from sqlalchemy import text
from tests.kafka_broker import KafkaBroker

from theon.intake.journal import read_journal
from theon.intake.kafka_consumer import KafkaConsumer
from theon.intake.kafka_offsets import standings
from theon.intake.kafka_reader import MessageReader
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

pytestmark = pytest.mark.service
LIMIT_S = 30.0


@pytest.fixture
def topic(kafka: KafkaBroker) -> Iterator[str]:
    """A topic of this test with two partitions."""
    name = f"user-events-{uuid.uuid4().hex[:8]}"
    kafka.create_topic(name, 2)
    yield name
    kafka.delete_topic(name)


@pytest.fixture
def configured(kafka: KafkaBroker, settings: Settings, topic: str, lincoln: str) -> Settings:
    return settings.model_copy(
        update={
            "kafka_brokers": kafka.brokers,
            "kafka_group_id": f"group-{topic}",
            "kafka_campus": lincoln,
        }
    )


def native(number: int, **more: Any) -> bytes:
    return json.dumps(
        {
            "id": f"e{number}",
            "event_name": "\\core\\event\\course_viewed",
            "occurred_at": datetime.now(UTC).isoformat(),
            "user_id": "5",
            **more,
        }
    ).encode()


def send(kafka: KafkaBroker, topic: str, values: Sequence[bytes | None], **how: Any) -> None:
    producer = Producer({"bootstrap.servers": kafka.brokers, "linger.ms": 5})
    failed: list[Any] = []
    for number, value in enumerate(values):
        producer.produce(
            topic,
            value=value,
            on_delivery=lambda error, _: failed.append(error) if error else None,
            **{"partition": number % 2, **how},
        )
    assert producer.flush(LIMIT_S) == 0
    assert failed == []


@contextmanager
def consuming(store: Store, settings: Settings, topic: str, **more: Any) -> Iterator[KafkaConsumer]:
    reader = MessageReader(store, settings)
    consumer = KafkaConsumer(store, settings, reader, topics=(topic,), **more)
    consumer.start()
    try:
        yield consumer
    finally:
        consumer.stop()
        consumer.join(LIMIT_S)
        assert not consumer.alive


def wait_for(holds: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    until_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until_s, "it took too long"
        time.sleep(0.05)


def ids(store: Store, slug: str = "lincoln") -> list[str]:
    campus = get_campus(store, slug)
    with store.transaction(Scope(slug)) as conn:
        _, events = read_journal(conn, campus.id)
    return sorted(events["event_id"].to_pylist())


def letters(store: Store, scope: str = "district") -> list[Any]:
    with store.transaction(Scope(scope)) as conn:
        return list(
            conn.execute(
                text(
                    "SELECT source, format, reason, detail, place, original"
                    " FROM theon.dead_letters ORDER BY place"
                )
            )
        )


def read_to(store: Store, settings: Settings) -> int:
    """Messages that the group has read."""
    with store.transaction(Scope.district()) as conn:
        return sum(s.messages for s in standings(conn, settings.kafka_group_id).values())


def test_messages_become_events_of_the_campus_they_name(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """By its header, by its field, or else by the setting."""
    add_campus(store, "other", "UTC")
    send(kafka, topic, [native(1), native(2, campus="other")])
    send(kafka, topic, [native(3)], headers=[("campus", b"other")])
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 3)
    assert letters(store) == []
    assert ids(store) == ["e1"]
    assert ids(store, "other") == ["e2", "e3"]
