"""How Theon speaks to Kafka: its properties, and what it asks and tells brokers beside messages."""

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    NewTopic,
    OffsetSpec,
)

from theon.errors import InputError, UnavailableError
from theon.intake.kafka_offsets import Extent, Place
from theon.settings import Settings

CONSUMED = ("user-events", "course-events", "assessment-events")
PUBLISHED = "analytics-events"
ANSWER_S = 10.0

T = TypeVar("T")

# A group's coordinator is chosen when it is first asked for, and anew after one went away.
_SOON = (
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)

_log = logging.getLogger(__name__)
_OURS = {
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "enable.idempotence",
    "isolation.level",
    "group.protocol",
    "partition.assignment.strategy",
}


def properties(settings: Settings) -> dict[str, Any]:
    """What every client of Theon is configured with.

    Raises:
        InputError: KAFKA_BROKERS is not set, or the file of properties cannot be read.
    """
    if settings.kafka_brokers is None:
        raise InputError(
            "no Kafka is named",
            where="KAFKA_BROKERS",
            next_step="Set it to the brokers, such as KAFKA_BROKERS=127.0.0.1:9092.",
        )
    given = _from_file(settings.kafka_properties) if settings.kafka_properties else {}
    return {
        "log_level": 2,  # what goes wrong is told in our words, once
        # A topic that is made, deleted or given more partitions is noticed in this time.
        "topic.metadata.refresh.interval.ms": 10_000,
        "reconnect.backoff.max.ms": 2_000,
        **given,
        "bootstrap.servers": settings.kafka_brokers.replace(" ", ""),
        "client.id": settings.kafka_client_id,
    }


def _from_file(path: Path) -> dict[str, str]:
    where = f"THEON_KAFKA_PROPERTIES ({path})"
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the file cannot be read: {error}",
            where=where,
            next_step="Point it to a text file of `name=value` lines.",
        ) from error
    found = {}
    for number, line in enumerate(lines, start=1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not name or name.startswith("#"):
            continue
        if not equals or name in _OURS:
            raise InputError(
                f"{name!r} is Theon's to set: its offsets rest on it"
                if equals
                else "a line without `=`",
                where=f"{where}, line {number}",
                next_step="Take the line out." if equals else "Write `name=value`.",
            )
        found[name] = value
    return found


def open_consumer(settings: Settings, **more: Any) -> Consumer:
    """A consumer of the group that stores no offset by itself.

    Raises:
        InputError: a property does not fit.
    """
    return _opened(
        Consumer,
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


def open_admin(settings: Settings) -> AdminClient:
    """A client that asks and makes.

    Raises:
        InputError: a property does not fit.
    """
    # A broker that is away is told by the question's own end.
    return _opened(AdminClient, {**properties(settings), "error_cb": lambda _: None})


def _opened(kind: Callable[..., T], configuration: dict[str, Any]) -> T:
    try:
        return kind(configuration, logger=_log)
    except KafkaException as error:
        raise InputError(
            f"a property of Kafka's client does not fit: {reason(error)}",
            where="THEON_KAFKA_PROPERTIES",
            next_step="Names and values are those of librdkafka's CONFIGURATION.md.",
        ) from error


def reason(error: KafkaException | KafkaError) -> str:
    """What went wrong, in Kafka's words."""
    found = error.args[0] if isinstance(error, KafkaException) else error
    return f"{found.name()}: {found.str()}" if isinstance(found, KafkaError) else str(found)


def unavailable(settings: Settings, error: KafkaException) -> UnavailableError:
    """For whoever waits for an answer of a broker."""
    return UnavailableError(
        f"Kafka does not answer: {reason(error)}",
        where=settings.kafka_brokers or "",
        next_step="Check that the brokers run and that KAFKA_BROKERS names them.",
    )


def topic_ids(admin: AdminClient, topics: Iterable[str], *, timeout_s: float) -> dict[str, str]:
    """The ids of those of the topics that exist; empty where the brokers give topics no ids.

    Raises:
        KafkaException: no broker answers.
    """
    asked = admin.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_s)
    found = {}
    for name, answer in asked.items():
        try:
            described = answer.result(timeout_s + 5)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                continue
            raise
        if described.topic_id is not None:
            found[name] = str(described.topic_id)
    return found


def partitions(admin: AdminClient, topics: Iterable[str]) -> list[Place]:
    """Every partition of those of the topics that exist.

    Raises:
        KafkaException: no broker answers.
    """
    # All topics: a question for one that does not exist could make it.
    known = admin.list_topics(timeout=ANSWER_S).topics
    return [(t, p) for t in topics if t in known for p in sorted(known[t].partitions)]


def extents(admin: AdminClient, places: list[Place]) -> dict[Place, Extent]:
    """What the broker holds of each partition.

    Raises:
        KafkaException: no broker answers, or a partition has none.
    """
    if not places:
        return {}
    ids = topic_ids(admin, {topic for topic, _ in places}, timeout_s=ANSWER_S)

    def ask(spec: OffsetSpec) -> dict[Place, int]:
        answers: dict[TopicPartition, Future[Any]] = admin.list_offsets(
            {TopicPartition(topic, number): spec for topic, number in places},
            request_timeout=ANSWER_S,
        )
        return {(p.topic, p.partition): a.result(ANSWER_S + 5).offset for p, a in answers.items()}

    low = ask(OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    high = ask(OffsetSpec.latest())  # type: ignore[no-untyped-call]
    return {place: Extent(low[place], high[place], ids.get(place[0])) for place in places}


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
    until_s = time.monotonic() + ANSWER_S
    while True:
        [answer] = admin.describe_consumer_groups([group], request_timeout=ANSWER_S).values()
        try:
            found = answer.result(ANSWER_S + 5)
            break
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.GROUP_ID_NOT_FOUND:
                return "no such group", []
            if code not in _SOON or time.monotonic() > until_s:
                raise
            time.sleep(0.2)
    members = [
        Member(
            member.client_id,
            member.host.lstrip("/"),
            sorted((p.topic, p.partition) for p in member.assignment.topic_partitions),
        )
        for member in found.members
    ]
    return found.state.name.lower().replace("_", " "), members


def create_topics(
    admin: AdminClient, topics: Iterable[str], *, partitions: int, replicas: int
) -> list[str]:
    """Make those of the topics that do not exist; returns their names.

    Raises:
        KafkaException: a topic cannot be made.
    """
    known = admin.list_topics(timeout=ANSWER_S).topics
    wanted = [NewTopic(t, partitions, replicas) for t in topics if t not in known]
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
