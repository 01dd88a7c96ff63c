"""Messages sent to a real Kafka, consumers of them, and what became of the messages."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arriving import delivered
from confluent_kafka import Producer
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.kafka_broker import KafkaBroker

from theon.errors import UnavailableError
from theon.intake.gaps import KeptGap, list_gaps
from theon.intake.journal import read_journal
from theon.intake.kafka_consumer import KafkaConsumer
from theon.intake.kafka_offsets import standings
from theon.intake.kafka_reader import MessageReader
from theon.roster.campuses import get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

LIMIT_S = 120.0  # patience: what comes sooner ends the wait


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
    more.setdefault("reader", MessageReader(store, settings))
    consumer = KafkaConsumer(store, settings, topics=(topic,), **more)
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


def counts(store: Store) -> tuple[int, ...]:
    """Received, accepted, duplicate, rejected."""
    return delivered(store, "district")[:4]


def found_gaps(store: Store) -> list[KeptGap]:
    with store.transaction(Scope.district()) as conn:
        return list_gaps(conn)


def quietly(ask: Callable[[], int]) -> int | None:
    """What is asked, or None while the database is away."""
    try:
        return ask()
    except (UnavailableError, DBAPIError):
        return None


def kill_server(home: Path) -> None:
    """Kill the embedded PostgreSQL, if it runs."""
    file = home / "postgres" / "data" / "postmaster.pid"
    # The file is empty for a moment while the server writes it.
    with suppress(FileNotFoundError, IndexError, ProcessLookupError):
        os.kill(int(file.read_text().split()[0]), signal.SIGKILL)
