"""The port of deliveries: how a message reaches a worker. It decides nothing."""

from collections.abc import Sequence
from typing import Protocol

from theon.jobs.ledger import Message


class Delivery(Protocol):
    """Carries messages; it may lose them or bring them twice, for the ledger has the truth."""

    name: str

    def send(self, messages: Sequence[Message], queue: str) -> None:
        """Hand `messages` to a worker that takes jobs of `queue`.

        Raises:
            UnavailableError: the broker is away; the jobs come back when their dispatch lease
                ends.
        """

    def close(self) -> None:
        """Close what is open; may be called again."""


class TakesMessages(Protocol):
    """The part of a supervisor that a delivery in the same process needs."""

    def submit(self, messages: Sequence[Message]) -> None:
        """Take messages; returns at once."""
