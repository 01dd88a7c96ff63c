"""The consumer and the publisher of one process, begun and ended together."""

from theon.errors import InputError
from theon.intake import kafka_client
from theon.intake.kafka_consumer import KafkaConsumer
from theon.intake.kafka_publisher import KafkaPublisher
from theon.intake.kafka_reader import MessageReader
from theon.roster.campuses import get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import DISTRICT

END_S = 30.0


class KafkaPair:
    """Reads events and publishes what is announced; `theon serve` and `theon kafka consume`."""

    def __init__(self, store: Store, settings: Settings) -> None:
        """Check the settings; nothing runs before `start`.

        Raises:
            InputError: no brokers are named, a property does not fit, or THEON_KAFKA_CAMPUS is no
                campus of learners.
        """
        if settings.kafka_campus == DISTRICT:
            raise InputError(
                "the district has no learners of its own",
                where="THEON_KAFKA_CAMPUS",
                next_step="Name the campus of messages that name none, or leave it out: then they "
                "become dead letters.",
            )
        if settings.kafka_campus is not None:
            get_campus(store, settings.kafka_campus)
        kafka_client.check(settings)
        self.consumer = KafkaConsumer(store, settings, MessageReader(store, settings))
        self.publisher = KafkaPublisher(store, settings)

    @property
    def alive(self) -> bool:
        """Whether the consumer's thread runs."""
        return self.consumer.alive

    def start(self) -> None:
        """Begin both."""
        self.consumer.start()
        self.publisher.start()

    def stop(self) -> None:
        """End both after what is under way."""
        self.consumer.stop()
        self.publisher.stop()
        self.consumer.join(END_S)
        self.publisher.join(END_S)
