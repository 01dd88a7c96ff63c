"""Kafka: every message is taken in once, by whichever consumer, and what is missing is known."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from kafka_helpers import (
    LIMIT_S,
    consuming,
    counts,
    found_gaps,
    ids,
    letters,
    native,
    read_to,
    send,
    wait_for,
)
from tests.kafka_broker import KafkaBroker

from theon.errors import UnavailableError
from theon.intake import kafka_client
from theon.intake.kafka_offsets import rewind
from theon.intake.kafka_status import read_status
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

pytestmark = pytest.mark.service


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


BAD: list[tuple[bytes | None, str]] = [
    (b"no json {", "not JSON"),
    (b"\xff\xfe", "not UTF-8"),
    (None, "not JSON"),
    (native(90, campus="nowhere"), "no such campus"),
    (native(92, campus="district"), "no such campus"),
    (native(91, occurred_at="yesterday"), "occurred_at is not a time"),
    (b'{"id": "x", "occurred_at": "2026-11-20T10:00:00Z"}', "type is missing"),
    (b"[1, 2]", "not a JSON object"),
]


def test_what_cannot_be_read_becomes_a_dead_letter_and_the_rest_goes_on(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """Byte for byte, with its place; a message without any bytes too."""
    values = [native(0), *(value for value, _ in BAD), native(1)]
    send(kafka, topic, values, partition=0)
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == len(values))
    assert ids(store) == ["e0", "e1"]
    found = {letter.place: letter for letter in letters(store)}
    for number, (value, reason) in enumerate(BAD, start=1):
        letter = found[f"{topic}/0 at {number}"]
        assert (letter.source, letter.format) == (f"kafka:{topic}", "messages")
        assert letter.reason == reason
        assert letter.original == (value or b"")


def test_a_plain_message_without_an_id_is_known_by_its_place(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """So it too is counted once when it is read again, and kept once where it cannot be read."""
    said = {"type": "UserEnrolled", "timestamp": "2026-11-20T10:00:00Z", "userId": 7, "courseId": 8}
    send(kafka, topic, [json.dumps(said).encode(), b"broken", b"broken"], partition=1)
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 3)
        with store.transaction(Scope.district()) as conn:
            rewind(conn, configured.kafka_group_id, (topic, 1), 0)
        wait_for(lambda: read_to(store, configured) == 6)
    assert ids(store) == [f"kafka:{topic}:1:0"]
    assert counts(store) == (6, 1, 1, 4)
    assert [letter.place for letter in letters(store)] == [f"{topic}/1 at 1", f"{topic}/1 at 2"]


def test_two_consumers_share_the_partitions_and_take_each_message_in_once(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """Also while the second comes and while the first leaves."""
    values = [native(number) for number in range(3000)]
    small = configured.model_copy(update={"kafka_batch_events": 50})
    with consuming(store, small, topic) as first:
        send(kafka, topic, values[:1000])
        with consuming(store, small, topic) as second:
            wait_for(lambda: len(first.partitions) == len(second.partitions) == 1)
            send(kafka, topic, values[1000:2000])
            wait_for(lambda: read_to(store, small) == 2000)
            assert first.messages
            assert second.messages
            first.stop()
            first.join(LIMIT_S)
            send(kafka, topic, values[2000:])
            wait_for(lambda: len(second.partitions) == 2)
            wait_for(lambda: read_to(store, small) == 3000)
    assert len(ids(store)) == 3000
    assert counts(store) == (3000, 3000, 0, 0)


def test_a_consumer_that_lost_its_partitions_unawares_writes_nothing(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str, tmp_path: Path
) -> None:
    """It slept with a batch in its hands while another took the same messages in."""
    file = tmp_path / "kafka.properties"
    file.write_text("session.timeout.ms=2000\nmax.poll.interval.ms=2000\n")
    quick = configured.model_copy(update={"kafka_properties": file})
    asleep, wake = threading.Event(), threading.Event()

    def sleep(step: str) -> None:
        if step == "collected" and not wake.is_set():
            asleep.set()
            wake.wait(LIMIT_S)

    send(kafka, topic, [native(number) for number in range(10)])
    with consuming(store, quick, topic, checkpoint=sleep) as first:
        assert asleep.wait(LIMIT_S)
        with consuming(store, quick, topic) as second:
            wait_for(lambda: read_to(store, quick) == 10)
            wake.set()
            send(kafka, topic, [native(number) for number in range(10, 20)])
            wait_for(lambda: read_to(store, quick) == 20)
            wait_for(lambda: len(first.partitions) + len(second.partitions) == 2)
    assert counts(store) == (20, 20, 0, 0)


def test_messages_that_expired_before_they_were_read_are_a_recorded_gap(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    send(kafka, topic, [native(0)], partition=0)
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 1)
    send(kafka, topic, [native(number) for number in range(1, 11)], partition=0)
    admin = kafka.admin()
    for done in admin.delete_records([TopicPartition(topic, 0, 6)]).values():
        done.result(LIMIT_S)
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 6)
    [gap] = found_gaps(store)
    assert (gap.source, gap.first_id, gap.last_id, gap.missing) == (f"kafka:{topic}/0", 1, 5, 5)
    assert "5 messages were removed by the topic's retention" in gap.explanation
    assert ids(store) == ["e0", "e10", "e6", "e7", "e8", "e9"]


def test_a_topic_that_is_made_anew_is_read_from_its_beginning(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """Its first message has the offset of an old one, and is another message all the same."""
    said = {"type": "UserEnrolled", "timestamp": "2026-11-20T10:00:00Z", "userId": 7}
    send(
        kafka, topic, [json.dumps({**said, "courseId": n}).encode() for n in range(5)], partition=0
    )
    with consuming(store, configured, topic) as consumer:
        wait_for(lambda: read_to(store, configured) == 5)
        kafka.delete_topic(topic)
        wait_for(lambda: topic not in kafka.topics())
        kafka.create_topic(topic, 2)
        send(kafka, topic, [json.dumps({**said, "courseId": 99}).encode()], partition=0)
        wait_for(lambda: read_to(store, configured) == 6, 40)
        assert consumer.state == "listening"
    assert f"kafka:{topic}#1:0:0" in ids(store)
    assert len(ids(store)) == 6
    gaps = {gap.source: gap.explanation for gap in found_gaps(store)}
    assert "from offset 5 on was not read" in gaps[f"kafka:{topic}/0"]
    # The other partition is told of too, once it is looked at: nobody knows what it had.
    assert all("made anew" in told for told in gaps.values())
    assert gaps.keys() <= {f"kafka:{topic}/0", f"kafka:{topic}/1"}


def test_a_partition_that_is_not_there_any_more_keeps_up_no_other(
    kafka: KafkaBroker, topic: str
) -> None:
    """A topic may be deleted, or made anew with fewer, before the group takes it away."""
    send(kafka, topic, [native(0)], partition=0)
    gone = [(topic, 9), ("no-such-topic", 0)]
    extents = kafka_client.extents(kafka.admin(), [*gone, (topic, 0), (topic, 1)])
    assert [(place, e.low, e.high) for place, e in extents.found.items()] == [
        ((topic, 0), 0, 1),
        ((topic, 1), 0, 0),
    ]
    assert extents.failed is None


def test_ends_of_transactions_are_no_gaps(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """They take an offset each; what a producer aborted is never read."""
    producer = Producer({"bootstrap.servers": kafka.brokers, "transactional.id": topic})
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        producer.produce(topic, value=native(number), partition=0)
        if number % 3 == 2:
            producer.flush()
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 4)
        send(kafka, topic, [native(7)], partition=0)
        wait_for(lambda: read_to(store, configured) == 5)
    assert ids(store) == ["e0", "e1", "e3", "e4", "e7"]
    assert found_gaps(store) == []


def test_status_says_how_far_each_partition_is_read(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    send(kafka, topic, [native(number) for number in range(6)], partition=0)
    found = read_status(store, configured, (topic, "no-such-topic"))
    assert [(p.low, p.high, p.next_offset, p.lag) for p in found.partitions] == [
        (0, 6, None, 6),
        (0, 0, None, 0),
    ]
    assert "no-such-topic" in found.missing
    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 6)
        found = read_status(store, configured, (topic,))
        assert [(p.next_offset, p.lag) for p in found.partitions] == [(6, 0), (0, 0)]
        assert found.partitions[0].last_event_at is not None
        [member] = found.members
        assert (member.client_id, member.partitions) == ("theon", [(topic, 0), (topic, 1)])
        [consumer] = found.consumers
        assert consumer.alive
    assert read_status(store, configured, (topic,)).consumers == []


def test_brokers_that_do_not_answer_are_named(store: Store, settings: Settings) -> None:
    nobody = settings.model_copy(update={"kafka_brokers": "127.0.0.1:1"})
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1: Kafka does not answer"):
        read_status(store, nobody)


def test_only_messages_that_were_just_sent_tell_of_a_clock(
    kafka: KafkaBroker, store: Store, configured: Settings, topic: str
) -> None:
    """Not those that lay in the topic while nobody read, nor those that are read again."""
    begun_s, now = time.monotonic(), datetime.now(UTC)
    ahead = [native(n, occurred_at=(now + timedelta(hours=3)).isoformat()) for n in range(3)]
    behind = [native(n, occurred_at=(now - timedelta(hours=5)).isoformat()) for n in range(3, 5)]
    old_ms = int((now - timedelta(hours=2)).timestamp() * 1000)
    send(kafka, topic, ahead, partition=0, timestamp=old_ms)
    send(kafka, topic, behind, partition=1)

    def lags() -> tuple[int, int, float]:
        with store.transaction(Scope.district()) as conn:
            return tuple(
                conn.exec_driver_sql(
                    "SELECT sum(timed), sum(ahead), min(least_lag_s) FROM theon.delivery_counts"
                ).one()
            )

    with consuming(store, configured, topic):
        wait_for(lambda: read_to(store, configured) == 5)
        timed, early, least_s = lags()
        assert (timed, early) == (2, 0)
        assert 5 * 3600 - 1 <= least_s <= 5 * 3600 + time.monotonic() - begun_s + 1
        send(kafka, topic, [native(5, occurred_at=(now + timedelta(hours=1)).isoformat())])
        wait_for(lambda: read_to(store, configured) == 6)
        told = lags()
        assert told[:2] == (3, 1)
        assert -3600 - 1 <= told[2] <= -3600 + time.monotonic() - begun_s + 1
        with store.transaction(Scope.district()) as conn:
            for number in range(2):
                rewind(conn, configured.kafka_group_id, (topic, number), 0)
        wait_for(lambda: read_to(store, configured) == 12)
        assert lags() == told
        # Where the broker stamps messages, it is the broker's clock that says when they came.
        kafka.configure_topic(topic, **{"message.timestamp.type": "LogAppendTime"})
        send(kafka, topic, [native(6)], timestamp=old_ms)
        wait_for(lambda: read_to(store, configured) == 13)
        assert lags()[0] == 4
