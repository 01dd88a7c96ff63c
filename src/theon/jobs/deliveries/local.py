"""The delivery inside one process: messages go straight to the supervisor beside it."""

from collections.abc import Sequence
from typing import Protocol

from theon.jobs.ledger import Message


class Submits(Protocol):
    """What takes messages: a worker's supervisor."""

    def submit(self, messages: Sequence[Message]) -> None:
        """Take messages and return at once; may be called from any thread."""


class LocalDelivery:
    """Needs no broker, so it cannot be away."""

    name = "local"

    def __init__(self, supervisor: Submits) -> None:
        self._supervisor = supervisor

    def send(self, messages: Sequence[Message], queue: str) -> None:
        """See `Delivery.send`."""
        del queue  # one supervisor serves all queues of the process
        if messages:
            self._supervisor.submit(messages)

    def close(self) -> None:
        """See `Delivery.close`."""
