"""What was handed to a supervisor and has not begun."""

import threading
import time
from collections import deque
from collections.abc import Sequence

from theon.jobs.ledger import DISPATCH_LEASE_S, Message

LIMIT = 10_000
MARGIN_S = 0.5
# What cannot begin goes back after so long: soon, and not at once, for it may come here again.
KEPT_S = 2.0


class Inbox:
    """Messages in order; one thread takes them, any may put some in or wait for room."""

    def __init__(self) -> None:
        self._messages: deque[tuple[Message, float]] = deque()  # and since when
        self._room = threading.Event()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, messages: Sequence[Message]) -> None:
        """Add messages at the end."""
        now_s = time.monotonic()
        self._messages.extend((message, now_s) for message in messages)

    def drop_overdue(self, now_s: float) -> None:
        """Forget those whose dispatch lease ends, and the first of too many: they come again."""
        since_s = now_s - (DISPATCH_LEASE_S - MARGIN_S)
        while self._messages and (self._messages[0][1] < since_s or len(self._messages) > LIMIT):
            self._messages.popleft()

    def take(self, count: int) -> list[Message]:
        """The first `count`."""
        return [self._messages.popleft()[0] for _ in range(min(count, len(self._messages)))]

    def take_late(self, now_s: float) -> list[Message]:
        """Those that have waited long enough to be given back."""
        late = []
        while self._messages and self._messages[0][1] < now_s - KEPT_S:
            late.append(self._messages.popleft()[0])
        return late

    def say_room(self, there_is: bool) -> None:
        """Tell those who wait for it whether more messages would begin soon."""
        if there_is:
            self._room.set()
        else:
            self._room.clear()

    def wait_for_room(self, limit_s: float) -> bool:
        """Wait until more messages would begin soon; False if they would not in that time."""
        return self._room.wait(limit_s)
