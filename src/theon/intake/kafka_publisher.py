"""Publishes the outbox on the topic `analytics-events`: each announcement at least once."""

import json
import logging

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from sqlalchemy.exc import DBAPIError

from theon.errors import TheonError, UnavailableError
from theon.intake.kafka_client import PUBLISHED, open_producer
from theon.intake.kafka_properties import properties
from theon.intake.kafka_refusals import BY_ITSELF, Heard, in_one_line
from theon.loops import Loop
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.outbox import CHANNEL, Announcement, take, told
from theon.store.scope import Scope

MOST_AT_ONCE = 500
LONGEST_SLEEP_S = 2.0
DELIVERY_S = 20.0

_log = logging.getLogger(__name__)


def message(announcement: Announcement) -> bytes:
    """The message that tells it."""
    said = {
        "id": announcement.event_id,
        "type": announcement.type,
        "at": announcement.at.isoformat(),
        "campus": announcement.campus,
        "data": announcement.data,
    }
    return json.dumps(said, ensure_ascii=False).encode()


class KafkaPublisher(Loop):
    """Empties the outbox; use `publish`, or `start` and `stop`. Any number may run at once."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Nothing is opened before the first `publish`.

        Raises:
            InputError: no brokers are named, or a property does not fit.
        """
        properties(settings)
        super().__init__("kafka-publisher")
        self._store = store
        self._settings = settings
        self._heard = Heard(settings)
        self._producer: Producer | None = None
        self.error: str | None = None

    def publish(self) -> int:
        """Tell what waits, up to `MOST_AT_ONCE`; returns how many announcements were delivered.

        Raises:
            UnavailableError: broker or database are away. What was not delivered stays, and so
                may what was delivered just now: it is told again under the same id.
        """
        with self._store.transaction(Scope.district()) as conn:
            waiting = take(conn, MOST_AT_ONCE)
            delivered = self._deliver(waiting) if waiting else []
            if delivered:
                told(conn, delivered)
        if len(delivered) < len(waiting):
            raise UnavailableError(
                f"{len(waiting) - len(delivered)} announcements were not delivered: {self.error}",
                where=f"topic {PUBLISHED}",
                next_step="They are kept and tried again.",
            )
        return len(delivered)

    def _deliver(self, waiting: list[Announcement]) -> list[Announcement]:
        producer = self._producer = self._producer or open_producer(
            self._settings, self._heard, **{"delivery.timeout.ms": int(DELIVERY_S * 1000)}
        )
        delivered: list[Announcement] = []

        def heard(error: KafkaError | None, _: Message, announcement: Announcement) -> None:
            if error is None:
                delivered.append(announcement)
            else:
                self.error = self._why(error)

        for announcement in waiting:

            def callback(
                error: KafkaError | None, sent: Message, told_: Announcement = announcement
            ) -> None:
                heard(error, sent, told_)

            producer.produce(
                PUBLISHED,
                key=announcement.campus.encode(),
                value=message(announcement),
                on_delivery=callback,
            )
        producer.flush(DELIVERY_S + 5)
        if len(delivered) < len(waiting):
            # One that gave up on a message may not send those after it in order.
            producer.purge()
            producer.flush(1)
            self._producer = None
        else:
            self.error = None
            self._heard.forget()
        return delivered

    def _why(self, error: KafkaError) -> str:
        if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
            return f"there is no such topic. `theon kafka topics create` makes it. {BY_ITSELF}"
        return in_one_line(self._heard.explain(error, f"write to the topic {PUBLISHED}"))

    def run(self) -> None:
        """Publish, until `stop`."""
        failures = 0
        for _ in self._store.listen(CHANNEL, timeout_s=lambda: LONGEST_SLEEP_S):
            if self._stopping.is_set():
                return
            try:
                while self.publish() == MOST_AT_ONCE and not self._stopping.is_set():
                    pass
                failures = 0
            except (TheonError, DBAPIError, KafkaException) as error:
                failures += 1
                self.error = str(error)
                _log.warning("announcements cannot be published, and are tried again: %s", error)
                self._stopping.wait(min(30.0, 0.5 * 2 ** min(failures, 6)))
            except Exception:
                failures += 1
                _log.exception("the publisher met an error that it does not know")
                self._stopping.wait(30.0)
