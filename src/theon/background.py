"""The background of a service: what runs, hands out and schedules jobs beside the pages.

Without REDIS_URL the process runs jobs itself. With one, workers (`theon worker`) run them and
this process only hands them out. With KAFKA_BROKERS it reads events from there as well.
"""

import logging
import os
from types import TracebackType
from typing import TYPE_CHECKING

from theon.bootstrap import Theon, job_kinds, job_schedules
from theon.jobs.deliveries.local import LocalDelivery
from theon.jobs.delivery import Delivery
from theon.jobs.dispatcher import Dispatcher
from theon.jobs.kinds import Kinds
from theon.jobs.schedules import Scheduler
from theon.jobs.supervisor import Supervisor
from theon.lander_process import LanderProcess
from theon.settings import Settings
from theon.store.engine import Store

if TYPE_CHECKING:
    from theon.intake.kafka_pair import KafkaPair

KINDS_SOURCE = "theon.bootstrap:job_kinds"
# What a supervisor may still need after its jobs had their `drain_s`: to end the rest.
AFTER_DRAIN_S = 15.0
# For the rounds of the loops that are under way.
END_S = 10.0

_log = logging.getLogger(__name__)


def make_supervisor(
    store: Store,
    settings: Settings,
    kinds: Kinds,
    *,
    delivery: str,
    queues: list[str] | None = None,
    slots: int | None = None,
) -> Supervisor:
    """The supervisor of this process; nothing runs before its `start`.

    Args:
        store: open.
        settings: slots and seconds to drain.
        kinds: that this installation has code for.
        delivery: name of the delivery that brings its messages.
        queues: that it serves; all that some kind uses unless given.
        slots: attempts at the same time; as the settings say unless given.
    """
    return Supervisor(
        store,
        settings,
        kinds,
        kinds_source=KINDS_SOURCE,
        queues=queues or sorted({kind.queue for kind in kinds.values()}),
        slots=slots or settings.job_slots or os.cpu_count() or 1,
        delivery=delivery,
        drain_s=settings.drain_s,
    )


class Background:
    """Supervisor, dispatcher, scheduler and lander of one service; a context manager.

    Attributes:
        kinds: the kinds of jobs.
        scheduler: for pages and commands that look at or steer schedules.
    """

    def __init__(self, theon: Theon) -> None:
        """Choose the delivery by the settings; nothing runs before `start`."""
        self.kinds = job_kinds()
        self.scheduler = Scheduler(theon.store, self.kinds, job_schedules())
        self._settings = theon.settings
        self._supervisor: Supervisor | None = None
        self._delivery: Delivery
        if theon.settings.redis_url is None:
            self._supervisor = make_supervisor(
                theon.store, theon.settings, self.kinds, delivery="local"
            )
            self._delivery = LocalDelivery(self._supervisor)
        else:
            from theon.jobs.deliveries.celery import CeleryDelivery  # noqa: PLC0415 - when used

            self._delivery = CeleryDelivery(theon.settings.redis_url)
        self._dispatcher = Dispatcher(theon.store, self.kinds, self._delivery)
        self._lander = LanderProcess(theon.settings)
        self._kafka: KafkaPair | None = None
        if theon.settings.kafka_brokers is not None:
            from theon.intake import kafka_pair  # noqa: PLC0415 - when used

            self._kafka = kafka_pair.KafkaPair(theon.store, theon.settings)

    def start(self) -> None:
        """Begin to run, hand out and schedule, and to bring accepted events into the lake."""
        if self._supervisor is not None:
            self._supervisor.start()
        self._dispatcher.start()
        self.scheduler.start()
        self._lander.start()
        if self._kafka is not None:
            self._kafka.start()

    def stop(self) -> None:
        """Begin nothing more, give running jobs their `drain_s`, put the rest back."""
        if self._kafka is not None:
            self._kafka.stop()
        threads = (self._lander, self.scheduler, self._dispatcher)
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join(END_S)
        if self._supervisor is not None:
            self._supervisor.drain()
            self._supervisor.join(self._settings.drain_s + AFTER_DRAIN_S)
            self._supervisor.stop()
            self._supervisor.join(AFTER_DRAIN_S)
        self._delivery.close()

    def __enter__(self) -> "Background":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
