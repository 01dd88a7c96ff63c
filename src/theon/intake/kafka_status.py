"""How the reading of Kafka stands: lag per partition, consumers, gaps; and whether it is well."""

from dataclasses import dataclass, field
from datetime import datetime

from confluent_kafka import KafkaException
from sqlalchemy.exc import DBAPIError

from theon.errors import TheonError
from theon.intake import kafka_client
from theon.intake.gaps import KAFKA_OFFSETS, KeptGap, list_gaps
from theon.intake.kafka_heartbeats import Heartbeat, consumers
from theon.intake.kafka_offsets import standings
from theon.intake.kafka_refusals import Heard, in_one_line, missing_rights
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.outbox import waiting
from theon.store.scope import Scope


@dataclass(frozen=True)
class PartitionStatus:
    """One partition of a topic.

    Attributes:
        low: offset of the oldest message that the broker holds.
        high: offset that the next message gets.
        next_offset: of the first message that was not taken in; None before the first reading.
        lag: messages that wait, at most: ends of transactions count too.
        last_event_at: time of the last message taken in, by its producer.
    """

    topic: str
    partition: int
    low: int
    high: int
    next_offset: int | None
    lag: int
    last_event_at: datetime | None


@dataclass(frozen=True)
class KafkaStatus:
    """All of it.

    Attributes:
        missing: topics that do not exist.
        group_state: of the consumer group, in the broker's words.
        members: of the group, by the broker.
        consumers: that wrote a heartbeat within the hour.
        gaps: offsets that could no longer be read and that nobody has seen to.
        outbox: announcements that wait to be published.
        outbox_since: when the oldest of them was made.
        trouble: which rights Theon's user lacks at the brokers, and what to do.
    """

    group: str
    partitions: list[PartitionStatus]
    missing: list[str]
    group_state: str
    members: list[kafka_client.Member]
    consumers: list[Heartbeat]
    gaps: list[KeptGap]
    outbox: int
    outbox_since: datetime | None
    trouble: str | None = None

    @property
    def lag(self) -> int:
        """Messages that wait in all partitions."""
        return sum(partition.lag for partition in self.partitions)


def read_status(
    store: Store, settings: Settings, topics: tuple[str, ...] = kafka_client.CONSUMED
) -> KafkaStatus:
    """Ask the brokers and the database.

    Raises:
        InputError: no brokers are named.
        UnavailableError: brokers or database are away, or refuse (`RefusedError`).
    """
    group = settings.kafka_group_id
    heard = Heard(settings)
    admin = kafka_client.open_admin(settings, heard)
    asked = (*topics, kafka_client.PUBLISHED)
    try:
        places = kafka_client.partitions(admin, topics, heard)
        described = kafka_client.describe(admin, asked, timeout_s=kafka_client.ANSWER_S)
        extents = kafka_client.extents(admin, places)
        if extents.failed is not None:
            raise extents.failed
        group_state, members = kafka_client.group_members(admin, group)
        may_join = kafka_client.may_join(settings)
        lacking = missing_rights(
            settings,
            unread=described.unread & set(topics),
            unwritten=described.unwritten & {kafka_client.PUBLISHED},
            may_join=may_join,
        )
    except KafkaException as error:
        admin.poll(0)
        raise heard.explain(error, "ask how its topics stand") from error
    with store.transaction(Scope.district()) as conn:
        read = standings(conn, group)
        alive = consumers(conn, group)
        found = list_gaps(conn, kind=KAFKA_OFFSETS)
        outbox, outbox_since = waiting(conn)
    partitions = []
    for place, extent in extents.found.items():
        standing = read.get(place)
        begun = extent.low if standing is None else max(standing.next_offset, extent.low)
        partitions.append(
            PartitionStatus(
                *place,
                low=extent.low,
                high=extent.high,
                next_offset=None if standing is None else standing.next_offset,
                lag=max(extent.high - begun, 0),
                last_event_at=None if standing is None else standing.last_event_at,
            )
        )
    # What may not be known of may exist all the same.
    known = described.existing | described.unread
    return KafkaStatus(
        group,
        partitions,
        [topic for topic in asked if topic not in known],
        group_state if may_join else "not shown to Theon's user",
        members,
        alive,
        found,
        outbox,
        outbox_since,
        None if lacking is None else in_one_line(lacking),
    )


_STARTING = "The consumer is starting."
_NOBODY = "No consumer runs: `theon serve` or `theon kafka consume` would be one."


@dataclass(frozen=True)
class ConsumerHealth:
    """Whether events from Kafka are read, for `/health`.

    Attributes:
        status: `off` without KAFKA_BROKERS, `ok` where a consumer listens, else `fail`.
        consumers: consumers of the group that are alive.
        states: what these say of themselves.
        what: why not, where not.
    """

    status: str
    consumers: int = 0
    states: list[str] = field(default_factory=list)
    what: str | None = None


def consumer_health(store: Store, settings: Settings) -> ConsumerHealth:
    """How the group's consumers do, whatever processes they are in; asks the database only."""
    if settings.kafka_brokers is None:
        return ConsumerHealth("off")
    try:
        with store.transaction(Scope.district()) as conn:
            alive = [c for c in consumers(conn, settings.kafka_group_id) if c.alive]
    except (TheonError, DBAPIError) as error:
        return ConsumerHealth("fail", what=error.what if isinstance(error, TheonError) else "?")
    states = [consumer.state for consumer in alive]
    if "listening" in states:
        return ConsumerHealth("ok", len(alive), states)
    reasons = [consumer.error for consumer in alive if consumer.error]
    what = reasons[0] if reasons else _STARTING if alive else _NOBODY
    return ConsumerHealth("fail", len(alive), states, what)
