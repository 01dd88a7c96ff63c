"""Where the reading of Kafka stands: a row per partition, moved with what its messages brought.

The row decides, and the broker's own memory of offsets does not: it is written for tools that show
lag. Whoever takes messages in locks their partitions' rows first and compares. So a consumer that
lost a partition and does not know it yet finds the row moved, and writes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from theon.intake.gaps import KAFKA_OFFSETS, Gap, notice
from theon.store.scope import DISTRICT

Place = tuple[str, int]  # topic and partition

EXPIRED = "were removed by the topic's retention before they were read."
CUT_OFF = "that were read are not there any more: a broker lost them, and perhaps others."
MADE_ANEW = "was deleted and made anew, so its offsets begin again."

# Of all groups, as ids of messages that have none are made of it: of a topic that one of them knows
# it is the same for each, of one that none knows the next. Some brokers tell no ids of topics.
_GENERATION = """(
    SELECT coalesce(
        max(generation) FILTER (WHERE CAST(:topic_id AS text) IS NULL OR topic_id = :topic_id),
        CASE WHEN bool_and(topic_id IS NULL) THEN max(generation) ELSE max(generation) + 1 END,
        0
    )
    FROM theon.kafka_offsets WHERE (topic, partition) = (:topic, :partition)
)"""
_ROOT = f"(SELECT id FROM theon.campuses WHERE slug = '{DISTRICT}')"


@dataclass(frozen=True)
class Position:
    """How far a partition was read.

    Attributes:
        next_offset: of the first message that was not taken in.
        generation: how often its topic was made anew.
        topic_id: by the broker; None where it tells none.
    """

    next_offset: int
    generation: int = 0
    topic_id: str | None = None


@dataclass(frozen=True)
class Extent:
    """What the broker holds of a partition: offsets from `low` up to and without `high`."""

    low: int
    high: int
    topic_id: str | None = None


@dataclass(frozen=True)
class Lost:
    """Offsets from `first` up to and without `end` that can no longer be read.

    `end` is None where nobody knows how many they are, or whether any: of a topic that was made
    anew.
    """

    place: Place
    why: str
    first: int
    end: int | None

    @property
    def sentence(self) -> str:
        """For whoever has to see to it."""
        place = f"Partition {self.place[1]} of {self.place[0]}"
        if self.end is None:
            return f"{place} {self.why} What it had from offset {self.first} on was not read."
        return f"{place}: {self.end - self.first:,} messages {self.why}"


class CutOffError(Exception):
    """A partition ends before where we are; perhaps it is only not up to date yet."""


def settle(
    conn: Connection, group: str, place: Place, extent: Extent, *, cut_off: bool = False
) -> tuple[Position, Lost | None]:
    """Where to read a partition on; what was missed is recorded.

    Args:
        conn: a transaction of the district.
        group: the consumer group.
        place: topic and partition.
        extent: what the broker holds of it.
        cut_off: believe that a partition ends before where we are.

    Raises:
        CutOffError: it does, and `cut_off` is not given.
    """
    who = {"group": group, "topic": place[0], "partition": place[1]}
    conn.execute(
        text(
            "INSERT INTO theon.kafka_offsets (campus_id, group_id, topic, partition, topic_id,"
            f" generation, next_offset) VALUES ({_ROOT}, :group, :topic, :partition, :topic_id,"
            f" {_GENERATION}, :low) ON CONFLICT DO NOTHING"
        ),
        {**who, "low": extent.low, "topic_id": extent.topic_id},
    )
    row = conn.execute(
        text(
            "SELECT next_offset, generation, topic_id FROM theon.kafka_offsets"
            " WHERE (group_id, topic, partition) = (:group, :topic, :partition) FOR UPDATE"
        ),
        who,
    ).one()
    found = Position(*row)
    anew = None not in (found.topic_id, extent.topic_id) and found.topic_id != extent.topic_id
    lost = None
    if anew:
        generation = conn.execute(
            text(f"SELECT {_GENERATION}"), {**who, "topic_id": extent.topic_id}
        ).scalar_one()
        position = Position(extent.low, generation, extent.topic_id)
        lost = Lost(place, MADE_ANEW, found.next_offset, None)
    elif found.next_offset > extent.high:
        if not cut_off:
            raise CutOffError(f"{place[0]}/{place[1]} ends before where it was read to")
        position = Position(extent.high, found.generation, extent.topic_id or found.topic_id)
        lost = Lost(place, CUT_OFF, extent.high, found.next_offset)
    elif found.next_offset < extent.low:
        position = Position(extent.low, found.generation, extent.topic_id or found.topic_id)
        lost = Lost(place, EXPIRED, found.next_offset, extent.low)
    else:
        position = Position(found.next_offset, found.generation, extent.topic_id or found.topic_id)
    if position != found:
        conn.execute(
            text(
                "UPDATE theon.kafka_offsets SET next_offset = :next, generation = :generation,"
                " topic_id = :topic_id, moved_at = clock_timestamp()"
                " WHERE (group_id, topic, partition) = (:group, :topic, :partition)"
            ),
            {
                **who,
                "next": position.next_offset,
                "generation": position.generation,
                "topic_id": position.topic_id,
            },
        )
    if lost is not None:
        record(conn, lost)
    return position, lost


def record(conn: Connection, lost: Lost) -> None:
    """Put offsets that can no longer be read on record, as a gap of the district.

    Args:
        conn: a transaction of the district.
        lost: which.
    """
    end = lost.first + 1 if lost.end is None else lost.end
    root = conn.execute(text(f"SELECT {_ROOT}")).scalar_one()
    notice(
        conn,
        root,
        Gap(
            KAFKA_OFFSETS,
            f"kafka:{lost.place[0]}/{lost.place[1]}",
            lost.sentence,
            first_id=lost.first,
            last_id=end - 1,
            missing=end - lost.first,
        ),
    )


def overtaken(conn: Connection, group: str, expected: Mapping[Place, Position]) -> list[Place]:
    """Hold the partitions' rows until the transaction ends; those that somebody else has moved.

    Args:
        conn: a transaction of the district.
        group: the consumer group.
        expected: where the caller believes them to be.
    """
    rows = conn.execute(
        text(
            "SELECT topic, partition, next_offset, generation FROM theon.kafka_offsets"
            " WHERE group_id = :group AND (topic, partition) IN (SELECT * FROM"
            " unnest(CAST(:topics AS text[]), CAST(:partitions AS int[])))"
            # In one order everywhere, or two consumers could wait for each other.
            " ORDER BY topic, partition FOR UPDATE"
        ),
        {
            "group": group,
            "topics": [topic for topic, _ in expected],
            "partitions": [partition for _, partition in expected],
        },
    )
    found = {(topic, partition): (offset, age) for topic, partition, offset, age in rows}
    return [
        place
        for place, position in expected.items()
        if found.get(place) != (position.next_offset, position.generation)
    ]


@dataclass(frozen=True)
class Move:
    """A partition's messages up to and without `next_offset` are taken in."""

    place: Place
    next_offset: int
    messages: int
    last_event_at: datetime | None


def advance(conn: Connection, group: str, moves: Iterable[Move]) -> None:
    """Move partitions that the transaction holds (`overtaken`)."""
    conn.execute(
        text(
            "UPDATE theon.kafka_offsets SET next_offset = :next, messages = messages + :messages,"
            " last_event_at = coalesce(:at, last_event_at), moved_at = clock_timestamp()"
            " WHERE (group_id, topic, partition) = (:group, :topic, :partition)"
        ),
        [
            {
                "group": group,
                "topic": move.place[0],
                "partition": move.place[1],
                "next": move.next_offset,
                "messages": move.messages,
                "at": move.last_event_at,
            }
            for move in moves
        ],
    )


@dataclass(frozen=True)
class Standing:
    """A row of `kafka_offsets`, for people."""

    topic: str
    partition: int
    next_offset: int
    messages: int
    last_event_at: datetime | None
    moved_at: datetime


def standings(conn: Connection, group: str) -> dict[Place, Standing]:
    """How far each partition was read."""
    rows = conn.execute(
        text(
            "SELECT topic, partition, next_offset, messages, last_event_at, moved_at"
            " FROM theon.kafka_offsets WHERE group_id = :group ORDER BY topic, partition"
        ),
        {"group": group},
    )
    return {(row.topic, row.partition): Standing(*row) for row in rows}


def rewind(conn: Connection, group: str, place: Place, offset: int) -> bool:
    """Let a partition be read again from `offset`; False if it was not read that far.

    Only back: what lies between would never be read. Consumers notice with their next messages:
    these find the row moved.
    """
    done = conn.execute(
        text(
            "UPDATE theon.kafka_offsets SET next_offset = :offset, moved_at = clock_timestamp()"
            " WHERE (group_id, topic, partition) = (:group, :topic, :partition)"
            " AND next_offset >= :offset"
        ),
        {"group": group, "topic": place[0], "partition": place[1], "offset": offset},
    )
    return bool(done.rowcount)
