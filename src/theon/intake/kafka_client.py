"""Theon's clients of Kafka, and what they ask and tell brokers beside messages."""

import re
import struct
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ClusterMetadata,
    NewTopic,
    OffsetSpec,
)

from theon.intake.kafka_offsets import Extent, Place
from theon.intake.kafka_properties import open_client, properties
from theon.intake.kafka_refusals import Heard
from theon.settings import Settings

CONSUMED = ("user-events", "course-events", "assessment-events")
PUBLISHED = "analytics-events"
ANSWER_S = 10.0
LOOK_S = 3.0
# Of a topic that is deleted, or was made anew with fewer partitions.
_NOT_THERE = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)


def open_consumer(settings: Settings, **more: Any) -> Consumer:
    """A consumer of the group that stores no offset by itself.

    Raises:
        InputError: a property does not fit.
    """
    return open_client(
        Consumer,
        settings,
        {
            "session.timeout.ms": 10_000,
            "partition.assignment.strategy": "cooperative-sticky",
            "fetch.queue.backoff.ms": 50,
            "queued.max.messages.kbytes": settings.kafka_buffer_mb * 1024,
            **properties(settings),
            "group.id": settings.kafka_group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Only for offsets that are not there: where to read is in PostgreSQL.
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            **more,
        },
    )


def open_producer(settings: Settings, heard: Heard, **more: Any) -> Producer:
    """A producer that sends each message once and in order, to all replicas.

    Raises:
        InputError: a property does not fit.
    """
    configuration = {"linger.ms": 5, **properties(settings), "enable.idempotence": True, **more}
    return open_client(Producer, settings, {**configuration, "error_cb": heard})


def open_admin(settings: Settings, heard: Heard) -> AdminClient:
    """A client that asks and makes; `heard` explains why it has no answer.

    Raises:
        InputError: a property does not fit.
    """
    return open_client(AdminClient, settings, {**properties(settings), "error_cb": heard})


def check(settings: Settings) -> None:
    """Whether all that Theon does with Kafka can begin; asks no broker.

    Raises:
        InputError: no brokers are named, or a property does not fit.
    """
    open_consumer(settings).close()
    open_producer(settings, Heard(settings))


@dataclass
class Topics:
    """Some topics, as far as Theon's user may know of them.

    Attributes:
        existing: those that exist.
        ids: of these; empty where the brokers give topics no ids.
        unread: that may not be read.
        unwritten: that may not be written to.
    """

    existing: set[str] = field(default_factory=set)
    ids: dict[str, str] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    unwritten: set[str] = field(default_factory=set)


def describe(admin: AdminClient, topics: Iterable[str], *, timeout_s: float) -> Topics:
    """Look topics up.

    Raises:
        KafkaException: no broker answers.
    """
    asked = admin.describe_topics(
        TopicCollection(list(topics)),
        include_authorized_operations=True,
        request_timeout=timeout_s,
    )
    found = Topics()
    for name, answer in asked.items():
        try:
            described = answer.result(timeout_s + 5)
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                found.unread.add(name)
                found.unwritten.add(name)
            elif code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            continue
        found.existing.add(name)
        if described.topic_id is not None:
            found.ids[name] = str(described.topic_id)
        # Brokers without rights tell of none.
        rights = described.authorized_operations
        if rights and AclOperation.READ not in rights:
            found.unread.add(name)
        if rights and AclOperation.WRITE not in rights:
            found.unwritten.add(name)
    return found


def may_join(settings: Settings) -> bool:
    """Whether Theon's user may read as a member of its group; also where that does not come out.

    Asked as a consumer that never joins, and not by `describe_consumer_groups`: librdkafka aborts
    the whole process when that is under way while the group's coordinator moves (its issue 4605).
    """
    consumer = open_consumer(settings, error_cb=lambda _: None)
    try:
        until_s = time.monotonic() + LOOK_S
        while time.monotonic() < until_s:
            with suppress(KafkaException):  # what is wrong comes as a message
                consumer.committed([TopicPartition(CONSUMED[0], 0)], timeout=0.3)
                break
            message = consumer.poll(0)
            failed = message.error() if message is not None else None
            if failed is not None and failed.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                return False
        return True
    finally:
        consumer.close()


def partitions(admin: AdminClient, topics: Iterable[str], heard: Heard) -> list[Place]:
    """Every partition of those of the topics that exist and that Theon's user may know of.

    Raises:
        KafkaException: no broker answers.
    """
    # All topics: a question for one that does not exist could make it.
    known = _answered(admin, heard).topics
    return [(t, p) for t in topics if t in known for p in sorted(known[t].partitions)]


def _answered(admin: AdminClient, heard: Heard) -> ClusterMetadata:
    """What the cluster is made of; ends early where it is clear that no broker will tell."""
    until_s = time.monotonic() + ANSWER_S
    while True:
        try:
            return admin.list_topics(timeout=LOOK_S)
        except KafkaException:
            admin.poll(0)
            if heard.refusal or time.monotonic() + LOOK_S > until_s:
                raise


@dataclass
class Extents:
    """What the broker holds of some partitions.

    Attributes:
        found: of those that it told of.
        failed: why it told nothing of another; None where the others do not exist.
    """

    found: dict[Place, Extent] = field(default_factory=dict)
    failed: KafkaException | None = None


def extents(admin: AdminClient, places: list[Place]) -> Extents:
    """What the broker holds of each partition; one that has no answer keeps up no other.

    Raises:
        KafkaException: no broker answers.
    """
    if not places:
        return Extents()
    # This question also brings the leaders that the next ones go to up to date.
    ids = describe(admin, {topic for topic, _ in places}, timeout_s=ANSWER_S).ids
    answer = Extents()

    def ask(spec: OffsetSpec) -> dict[Place, int]:
        asked: dict[TopicPartition, Future[Any]] = admin.list_offsets(
            {TopicPartition(topic, number): spec for topic, number in places},
            request_timeout=ANSWER_S,
        )
        told = {}
        for partition, future in asked.items():
            try:
                told[partition.topic, partition.partition] = future.result(ANSWER_S + 5).offset
            except KafkaException as error:
                if error.args[0].code() not in _NOT_THERE:
                    answer.failed = error
        return told

    low = ask(OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    high = ask(OffsetSpec.latest())  # type: ignore[no-untyped-call]
    for place in places:
        if place in low and place in high:
            answer.found[place] = Extent(low[place], high[place], ids.get(place[0]))
    return answer


@dataclass(frozen=True)
class Member:
    """A member of the consumer group, by the broker."""

    client_id: str
    host: str
    partitions: list[Place]


def group_members(admin: AdminClient, group: str) -> tuple[str, list[Member]]:
    """The state of the group in the broker's words, and its members.

    Raises:
        KafkaException: no broker answers.
    """
    with warnings.catch_warnings():  # of the newer question; `may_join` says why not that one
        warnings.simplefilter("ignore", DeprecationWarning)
        found: list[Any] = admin.list_groups(group, timeout=ANSWER_S)
    if not found:
        return "no such group", []
    members = [
        Member(member.client_id, member.client_host.lstrip("/"), _assigned(member.assignment))
        for member in found[0].members
    ]
    # "PreparingRebalance"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", found[0].state).lower(), members


def _assigned(assignment: bytes) -> list[Place]:
    """The partitions of a member: Kafka's ConsumerProtocolAssignment, of any version."""
    found = []
    at = 2  # behind the version

    def number(kind: str) -> int:
        nonlocal at
        at += struct.calcsize(kind)
        return int(struct.unpack_from(kind, assignment, at - struct.calcsize(kind))[0])

    for _ in range(number(">i") if len(assignment) > at else 0):
        length = number(">h")
        topic = assignment[at : at + length].decode()
        at += length
        found += [(topic, number(">i")) for _ in range(number(">i"))]
    return sorted(found)


def create_topics(
    admin: AdminClient, topics: Iterable[str], heard: Heard, *, partitions: int, replicas: int
) -> list[str]:
    """Make those of the topics that do not exist; returns their names.

    With three replicas or more a message counts as written once two brokers have it.

    Raises:
        KafkaException: a topic cannot be made.
    """
    known = _answered(admin, heard).topics
    config = {"min.insync.replicas": "2"} if replicas > 2 else {}
    wanted = [NewTopic(t, partitions, replicas, config=config) for t in topics if t not in known]
    made = []
    if wanted:
        for name, answer in admin.create_topics(wanted, request_timeout=ANSWER_S).items():
            try:
                answer.result(ANSWER_S + 5)
                made.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
    return made
