"""What is announced in a transaction is told on Kafka once it is committed, and not before."""

import json
import uuid
from collections.abc import Callable
from contextlib import suppress

import pytest
from arriving import arrival
from confluent_kafka import Consumer, TopicPartition
from tests.kafka_broker import KafkaBroker

from theon.errors import UnavailableError
from theon.intake.door import accept
from theon.intake.kafka_client import PUBLISHED
from theon.intake.kafka_publisher import KafkaPublisher
from theon.intake.landing import land
from theon.lake.table import EventLake
from theon.metrics.refresh import refresh
from theon.roster.campuses import Campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.outbox import ANALYTICS_UPDATED, REPORT_GENERATED, announce, waiting
from theon.store.scope import Scope

pytestmark = pytest.mark.service

ANSWER_S = 60.0


@pytest.fixture
def campus(store: Store, lincoln: str) -> Campus:
    return get_campus(store, lincoln)


@pytest.fixture
def configured(kafka: KafkaBroker, settings: Settings) -> Settings:
    return settings.model_copy(update={"kafka_brokers": kafka.brokers})


@pytest.fixture
def heard(kafka: KafkaBroker) -> Callable[[], list[dict[str, object]]]:
    """The announcements on the topic that were made since the test began."""
    admin = kafka.admin()
    if PUBLISHED not in admin.list_topics(timeout=ANSWER_S).topics:
        kafka.create_topic(PUBLISHED, 1)
    consumer = Consumer({"bootstrap.servers": kafka.brokers, "group.id": uuid.uuid4().hex})
    _, begin = consumer.get_watermark_offsets(TopicPartition(PUBLISHED, 0), timeout=ANSWER_S)
    consumer.assign([TopicPartition(PUBLISHED, 0, begin)])

    def read() -> list[dict[str, object]]:
        _, end = consumer.get_watermark_offsets(TopicPartition(PUBLISHED, 0), timeout=ANSWER_S)
        messages = consumer.consume(end - begin, ANSWER_S) if end > begin else []
        return [json.loads(m.value() or b"") for m in messages]

    return read


def count(store: Store) -> int:
    with store.transaction(Scope.district()) as conn:
        return waiting(conn)[0]


def learn(store: Store, lake: EventLake, settings: Settings, campus: Campus, name: str) -> None:
    """An event arrives, lands and is counted."""
    with store.transaction(Scope(campus.slug)) as conn:
        accept(conn, campus, "http:test", arrival([{"id": name, "at": 1_780_000_000}]))
    land(store, lake, settings, campus)
    refresh(store, lake, settings)


def test_a_refresh_tells_which_metrics_of_which_campus_changed(
    store: Store,
    lake: EventLake,
    configured: Settings,
    campus: Campus,
    heard: Callable[[], list[dict[str, object]]],
) -> None:
    learn(store, lake, configured, campus, "a")
    refresh(store, lake, configured)  # changes nothing, so there is nothing to tell
    assert KafkaPublisher(store, configured).publish() == 1
    [told] = heard()
    assert (told["type"], told["campus"]) == (ANALYTICS_UPDATED, campus.slug)
    data = told["data"]
    assert isinstance(data, dict)
    assert "user_day" in data["metrics"]
    assert data["rows"]["user_day"] == 1
    assert {"id", "at"} <= told.keys()
    assert count(store) == 0
    assert KafkaPublisher(store, configured).publish() == 0


def test_without_kafka_nothing_is_kept_for_it(
    store: Store, lake: EventLake, settings: Settings, campus: Campus
) -> None:
    learn(store, lake, settings.model_copy(update={"kafka_brokers": None}), campus, "a")
    assert count(store) == 0


def test_what_was_rolled_back_is_never_told(
    store: Store, configured: Settings, campus: Campus
) -> None:
    with suppress(RuntimeError), store.transaction(Scope(campus.slug)) as conn:
        announce(conn, campus.id, REPORT_GENERATED, {"report": 1})
        raise RuntimeError
    assert KafkaPublisher(store, configured).publish() == 0


@pytest.mark.slow
def test_while_the_broker_is_away_announcements_wait_and_keep_their_ids(
    kafka: KafkaBroker,
    store: Store,
    configured: Settings,
    campus: Campus,
    heard: Callable[[], list[dict[str, object]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with store.transaction(Scope(campus.slug)) as conn:
        for number in range(3):
            announce(conn, campus.id, REPORT_GENERATED, {"report": number})
    publisher = KafkaPublisher(store, configured)
    kafka.kill()
    try:
        with monkeypatch.context() as patch:  # there is all the time for it when it is back
            patch.setattr("theon.intake.kafka_publisher.DELIVERY_S", 2.0)
            with pytest.raises(UnavailableError, match="3 announcements were not delivered"):
                publisher.publish()
        assert count(store) == 3
    finally:
        kafka.start()
    assert publisher.publish() == 3
    told = heard()
    assert [t["data"] for t in told] == [{"report": 0}, {"report": 1}, {"report": 2}]
    assert len({t["id"] for t in told}) == 3
    assert count(store) == 0


def test_a_campus_sees_only_its_own_announcements(
    store: Store, configured: Settings, campus: Campus
) -> None:
    with store.transaction(Scope.district()) as conn:
        announce(conn, campus.id, REPORT_GENERATED, {})
    with store.transaction(Scope("nobody")) as conn:
        assert waiting(conn)[0] == 0
    with store.transaction(Scope(campus.slug)) as conn:
        assert waiting(conn)[0] == 1
