"""One transaction for one batch of messages: their events, what was refused, their offsets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from theon.intake.arrivals import Arrival
from theon.intake.door import accept
from theon.intake.kafka_offsets import Move, Place, Position, advance, overtaken
from theon.lake.lake_ids import LakeIds
from theon.roster.campuses import Campus
from theon.store.engine import Store
from theon.store.scope import Scope

Checkpoint = Callable[[str], None]
Batch = Mapping[Place, Sequence[Message]]


@dataclass(frozen=True)
class Delivery:
    """The messages of a batch that are one campus's and of one topic."""

    campus: Campus
    source: str
    arrival: Arrival


class Reader(Protocol):
    """Turns messages into deliveries, every message in exactly one."""

    def read(
        self, batch: Batch, positions: Mapping[Place, Position], fault: str | None = None
    ) -> list[Delivery]:
        """Read a batch; with a `fault` nothing is read and everything is refused for it."""


class OvertakenError(Exception):
    """Somebody else took in messages of these partitions, or moved them."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        super().__init__(", ".join(f"{topic}/{partition}" for topic, partition in places))


def take_in(
    store: Store,
    group: str,
    reader: Reader,
    batch: Batch,
    positions: Mapping[Place, Position],
    *,
    fault: str | None = None,
    deliveries: list[Delivery] | None = None,
    lake_ids: LakeIds | None = None,
    checkpoint: Checkpoint = lambda _: None,
) -> list[Move]:
    """Take in a batch: all of it and the places behind it, or nothing.

    Args:
        store: open.
        group: the consumer group.
        reader: of messages.
        batch: per partition its messages, in order, from its position on.
        positions: of these partitions, as the caller believes them to be.
        fault: why its messages are refused unread.
        deliveries: what the reader made of this batch, if it was read before.
        lake_ids: ids noted beside the lake.
        checkpoint: called with the name of each step that was just done, for tests.

    Returns:
        Where each partition stands now.

    Raises:
        OvertakenError: a partition is not there any more; nothing was kept.
        UnavailableError: the database is away; nothing was kept, unless it went away in the
            commit itself, and then the next attempt finds the partitions moved.
    """
    if deliveries is None:
        deliveries = reader.read(batch, positions, fault)
    moves = [_move(place, messages) for place, messages in batch.items()]
    with store.transaction(Scope.district()) as conn:
        moved = overtaken(conn, group, {place: positions[place] for place in batch})
        if moved:
            raise OvertakenError(moved)
        checkpoint("locked")
        # In one order everywhere: a source's row of the ledger is locked until the end.
        for delivery in sorted(deliveries, key=lambda d: (d.campus.id, d.source)):
            accept(conn, delivery.campus, delivery.source, delivery.arrival, lake_ids=lake_ids)
        checkpoint("accepted")
        advance(conn, group, moves)
        checkpoint("advanced")
    checkpoint("committed")
    return moves


def _move(place: Place, messages: Sequence[Message]) -> Move:
    last = messages[-1]
    kind, ms = last.timestamp()
    at = None if kind == TIMESTAMP_NOT_AVAILABLE else datetime.fromtimestamp(ms / 1000, UTC)
    offset = last.offset()
    assert offset is not None  # noqa: S101 - it came from a broker
    return Move(place, offset + 1, len(messages), at)
