"""The consumer of Kafka: takes in batch by batch, and survives what goes away.

While one batch is taken in, the next is collected and read.

It trusts nothing but its partitions' rows in PostgreSQL (`kafka_partitions`, `kafka_offsets`).
Messages of partitions that it does not hold are dropped; whoever holds them reads them. While the
database is slow or away, reading is paused and the batch is tried again.
"""

import logging
import os
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy.exc import DBAPIError

from theon.errors import ConflictError, TheonError, UnavailableError
from theon.intake import kafka_client
from theon.intake.kafka_batches import Checkpoint, Delivery, OvertakenError, Reader, take_in
from theon.intake.kafka_heartbeats import Heartbeat, beat, end
from theon.intake.kafka_offsets import CutOffError, Move, Place, Position, standings
from theon.intake.kafka_partitions import Batch, Partitions
from theon.intake.kafka_properties import properties, reason
from theon.intake.kafka_refusals import (
    OF_THE_BROKERS,
    Heard,
    RefusedError,
    in_one_line,
    missing_rights,
    topics_named,
)
from theon.lake.lake_ids import LakeIds
from theon.loops import Loop
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

CARE_S = 5.0
LOOK_S = 2.0
LONGEST_BACKOFF_S = 5.0
CHUNK = 1_000
MOST_FAULTS = 20  # in a row; then it is not the messages


@dataclass(frozen=True)
class _Flight:
    """A batch that is being taken in."""

    batch: Batch
    moves: Future[list[Move]]


_log = logging.getLogger(__name__)


class KafkaConsumer(Loop):
    """A member of the consumer group; use `run`, or `start` and `stop`.

    Attributes:
        state: starting, listening, broker away, refused, database away, failing or stopped.
        error: why, where it is not listening.
        messages: taken in so far.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        reader: Reader,
        *,
        topics: tuple[str, ...] = kafka_client.CONSUMED,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Nothing is opened before `run`.

        Args:
            store: open.
            settings: brokers, group, sizes.
            reader: of messages.
            topics: to read.
            checkpoint: called with the name of each step that was just done, for tests.

        Raises:
            InputError: no brokers are named, or their properties cannot be read.
        """
        properties(settings)
        super().__init__("kafka-consumer")
        self._store = store
        self._settings = settings
        self._reader = reader
        self._lake_ids = LakeIds(settings)
        self._topics = topics
        self._checkpoint = checkpoint or (lambda _: None)
        self._group = settings.kafka_group_id
        self._held = Partitions(store, self._group)
        self._heard = Heard(settings)
        self._trouble: UnavailableError | None = None
        self._may_join = True
        self._kept_out = False
        self._faults = 0
        self._flight: _Flight | None = None
        self._care_at_s = 0.0
        self.id = f"{settings.kafka_client_id}-{socket.gethostname()}-{os.getpid()}-{id(self):x}"
        self.state = "starting"
        self.error: str | None = None
        self.messages = 0
        self.started_at = datetime.now(UTC)

    # -- the thread -----------------------------------------------------------------------

    @property
    def partitions(self) -> list[Place]:
        """The partitions that it holds."""
        return self._held.held

    def run(self) -> None:
        """Read until `stop`; a client that fails for good is replaced."""
        failures = 0
        while not self._stopping.is_set():
            try:
                consumer = kafka_client.open_consumer(self._settings, error_cb=self._hear)
            except TheonError as error:
                self._note("failing", error)
                failures += 1
                self._stopping.wait(_backoff_s(failures))
                continue
            try:
                self._read(consumer)
            except Exception as error:
                failures += 1
                self._note("failing", error)
                _log.exception("the consumer of Kafka begins again")
                self._stopping.wait(_backoff_s(failures))
            finally:
                if self._flight is not None:
                    wait([self._flight.moves])
                    self._flight = None
                consumer.close()
                self._held.clear()
        self.state = "stopped"
        try:
            with self._store.transaction(Scope.district()) as conn:
                end(conn, self.id)
        except (TheonError, DBAPIError):
            _log.info("the consumer could not sign off; it counts as gone without a heartbeat")

    def _read(self, consumer: Consumer) -> None:
        consumer.subscribe(
            list(self._topics),
            on_assign=self._given,
            on_revoke=self._held.taken_away,
            on_lost=self._held.taken_away,
        )
        admin = kafka_client.open_admin(self._settings, self._heard)
        with ThreadPoolExecutor(1, thread_name_prefix="kafka-intake") as intake:
            while not self._stopping.is_set():
                if time.monotonic() >= self._care_at_s:
                    self._finish(consumer)
                    self._care(consumer, admin)
                    self._care_at_s = time.monotonic() + CARE_S
                if self._held.wanting:
                    self._finish(consumer)
                    self._settle(consumer, admin)
                batch = self._collect(consumer)
                read = self._read_ahead(batch)
                self._finish(consumer)
                if read is not None and self._held.follows(batch):
                    self._checkpoint("collected")
                    expected = dict(self._held.positions)
                    self._flight = _Flight(
                        batch, intake.submit(self._take_in, batch, expected, read)
                    )
                elif batch:
                    self._take(consumer, batch)
            self._finish(consumer)

    # -- partitions -----------------------------------------------------------------------

    def _given(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._may_join, self._kept_out = True, False
        self._held.given(consumer, partitions)

    def _settle(self, consumer: Consumer, admin: AdminClient) -> None:
        try:
            self._held.settle(consumer, admin)
        except KafkaException as error:
            self._note_trouble(self._explained(admin, error))
        except (TheonError, DBAPIError) as error:
            self._note("database away", error)
        except CutOffError as error:
            self._note("failing", error)

    def _care(self, consumer: Consumer, admin: AdminClient) -> None:
        """What time brings: a heartbeat, rows that somebody moved, topics that were made anew."""
        ids, self._trouble = self._ask(admin)
        if self._trouble is not None:
            self._note_trouble(self._trouble)
        elif self.state in ("starting", "broker away", "refused"):
            self._listening()
        self._held.unsettle(
            consumer,
            [
                place
                for place, position in self._held.positions.items()
                if position.topic_id is not None
                and ids.get(place[0], position.topic_id) != position.topic_id
            ],
        )
        try:
            with self._store.transaction(Scope.district()) as conn:
                beat(conn, self._heartbeat())
                found = standings(conn, self._group)
        except (TheonError, DBAPIError) as error:
            self._note("database away", error)
            return
        if self.state == "database away":
            self._listening()
        self._held.unsettle(
            consumer,
            [
                place
                for place, position in self._held.positions.items()
                if place not in found or found[place].next_offset != position.next_offset
            ],
        )

    def _ask(self, admin: AdminClient) -> tuple[dict[str, str], UnavailableError | None]:
        """The topics' ids, and what keeps the brokers from serving us."""
        try:
            topics = kafka_client.describe(admin, self._topics, timeout_s=LOOK_S)
        except KafkaException as error:
            return {}, self._explained(admin, error)
        admin.poll(0)
        self._heard.forget()
        self._look_at_group()
        lacking = missing_rights(self._settings, unread=topics.unread, may_join=self._may_join)
        return topics.ids, lacking

    def _look_at_group(self) -> None:
        """Whether we were given the right to join since; the client does not say."""
        if not self._may_join:
            before, self._kept_out = self._kept_out, not kafka_client.may_join(self._settings)
            self._may_join = before and not self._kept_out

    def _explained(self, admin: AdminClient, error: KafkaException) -> UnavailableError:
        admin.poll(0)  # what it heard waits there
        return self._heard.explain(error, f"read {topics_named(self._topics)}")

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            id=self.id,
            group=self._group,
            host=socket.gethostname(),
            pid=os.getpid(),
            state=self.state,
            partitions=[f"{topic}/{number}" for topic, number in self.partitions],
            messages=self.messages,
            error=self.error,
            started_at=self.started_at,
        )

    # -- messages -------------------------------------------------------------------------

    def _collect(self, consumer: Consumer) -> Batch:
        """Messages of settled partitions, each in order and from its position on."""
        until_s = time.monotonic() + self._settings.kafka_batch_ms / 1000
        most, most_bytes = self._settings.kafka_batch_events, self._settings.kafka_buffer_mb << 20
        batch: Batch = {}
        count = size = 0
        while count < most and size < most_bytes and not self._stopping.is_set():
            left_s = until_s - time.monotonic()
            wanted = min(CHUNK, most - count)
            chunk = consumer.consume(wanted, max(left_s, 0.0))
            for message in chunk:
                failed = message.error()
                if failed is not None:
                    self._hear(failed)
                    continue
                place = (message.topic(), message.partition())
                if place in self._held.positions:
                    batch.setdefault(place, []).append(message)
                    size += len(message)
            count += len(chunk)
            if len(chunk) < wanted or left_s <= 0:
                break
        return batch

    def _hear(self, error: KafkaError) -> None:
        """What the client says of its own accord; librdkafka tries again by itself."""
        if error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            self._may_join = False  # said once; joining is tried until it succeeds
        if error.code() in OF_THE_BROKERS:
            self._heard(error)  # `_care` asks the brokers what is true of it
            self._care_at_s = min(self._care_at_s, time.monotonic() + 1.0)
        elif error.fatal():
            raise KafkaException(error)
        else:
            _log.info("Kafka: %s", error.str())

    def _read_ahead(self, batch: Batch) -> list[Delivery] | None:
        """Read a batch while the one before it is taken in; None if it needs a closer look."""
        if not batch:
            return None
        try:
            return self._reader.read(batch, self._held.positions)
        except Exception as error:
            _log.info("a batch could not be read ahead: %s", error)
            return None

    def _finish(self, consumer: Consumer) -> None:
        """Wait for the batch that is being taken in; where that failed, find out why."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        try:
            moves = flight.moves.result()
        except Exception as error:
            _log.info("a batch is tried again: %s", error)
            self._take(consumer, flight.batch)
        else:
            self._done(consumer, moves)

    def _take_in(
        self,
        batch: Batch,
        positions: dict[Place, Position],
        read: list[Delivery] | None = None,
        fault: str | None = None,
    ) -> list[Move]:
        return take_in(
            self._store,
            self._group,
            self._reader,
            batch,
            positions,
            fault=fault,
            deliveries=read,
            lake_ids=self._lake_ids,
            checkpoint=self._checkpoint,
        )

    def _take(self, consumer: Consumer, batch: Batch) -> None:
        """Take in a batch; returns when it is done or not ours any more."""
        failures = 0
        paused: list[TopicPartition] = []
        while not self._stopping.is_set():
            self._held.keep_ours(consumer, batch)
            if not batch:
                break
            try:
                self._checkpoint("collected")
                self._done(consumer, self._take_in(batch, self._held.positions))
                break
            except OvertakenError as error:
                self._held.unsettle(consumer, error.places)
            except Exception as error:
                if not _passing(error):
                    self._take_in_parts(consumer, batch, error)
                    break
                failures += 1
                self._note("database away", error)
                if not paused:
                    paused = [TopicPartition(*place) for place in self._held.positions]
                    consumer.pause(paused)
                self._wait(consumer, _backoff_s(failures))
        held = [p for p in paused if (p.topic, p.partition) in self._held.positions]
        if held:
            consumer.resume(held)

    def _take_in_parts(
        self,
        consumer: Consumer,
        batch: Batch,
        error: Exception,
    ) -> None:
        """A message that nothing can be done with must not stop its partition.

        The batch is halved until it is found, and it becomes a dead letter. Where one after the
        other fails it is not the messages: then all wait.
        """
        if sum(map(len, batch.values())) > 1:
            _log.warning("a batch could not be taken in, and is tried in halves: %s", error)
            for half in _halves(batch):
                self._take(consumer, half)
            return
        self._faults += 1
        if self._faults > MOST_FAULTS:
            self._note("failing", error)
            _log.error("messages cannot be taken in", exc_info=error)
            self._held.unsettle(consumer, batch)  # reading begins again at this message
            self._held.wait(LONGEST_BACKOFF_S)
            return
        _log.error("a message became a dead letter", exc_info=error)
        # Of the database's word only that; its statement is in the log.
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        fault = f"{type(cause).__name__}: {cause}"[:1000]
        self._done(consumer, self._take_in(batch, self._held.positions, fault=fault), faulty=True)

    def _done(self, consumer: Consumer, moves: list[Move], *, faulty: bool = False) -> None:
        for move in moves:
            self.messages += move.messages
        self._held.moved(moves)
        if not faulty:
            self._faults = 0
            self._listening()
        with suppress(KafkaException):  # for tools that show lag; nothing here reads it
            consumer.commit(
                offsets=[TopicPartition(*move.place, move.next_offset) for move in moves],
                asynchronous=True,
            )

    def _wait(self, consumer: Consumer, seconds: float) -> None:
        """Stay in the group while nothing can be taken in."""
        until_s = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until_s:
            message = consumer.poll(0.1)
            if message is None:
                continue
            failed = message.error()
            if failed is not None:
                self._hear(failed)
            else:  # all is paused; should one come all the same, it is read again later
                self._held.unsettle(consumer, [(message.topic() or "", message.partition() or 0)])

    # -- how it is ------------------------------------------------------------------------

    def _listening(self) -> None:
        if self._trouble is None:
            if self.state not in ("starting", "listening"):
                _log.info("the consumer of Kafka goes on")
            self.state, self.error = "listening", None

    def _note_trouble(self, trouble: UnavailableError) -> None:
        self._note("refused" if isinstance(trouble, RefusedError) else "broker away", trouble)

    def _note(self, state: str, error: object) -> None:
        what = in_one_line(error) if isinstance(error, TheonError) else str(error)
        if isinstance(error, KafkaException):
            what = reason(error)
        if state != self.state or (state == "refused" and what != self.error):
            _log.warning("the consumer of Kafka waits (%s): %s", state, what)
        self.state, self.error = state, what


def _backoff_s(failures: int) -> float:
    return min(LONGEST_BACKOFF_S, 0.1 * 2.0 ** min(failures, 8))


def _passing(error: Exception) -> bool:
    """Whether the same again may succeed: the connection, a deadlock, a lock, a limit of time."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, (UnavailableError, ConflictError))
    state = str(getattr(error.orig, "sqlstate", None) or "08")
    return error.connection_invalidated or state[:2] in ("08", "40", "53", "55", "57", "58")


def _halves(batch: Batch) -> list[Batch]:
    """Two batches; the first has what must come first."""
    if len(batch) > 1:
        places = list(batch)
        cut = len(places) // 2
        return [{p: batch[p] for p in places[:cut]}, {p: batch[p] for p in places[cut:]}]
    [(place, messages)] = batch.items()
    cut = len(messages) // 2
    return [{place: messages[:cut]}, {place: messages[cut:]}]
