"""The partitions that a consumer holds, and where it reads in each.

A partition that was just given, or that turns out to have moved, is *unsettled*: paused until its
row in PostgreSQL and what the broker holds of it were looked at.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from theon.intake import kafka_client
from theon.intake.kafka_offsets import (
    EXPIRED,
    CutOffError,
    Extent,
    Lost,
    Move,
    Place,
    Position,
    record,
    settle,
)
from theon.intake.kafka_properties import reason
from theon.store.engine import Store
from theon.store.scope import Scope

# How long a partition may seem to end before our place: a new leader may not be up to date yet.
CUT_OFF_AFTER_S = 30.0
LOOK_EVERY_S = 1.0

Batch = dict[Place, list[Message]]

_log = logging.getLogger(__name__)


class Partitions:
    """Of one consumer, and for its thread alone.

    Attributes:
        positions: of the settled ones.
        unsettled: the others, and since when.
    """

    def __init__(self, store: Store, group: str) -> None:
        self.positions: dict[Place, Position] = {}
        self.unsettled: dict[Place, float] = {}
        self._store = store
        self._group = group
        self._doubted: dict[Place, tuple[int, int]] = {}
        self._look_at_s = 0.0

    @property
    def held(self) -> list[Place]:
        """All of them."""
        return sorted([*self.positions, *self.unsettled])

    @property
    def wanting(self) -> bool:
        """Whether it is time to `settle`."""
        return bool(self.unsettled) and time.monotonic() >= self._look_at_s

    def wait(self, seconds: float) -> None:
        """Settle none for a while."""
        self._look_at_s = time.monotonic() + seconds

    def clear(self) -> None:
        """Hold none."""
        self.positions.clear()
        self.unsettled.clear()
        self._doubted.clear()

    # -- given and taken away: called by the client, which waits for it -------------------

    def given(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group gives partitions to this consumer."""
        consumer.incremental_assign(partitions)
        if partitions:
            consumer.pause(partitions)
        for partition in partitions:
            self.unsettled[partition.topic, partition.partition] = time.monotonic()
        self._look_at_s = 0.0

    def taken_away(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """The group gives them to another, or has done so already."""
        for partition in partitions:
            self.positions.pop((partition.topic, partition.partition), None)
            self.unsettled.pop((partition.topic, partition.partition), None)
        if partitions:
            consumer.incremental_unassign(partitions)

    # -- settled and unsettled ------------------------------------------------------------

    def unsettle(self, consumer: Consumer, places: Iterable[Place]) -> None:
        """Read nothing more of these before they were looked at."""
        for place in places:
            if self.positions.pop(place, None) is not None:
                self.unsettled[place] = time.monotonic()
                consumer.pause([TopicPartition(*place)])

    def settle(self, consumer: Consumer, admin: AdminClient) -> None:
        """Find out where the unsettled ones stand, and read on from there.

        Raises:
            KafkaException: no broker answers, or none for one of them.
            UnavailableError: the database is away.
            CutOffError: a partition ends before where it was read to. In all cases those that
                are not settled are looked at again, and so is one that does not exist any more
                until the group takes it away.
        """
        self._look_at_s = time.monotonic() + LOOK_EVERY_S
        cut_off: CutOffError | None = None
        extents = kafka_client.extents(admin, list(self.unsettled))
        for place, extent in extents.found.items():
            try:
                position = self._stand(place, extent)
                consumer.seek(TopicPartition(*place, position.next_offset))
                consumer.resume([TopicPartition(*place)])
            except CutOffError as error:
                cut_off = error
            except KafkaException as error:  # it is not being fetched yet
                _log.info("%s/%s: %s", *place, reason(error))
            else:
                self.positions[place] = position
                del self.unsettled[place]
        if extents.failed is not None:
            raise extents.failed
        if cut_off is not None:
            raise cut_off

    def _stand(self, place: Place, extent: Extent) -> Position:
        believe = time.monotonic() - self.unsettled[place] > CUT_OFF_AFTER_S
        with self._store.transaction(Scope.district()) as conn:
            position, lost = settle(conn, self._group, place, extent, cut_off=believe)
        if lost is not None:
            _log.error("%s", lost.sentence)
        return position

    # -- moving on ------------------------------------------------------------------------

    def moved(self, moves: Iterable[Move]) -> None:
        """Messages were taken in."""
        for move in moves:
            position = self.positions.get(move.place)
            if position is not None:  # or it was taken away meanwhile
                self.positions[move.place] = replace(position, next_offset=move.next_offset)

    def follows(self, batch: Batch) -> bool:
        """Whether a batch is ours and goes on where we are, without any offset missing."""
        for place, messages in batch.items():
            position = self.positions.get(place)
            if position is None or messages[0].offset() != position.next_offset:
                return False
            if messages[-1].offset() != position.next_offset + len(messages) - 1:
                return False
        return True

    def keep_ours(self, consumer: Consumer, batch: Batch) -> None:
        """Drop what is not ours any more, and look at offsets that are missing.

        Raises:
            UnavailableError: the database is away.
        """
        for place, messages in list(batch.items()):
            position = self.positions.get(place)
            if position is None:
                del batch[place]
                continue
            first, last = messages[0].offset() or 0, messages[-1].offset() or 0
            jump = (position.next_offset, first)
            if first < jump[0] or (first > jump[0] and self._doubted.get(place) != jump):
                # Look again before offsets are believed to be missing.
                self._doubted[place] = jump
                self.unsettle(consumer, [place])
                del batch[place]
            elif last - position.next_offset >= len(messages):
                self._missing(consumer, place, messages)

    def _missing(self, consumer: Consumer, place: Place, messages: list[Message]) -> None:
        """Of offsets that did not come, note those that retention took before we read them.

        Others never were messages of ours: ends of transactions, or what a compaction left out.
        """
        try:
            low, _ = consumer.get_watermark_offsets(TopicPartition(*place), timeout=5.0)
        except KafkaException:
            return
        expected = self.positions[place].next_offset
        found = []
        for message in messages:
            offset = message.offset() or 0
            if expected < min(offset, low):
                found.append(Lost(place, EXPIRED, expected, min(offset, low)))
            expected = offset + 1
        if found:
            with self._store.transaction(Scope.district()) as conn:
                for lost in found:
                    record(conn, lost)
            for lost in found:
                _log.error("%s", lost.sentence)
