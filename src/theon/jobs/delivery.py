"""The port of deliveries: how a message reaches a worker. It decides nothing."""

from collections.abc import Sequence
from typing import Protocol

from theon.jobs.ledger import Message


class Delivery(Protocol):
    """Carries messages; it may lose them or bring them twice, for the ledger has the truth."""

    name: str

    def send(self, messages: Sequence[Message], queue: str, *, together: int = 1) -> None:
        """Hand `messages` to workers that take jobs of `queue`.

        Args:
            messages: in order.
            queue: its name.
            together: how many of them may travel in one piece, and so reach the same worker:
                for short jobs the way costs more than the work.

        Raises:
            UnavailableError: the broker is away; the jobs come back when their dispatch lease
                ends.
        """

    def close(self) -> None:
        """Close what is open; may be called again."""


class TakesMessages(Protocol):
    """The part of a supervisor that deliveries need."""

    worker_id: str

    def submit(self, messages: Sequence[Message]) -> None:
        """Take messages; returns at once."""

    def wait_for_room(self, limit_s: float) -> bool:
        """Wait until more messages would begin soon; False if they would not in that time."""
