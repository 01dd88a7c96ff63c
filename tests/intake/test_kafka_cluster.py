"""Three brokers, of which one dies with SIGKILL: each message counts once, nothing told is lost."""

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from kafka_helpers import LIMIT_S, consuming, counts, ids, native, read_to, wait_for
from tests.kafka_broker import KafkaBroker

from theon.errors import UnavailableError
from theon.intake import kafka_client
from theon.intake.kafka_client import PUBLISHED
from theon.intake.kafka_offsets import rewind
from theon.intake.kafka_publisher import KafkaPublisher
from theon.intake.kafka_refusals import Heard
from theon.intake.kafka_status import consumer_health, read_status
from theon.roster.campuses import get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.outbox import REPORT_GENERATED, announce, waiting
from theon.store.scope import Scope

pytestmark = [pytest.mark.service, pytest.mark.slow]

PARTITIONS = 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaBroker]:
    try:
        brokers = KafkaBroker(nodes=3)
    except UnavailableError as error:
        pytest.skip(str(error))
    with brokers:
        yield brokers


class Feed(threading.Thread):
    """Sends messages to all partitions and has as many things announced, until it is stopped."""

    def __init__(self, cluster: KafkaBroker, store: Store, topic: str) -> None:
        super().__init__(daemon=True)
        self._producer = Producer(
            {"bootstrap.servers": cluster.brokers, "enable.idempotence": True, "log_level": 0}
        )
        self._store, self._topic = store, topic
        self._stopping = threading.Event()
        self.failed: list[object] = []
        self.sent = 0
        self.announced = 0

    def run(self) -> None:
        campus = get_campus(self._store, "lincoln")
        while not self._stopping.wait(0.05):
            for number in range(self.sent, self.sent + 12):
                self._producer.produce(
                    self._topic,
                    value=native(number),
                    partition=number % PARTITIONS,
                    on_delivery=lambda error, _: self.failed.append(error) if error else None,
                )
            self.sent += 12
            self._producer.poll(0)
            with self._store.transaction(Scope(campus.slug)) as conn:
                announce(conn, campus.id, REPORT_GENERATED, {"report": self.announced})
            self.announced += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        assert self._producer.flush(LIMIT_S) == 0
        assert self.failed == []


def make_topics(settings: Settings, topic: str) -> None:
    heard = Heard(settings)
    admin = kafka_client.open_admin(settings, heard)
    for name, partitions in ((topic, PARTITIONS), (PUBLISHED, 1)):
        kafka_client.create_topics(admin, (name,), heard, partitions=partitions, replicas=3)


def leaders(cluster: KafkaBroker, topic: str) -> dict[int, int]:
    """The broker that leads each partition."""
    found = cluster.admin().list_topics(topic, timeout=LIMIT_S).topics[topic].partitions
    return {number: partition.leader for number, partition in found.items()}


def in_sync(cluster: KafkaBroker, topic: str) -> set[int]:
    """How many brokers have all of a partition, of each."""
    found = cluster.admin().list_topics(topic, timeout=LIMIT_S).topics[topic].partitions
    return {len(partition.isrs) for partition in found.values()}


def told(cluster: KafkaBroker) -> list[dict[str, object]]:
    """All that stands on the topic of announcements."""
    consumer = Consumer({"bootstrap.servers": cluster.brokers, "group.id": uuid.uuid4().hex})
    _, end = consumer.get_watermark_offsets(TopicPartition(PUBLISHED, 0), timeout=LIMIT_S)
    consumer.assign([TopicPartition(PUBLISHED, 0, 0)])
    found: list[dict[str, object]] = []
    until_s = time.monotonic() + LIMIT_S
    while len(found) < end and time.monotonic() < until_s:
        found += [json.loads(m.value() or b"") for m in consumer.consume(1000, 1.0)]
    consumer.close()
    return found


class Watch(threading.Thread):
    """Somebody who looks at the status all the time."""

    def __init__(self, store: Store, settings: Settings, topic: str) -> None:
        super().__init__(daemon=True)
        self._ask = lambda: read_status(store, settings, (topic,))
        self._stopping = threading.Event()
        self.answers = 0

    def run(self) -> None:
        while not self._stopping.wait(0.3):
            with suppress(UnavailableError):
                self._ask()
                self.answers += 1

    def stop(self) -> None:
        self._stopping.set()


def test_a_broker_that_dies_with_partitions_being_read_costs_nothing(
    cluster: KafkaBroker, store: Store, settings: Settings, lincoln: str
) -> None:
    topic = f"user-events-{uuid.uuid4().hex[:8]}"
    configured = settings.model_copy(
        update={
            "kafka_brokers": cluster.brokers,
            "kafka_group_id": f"group-{topic}",
            "kafka_campus": lincoln,
            "kafka_batch_events": 50,
        }
    )
    watch = Watch(store, configured, topic)
    watch.start()
    make_topics(configured, topic)
    wait_for(lambda: in_sync(cluster, topic) == {3})
    feed, publisher = Feed(cluster, store, topic), KafkaPublisher(store, configured)
    feed.start()
    publisher.start()

    def goes_on() -> None:
        before = feed.sent
        wait_for(lambda: read_to(store, configured) > before + 200)

    try:
        with consuming(store, configured, topic) as one:
            with consuming(store, configured, topic) as other:
                wait_for(lambda: len(one.partitions) == len(other.partitions) == PARTITIONS // 2)
                goes_on()
                # It leads what is published and partitions of the topic.
                dead = leaders(cluster, PUBLISHED)[0]
                led = [number for number, at in leaders(cluster, topic).items() if at == dead]
                assert led
                cluster.kill(dead)
                goes_on()
                assert dead not in leaders(cluster, topic).values()
            wait_for(lambda: len(one.partitions) == PARTITIONS)
            # Whoever looks again where a partition stands has to find its new leader first.
            with store.transaction(Scope.district()) as conn:
                for number in led:
                    rewind(conn, configured.kafka_group_id, (topic, number), 0)
            goes_on()
            wait_for(lambda: one.state == "listening")
            assert consumer_health(store, configured).status == "ok"
            watch.stop()
            cluster.start()
            wait_for(lambda: in_sync(cluster, topic) == {3})
            # Now it is needed: what it caught up with must be what the others hold.
            cluster.kill(next(node for node in (1, 2, 3) if node != dead))
            goes_on()
            feed.stop()
            wait_for(lambda: read_status(store, configured, (topic,)).lag == 0)
            found = read_status(store, configured, (topic,))
            assert (found.lag, found.gaps, found.trouble, found.missing) == (0, [], None, [])
            assert (found.group_state, len(found.members)) == ("stable", 1)
            assert len(found.members[0].partitions) == PARTITIONS
    finally:
        watch.stop()
        watch.join()
        publisher.stop()
        publisher.join(LIMIT_S)
    while publisher.publish():
        pass
    assert watch.answers
    check_that_all_counts_once(cluster, store, feed)


def check_that_all_counts_once(cluster: KafkaBroker, store: Store, feed: Feed) -> None:
    _, accepted, again, rejected = counts(store)
    assert (accepted, rejected) == (feed.sent, 0)
    assert again  # what was read again
    assert ids(store) == sorted(f"e{number}" for number in range(feed.sent))
    with store.transaction(Scope.district()) as conn:
        assert waiting(conn)[0] == 0
    reports = Counter(said["data"]["report"] for said in told(cluster))  # type: ignore[index]
    assert sorted(reports) == list(range(feed.announced))
