"""Group commit of statements: requests that come together share one transaction.

Statements of a campus are stored one transaction after another, and to map a few of them to events
takes nearly as long as one. So a writer takes what is waiting from the same sender, never waits for
more, and answers each request by itself.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from uuid import UUID

import pyarrow as pa

from theon.api.xapi_calls import Caller
from theon.events.retractions import RETRACTED_SCHEMA
from theon.intake.delivery import record_delivery
from theon.intake.door import accept
from theon.intake.mapped import read_arrival
from theon.lake.lake_ids import LakeIds
from theon.lrs.errors import StatementConflictError
from theon.lrs.storing import Batch, Stored, store_batches
from theon.store.engine import Store

MAPPING = "xapi"
WRITERS = 3  # threads; they must not keep all connections while they wait for each other
GROUP_STATEMENTS = 5_000


@dataclass(frozen=True)
class Sending:
    """A request with statements.

    Attributes:
        caller: who sends them.
        site: the address of the store, as the sender knows it.
        batch: the statements, checked.
        ids: what it is answered.
    """

    caller: Caller
    site: str
    batch: Batch
    ids: "Future[list[str]]" = field(default_factory=Future)

    @property
    def sender(self) -> tuple[int, str, str]:
        """Who vouches for them."""
        return self.caller.campus.id, self.caller.principal.subject, self.site

    @property
    def authority(self) -> dict[str, Any]:
        """The Agent that stands for the key or account that they came with."""
        principal = self.caller.principal
        account = {"homePage": self.site, "name": principal.subject}
        return {"objectType": "Agent", "name": principal.name, "account": account}


class Writers(AbstractContextManager["Writers"]):
    """The threads that write statements; each keeps its engines that map them to events.

    Use it as a context manager around the service: an engine that is taken down while the
    interpreter ends takes the process down with it.
    """

    def __init__(
        self, store: Store, limits: Mapping[str, str], lake_ids: LakeIds | None = None
    ) -> None:
        """Name what they work with; begins nothing yet.

        Args:
            store: where statements go.
            limits: PostgreSQL's settings for a transaction.
            lake_ids: ids noted beside the lake.
        """
        self._store, self._lake_ids = store, lake_ids
        self._limits = limits
        self._waiting: deque[Sending] = deque()
        self._busy: set[int] = set()  # campuses
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="statements")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Answer what waits, then end the threads."""
        self._threads.shutdown()

    async def store(self, sending: Sending) -> list[str]:
        """Store what was sent; gives the ids of all its statements once they are durable.

        Raises:
            StatementConflictError: an id stands for something else; nothing was stored.
            UnavailableError: the database is away; nothing was stored.
        """
        with self._lock:
            self._waiting.append(sending)
        self._threads.submit(self._work)
        # Whoever goes away meanwhile does not take the others' group along.
        return await asyncio.shield(asyncio.wrap_future(sending.ids))

    def _work(self) -> None:
        """Store groups until none waits that another thread is not at."""
        group = self._take()
        while group:
            self._finish(group)
            group = self._take(done=group[0].caller.campus.id)

    def _finish(self, group: list[Sending]) -> None:
        """Store a group; each is answered, whatever happens."""
        try:
            self._answer(group)
        except BaseException as error:
            if len(group) == 1:
                group[0].ids.set_exception(error)
                return
            for sending in group:  # what breaks one is not the others' fault
                self._finish([sending])

    def _take(self, done: int | None = None) -> list[Sending]:
        """The first that waits and what may go with it; no two have a statement's id in common.

        Statements of a campus that another thread stores now wait: it takes them all at once.

        Args:
            done: the campus whose statements this thread has stored.
        """
        group: list[Sending] = []
        rest: deque[Sending] = deque()
        ids: set[UUID] = set()
        with self._lock:
            if done is not None:
                self._busy.discard(done)
            for sending in self._waiting:
                own = {statement.id for statement in sending.batch.statements}
                fits = (
                    sending.sender == group[0].sender
                    and len(ids) + len(own) <= GROUP_STATEMENTS
                    and ids.isdisjoint(own)
                    if group
                    else sending.caller.campus.id not in self._busy
                )
                if fits:
                    group.append(sending)
                    ids |= own
                else:
                    rest.append(sending)
            self._waiting = rest
            if group:
                self._busy.add(group[0].caller.campus.id)
        return group

    def _answer(self, group: list[Sending]) -> None:
        """Store a group in one transaction, then answer each."""
        scope = group[0].caller.principal.scope
        with self._store.transaction(scope, self._limits) as conn:
            outcomes = self._store_group(conn, group)
        for sending, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, StatementConflictError):
                sending.ids.set_exception(outcome)
            else:
                sending.ids.set_result(outcome.ids)

    def _store_group(
        self, conn: Any, group: list[Sending]
    ) -> list[Stored | StatementConflictError]:
        """The statements, and the events that the new ones are."""
        campus = group[0].caller.campus
        source = f"xapi:{group[0].caller.principal.name}"
        outcomes, voided = store_batches(
            conn, campus.id, [sending.batch for sending in group], group[0].authority
        )
        stored = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
        new = [words for outcome in stored for words in outcome.new]
        if new:
            arrival = read_arrival(pa.array(new, pa.string()), MAPPING, came_s=time.time())
            retracted = None
            if voided:
                events = read_arrival(pa.array(voided, pa.string()), MAPPING).events
                retracted = events.select(RETRACTED_SCHEMA.names)
            accept(conn, campus, source, arrival, lake_ids=self._lake_ids, retracted=retracted)
        known = sum(len(outcome.ids) for outcome in stored) - len(new)
        if known:
            record_delivery(
                conn, campus.id, source, received=known, accepted=0, duplicate=known,
                refused=Counter(), dead_lettered=0,
            )  # fmt: skip
        return outcomes
