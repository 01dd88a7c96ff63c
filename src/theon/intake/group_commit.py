"""Group commit: requests that come together share one transaction, and one flush to the disk.

A committer takes what is waiting, never waits for more, and answers each request with its own
part. So one request alone is answered at once, and under load the groups grow by themselves.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from sqlalchemy.exc import OperationalError

from theon.errors import TheonError
from theon.intake.arrivals import ORDINAL, Receipt
from theon.intake.door import accept
from theon.intake.mapped import read_arrival
from theon.lake.lake_ids import LakeIds
from theon.roster.campuses import Campus
from theon.store.engine import Store
from theon.store.scope import Scope

GROUP_EVENTS = 20_000
COMMITTERS = 2
# Fewer waiting events are left to the first committer: a transaction costs about as much as a
# hundred events, so single ones are better kept together than divided.
CROWD_EVENTS = 1_000
# Where the last group had several requests, so long is waited for as many: their senders have just
# been answered, and send the next. Who sends alone never waits.
GATHER_S = 0.01
# Waiting and being worked on; beyond it senders are told to come back.
WAITING_BYTES = 96 << 20

DEADLOCK_TRIES = 4
_DEADLOCK = "40P01"

_log = logging.getLogger(__name__)


class BusyError(TheonError):
    """There is no room for more at the moment; nothing of the request was taken."""

    retry_after_s = 1


@dataclass(frozen=True)
class _Request:
    campus: Campus
    source: str
    format: str
    events: Sequence[bytes]
    size_bytes: int
    receipt: "Future[Receipt]"

    @property
    def group(self) -> tuple[int, str, str]:
        return self.campus.id, self.source, self.format


class GroupCommit:
    """Accepts events of many requests; `start` it, and `stop` it when no more will come."""

    def __init__(self, store: Store, lake_ids: LakeIds | None = None) -> None:
        """Name the store, and the ids noted beside the lake; nothing runs before `start`."""
        self._store, self._lake_ids = store, lake_ids
        self._waiting: deque[_Request] = deque()
        self._events = 0  # of those that wait
        self._bytes = 0  # of those that wait or are worked on
        self._last = 1  # requests of the last group
        self._stopping = False
        # Of one lock. Who is woken takes its turn from the thread that serves requests, so the
        # first committer is woken for the first request and for the last one of those it waits
        # for, the others for a crowd.
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._crowded = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._run, args=(n,), name=f"committer-{n}", daemon=True)
            for n in range(COMMITTERS)
        ]

    def start(self) -> None:
        """Begin to accept."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer what is waiting, then end."""
        with self._lock:
            self._stopping = True
            self._arrived.notify_all()
            self._crowded.notify_all()
        for thread in self._threads:
            thread.join()

    def submit(
        self, campus: Campus, source: str, format: str, events: Sequence[bytes], size_bytes: int
    ) -> "Future[Receipt]":
        """Hand over the events of one request.

        Args:
            campus: whose they are.
            source: their sender.
            format: the mapping that reads them.
            events: as they were sent.
            size_bytes: of them together.

        Returns:
            The receipt, once the events are durable. Its ordinals are places in `events`.

        Raises:
            BusyError: too much is waiting.
        """
        request = _Request(campus, source, format, events, size_bytes, Future())
        with self._lock:
            if self._stopping or self._bytes + size_bytes > WAITING_BYTES:
                raise BusyError(
                    "the service stops" if self._stopping else "too many events are waiting",
                    next_step="Nothing of this request was taken; send it again in a moment.",
                )
            self._bytes += size_bytes
            self._events += len(events)
            self._waiting.append(request)
            if len(self._waiting) == 1 or len(self._waiting) >= self._last:
                self._arrived.notify_all()
            if self._events >= CROWD_EVENTS:
                self._crowded.notify_all()
        return request.receipt

    def _run(self, number: int) -> None:
        while True:
            with self._lock:
                mine = self._arrived if number == 0 else self._crowded
                mine.wait_for(lambda: self._stopping or self._is_turn_of(number))
                self._gather()
                if not self._waiting:
                    if self._stopping:
                        return
                    continue  # another committer took them meanwhile
                group = self._next_group()
            try:
                self._commit(group)
            finally:
                with self._lock:
                    self._bytes -= sum(request.size_bytes for request in group)

    def _is_turn_of(self, number: int) -> bool:
        return bool(self._waiting) and (number == 0 or self._events >= CROWD_EVENTS)

    def _gather(self) -> None:
        until = time.monotonic() + GATHER_S
        while len(self._waiting) < self._last and not self._stopping:
            left = until - time.monotonic()
            if left <= 0 or not self._arrived.wait(left):
                return

    def _next_group(self) -> list[_Request]:
        """The oldest request, and those that may share its transaction."""
        first = self._waiting.popleft()
        group, others, events = [first], deque[_Request](), len(first.events)
        while self._waiting:
            request = self._waiting.popleft()
            fits = events + len(request.events) <= GROUP_EVENTS
            if fits and request.group == first.group:
                group.append(request)
                events += len(request.events)
            else:
                others.append(request)
        self._waiting = others
        self._events -= events
        self._last = len(group)
        return group

    def _commit(self, group: Sequence[_Request]) -> None:
        try:
            receipt = self._accept_in_turn(group)
        except Exception as error:
            if len(group) > 1:  # what is wrong with one must not keep out the others
                for request in group:
                    self._commit([request])
                return
            if not isinstance(error, TheonError):
                _log.exception("a request with events could not be taken in")
            group[0].receipt.set_exception(error)
            return
        for request, part in zip(
            group, split(receipt, [len(r.events) for r in group]), strict=True
        ):
            request.receipt.set_result(part)

    def _accept_in_turn(self, group: Sequence[_Request]) -> Receipt:
        """Again where PostgreSQL ended one of two transactions that waited for each other."""
        for _ in range(DEADLOCK_TRIES):
            try:
                return self._accept(group)
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", None) != _DEADLOCK:
                    raise
        return self._accept(group)

    def _accept(self, group: Sequence[_Request]) -> Receipt:
        first = group[0]
        # Arrow here, not where requests are served: each of its calls gives up the interpreter's
        # lock, and to get it back takes longer there than the call.
        sent = pa.array([event for request in group for event in request.events], pa.binary())
        arrival = read_arrival(sent, first.format, came_s=time.time())
        with self._store.transaction(Scope(first.campus.slug)) as conn:
            return accept(conn, first.campus, first.source, arrival, lake_ids=self._lake_ids)


def split(receipt: Receipt, sizes: Sequence[int]) -> list[Receipt]:
    """One receipt per request.

    Args:
        receipt: of all of them, one after the other.
        sizes: how many events each had.
    """
    if len(sizes) == 1:
        return [receipt]
    ends = np.cumsum(sizes)
    duplicates: list[list[int]] = [[] for _ in sizes]
    for ordinal in receipt.duplicates:
        number = int(np.searchsorted(ends, ordinal, side="right"))
        duplicates[number].append(ordinal - int(ends[number]) + sizes[number])
    parts = []
    for number, size in enumerate(sizes):
        end = int(ends[number])
        refused = receipt.refused
        if refused.num_rows:
            at = refused[ORDINAL].to_numpy() - (end - size)
            inside = (at >= 0) & (at < size)
            refused = refused.filter(inside)
            moved = pa.array(at[inside], pa.int32())
            refused = refused.set_column(0, receipt.refused.schema.field(0), moved)
        accepted = size - len(duplicates[number]) - refused.num_rows
        parts.append(
            replace(
                receipt,
                received=size,
                accepted=accepted,
                duplicates=duplicates[number],
                refused=refused,
            )
        )
    return parts
