"""Kafka: what goes away comes back, and meanwhile all waits; what cannot be read is set aside."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from kafka_helpers import (
    consuming,
    counts,
    ids,
    kill_server,
    letters,
    native,
    quietly,
    read_to,
    send,
    wait_for,
)
from sqlalchemy import text
from tests.kafka_broker import KafkaBroker

from theon.intake.kafka_batches import Batch, Delivery
from theon.intake.kafka_consumer import MOST_FAULTS
from theon.intake.kafka_offsets import Place, Position
from theon.intake.kafka_reader import MessageReader
from theon.intake.kafka_status import consumer_health
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store import postmaster
from theon.store.engine import Store
from theon.store.scope import Scope

pytestmark = pytest.mark.service


@pytest.mark.slow
def test_while_the_broker_is_away_the_consumer_waits_and_goes_on_after_it(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    with consuming(store, configured, topic) as consumer:
        send(kafka, topic, [native(number) for number in range(10)])
        wait_for(lambda: read_to(store, configured) == 10)
        kafka.kill()
        try:
            wait_for(lambda: consumer.state == "broker away")
            wait_for(lambda: consumer_health(store, configured).status == "fail")
        finally:
            kafka.start()
        send(kafka, topic, [native(number) for number in range(10, 20)])
        wait_for(lambda: read_to(store, configured) == 20, 60)
        wait_for(lambda: consumer.state == "listening")
        wait_for(lambda: consumer_health(store, configured).status == "ok")
    assert counts(store) == (20, 20, 0, 0)
    assert consumer_health(store, configured).status == "fail"


@pytest.mark.slow
def test_while_the_database_is_away_the_consumer_pauses_and_loses_nothing(
    kafka: KafkaBroker, configured: Settings, topic: str
) -> None:
    """Its server is killed again and again while messages come."""
    with tempfile.TemporaryDirectory(prefix="theon-kafka-") as folder:
        own = configured.model_copy(
            update={"home": Path(folder) / "home", "kafka_batch_events": 20}
        )
        with Store.open(own) as store:
            add_campus(store, "lincoln", "UTC")
            with consuming(store, own, topic):
                for round_ in range(4):
                    send(kafka, topic, [native(round_ * 500 + n) for n in range(500)])
                    time.sleep(0.3)
                    kill_server(own.home_dir)
                wait_for(lambda: quietly(lambda: read_to(store, own)) == 2000, 60)
            assert len(ids(store)) == 2000
            assert counts(store) == (2000, 2000, 0, 0)
        postmaster.stop(own.home_dir / "postgres" / "data", limit_s=60)


def test_a_lock_makes_intake_slower_and_not_wrong(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    with consuming(store, configured, topic) as consumer:
        wait_for(lambda: len(consumer.partitions) == 2)
        with store.transaction(Scope.district()) as conn:
            conn.execute(text("SELECT 1 FROM theon.kafka_offsets FOR UPDATE"))
            send(kafka, topic, [native(number) for number in range(100)])
            time.sleep(1.5)
        wait_for(lambda: read_to(store, configured) == 100)
    assert counts(store) == (100, 100, 0, 0)


class _Choking:
    """A reader with a fault of its own: it cannot read messages that hold a word."""

    def __init__(self, store: Store, settings: Settings, word: bytes) -> None:
        self._reader = MessageReader(store, settings)
        self._word = word

    def read(
        self, batch: Batch, positions: Mapping[Place, Position], fault: str | None = None
    ) -> list[Delivery]:
        for messages in batch.values():
            if fault is None and any(self._word in (m.value() or b"") for m in messages):
                raise ValueError("choked")
        return self._reader.read(batch, positions, fault)


def test_a_message_that_nothing_can_be_done_with_is_found_and_set_aside(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    values = [native(number, user_id="poison" if number == 37 else "5") for number in range(100)]
    send(kafka, topic, values)
    reader = _Choking(store, configured, b"poison")
    with consuming(store, configured, topic, reader=reader):
        wait_for(lambda: read_to(store, configured) == 100)
    assert counts(store) == (100, 99, 0, 1)
    [letter] = letters(store)
    assert (letter.reason, letter.detail) == ("could not be taken in", "ValueError: choked")
    assert letter.original == values[37]


def test_where_nothing_can_be_taken_in_all_waits(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """Then it is not the messages, and they are not to be set aside one after the other."""
    send(kafka, topic, [native(number) for number in range(200)])
    reader = _Choking(store, configured, b"event_name")
    with consuming(store, configured, topic, reader=reader) as consumer:
        wait_for(lambda: consumer.state == "failing")
        time.sleep(0.5)
    assert read_to(store, configured) <= 2 * MOST_FAULTS
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 200)
