"""What goes on in a thread of its own until it is stopped."""

import threading
from abc import ABC, abstractmethod


class Loop(ABC):
    """Runs once, between `start` and `stop`; a subclass says what in `run`."""

    def __init__(self, name: str) -> None:
        """Nothing runs before `start`.

        Args:
            name: of the thread.
        """
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread of `start` runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Call `run` in the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end after what is under way; does not wait for that."""
        self._stopping.set()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for the thread to end, if it was started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @abstractmethod
    def run(self) -> None:
        """Work until `_stopping` is set."""
