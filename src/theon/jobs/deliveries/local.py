"""Delivery inside one process: the dispatcher's messages go straight to the supervisor."""

from collections.abc import Sequence

from theon.jobs.delivery import TakesMessages
from theon.jobs.ledger import Message


class LocalDelivery:
    """Hands messages to the supervisor of this process; see `theon.jobs.delivery.Delivery`."""

    name = "local"

    def __init__(self, supervisor: TakesMessages) -> None:
        self._supervisor = supervisor

    def send(self, messages: Sequence[Message], queue: str, *, together: int = 1) -> None:
        """Hand them over; the one supervisor takes all queues."""
        del queue, together
        if messages:
            self._supervisor.submit(messages)

    def close(self) -> None:
        """Nothing is open: the supervisor belongs to who made it."""
