"""The port between the dispatcher and whoever carries messages to workers."""

from collections.abc import Sequence
from typing import Protocol

from theon.jobs.ledger import Message


class Delivery(Protocol):
    """Carries messages. It may lose, repeat or reorder them: the ledger knows better."""

    name: str

    def send(self, messages: Sequence[Message], queue: str) -> None:
        """Carry `messages` to a worker of `queue`.

        Raises:
            UnavailableError: the broker is away. What was marked comes back when the lease of
                its dispatch ends.
        """

    def close(self) -> None:
        """Close connections; a second time does nothing."""
