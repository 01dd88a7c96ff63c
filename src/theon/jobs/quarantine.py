"""Which jobs run alone on a worker, and when: those that lost their workers before.

A job that kills its worker takes what runs beside it along. So after two losses (see
`policy.runs_alone`) it is begun only when the worker has nothing else, and nothing else is begun
until the ledger knows how it ended. It stays `dispatched` while it waits for that: if the worker
dies meanwhile, of another job, it has lost nothing.
"""

from collections import deque
from collections.abc import Sequence

from theon.jobs.clerk import Clerk, Runs
from theon.jobs.ledger import Message

WAIT_S = 10.0  # for the other attempts to end; then it goes back
# After it went back nothing is begun for so long: it is handed to this worker again, which
# would else have filled up and never be empty.
REST_S = 3.0
NOT_EMPTY = "given back: its worker has other jobs that do not end, and it has to run alone"


class Quarantine:
    """What a supervisor keeps from running beside others; one thread uses it."""

    def __init__(self, clerk: Clerk, runs: Runs) -> None:
        self._clerk = clerk
        self._runs = runs
        self._waiting: dict[Message, float] = {}  # until when
        self._done: deque[Message] = deque(maxlen=1_000)
        self._alone = False
        self._rest_until_s = 0.0

    def attend(self, now_s: float) -> bool:
        """Begin or give back what waits; True if nothing else may be begun now."""
        while self._clerk.held:
            message = self._clerk.held.popleft()
            # It is told again and again while it waits, and once more when it was begun just now.
            if message not in self._done:
                self._waiting.setdefault(message, now_s + WAIT_S)
        # In this order: what is begun is among the runs before it is no longer beginning.
        empty = self._clerk.beginning == 0 and not self._runs.all()
        if empty:
            self._alone = False
            if self._waiting:
                message = next(iter(self._waiting))
                self._drop(message)
                self._alone = True
                self._clerk.begin([message], beside=False)
        late = [message for message, until_s in self._waiting.items() if until_s <= now_s]
        if late:
            self._clerk.give_back(late, NOT_EMPTY)
            self._rest_until_s = now_s + REST_S
        for message in late:
            self._drop(message)
        return self._alone or bool(self._waiting) or now_s < self._rest_until_s

    def leave(self) -> Sequence[Message]:
        """Forget what waits, and give it to the caller."""
        left = [*self._waiting, *self._clerk.held]
        self._waiting.clear()
        self._clerk.held.clear()
        return left

    def _drop(self, message: Message) -> None:
        del self._waiting[message]
        self._done.append(message)
