"""One look at the ledger for all who listen.

A thread reads what changed, four times a second and only while somebody listens; then, once for
each scope that listens, the jobs that changed, so that row-level security decides who sees what.
Everybody has a mailbox that keeps the latest of each job: who reads slowly gets fewer messages
and holds nobody up.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from theon.api.jobs_models import JobEvent
from theon.errors import InputError, TheonError
from theon.jobs.changes import Changed, Changes
from theon.jobs.query import JobSummary, matching, summaries
from theon.jobs.search import JobFilter
from theon.jobs.states import ENDED
from theon.store.engine import Store
from theon.store.scope import Scope

TICK_S = 0.25
AFTER_ERROR_S = 1.0
READ_LIMITS = {"statement_timeout": "5s"}
MOST_PENDING = 2_000  # jobs that a mailbox keeps for somebody who does not read

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """What listeners are told of one job."""

    job: JobSummary

    @cached_property
    def data(self) -> str:
        """A `JobEvent` as JSON; made once for all, and only if somebody listens to this job."""
        return JobEvent.of(self.job).model_dump_json()

    @property
    def ended(self) -> bool:
        """Whether there will be no more of it."""
        return self.job.state in ENDED


@dataclass
class Batch:
    """What lay in a mailbox.

    Attributes:
        jobs: the latest of each job that changed.
        position: every change up to this number of the history is told with it.
        overflow: too much lay there and was thrown away; read the list again.
        over: the stream ends, and why.
    """

    jobs: list[Told] = field(default_factory=list)
    position: int = 0
    overflow: bool = False
    over: str | None = None


class Listener:
    """A mailbox. Made and read in one event loop; the watcher writes from its thread."""

    def __init__(
        self, scope: Scope, *, job_id: int | None = None, chosen: JobFilter | None = None
    ) -> None:
        """Listen to one job, or to all that match.

        Args:
            scope: of who listens.
            job_id: of the job.
            chosen: which jobs; one that leaves the states of the filter is told too.
        """
        self.scope = scope
        self.job_id = job_id
        self.chosen = chosen or JobFilter()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._pending: dict[int, Told] = {}
        self._batch = Batch()

    def tell(self, jobs: Sequence[Told], position: int) -> None:
        """Put something in; from any thread."""
        self._soon(lambda: self._put(jobs, position))

    def end(self, why: str) -> None:
        """Say that the stream ends; from any thread."""
        self._soon(lambda: self._end(why))

    def _soon(self, do: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody reads
            self._loop.call_soon_threadsafe(do)

    def _put(self, jobs: Sequence[Told], position: int) -> None:
        self._batch.position = max(position, self._batch.position)
        for told in jobs:
            self._pending.pop(told.job.id, None)  # the latest comes last
            self._pending[told.job.id] = told
        if len(self._pending) > MOST_PENDING:
            self._pending.clear()
            self._batch.overflow = True
        if jobs:
            self._ready.set()

    def _end(self, why: str) -> None:
        self._batch.over = why
        self._ready.set()

    async def take(self, limit_s: float) -> Batch:
        """What lies there, as soon as there is something, or after `limit_s` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._ready.wait()
        self._ready.clear()
        batch, self._batch = self._batch, Batch(position=self._batch.position)
        batch.jobs, self._pending = list(self._pending.values()), {}
        return batch


class Watcher:
    """Reads for everybody; the thread lives while somebody listens."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: set[Listener] = set()
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._running = False
        self._closed: str | None = None
        self._leaving = threading.Event()
        self._position = 0
        self._owed: dict[Scope, dict[int, frozenset[str]]] = {}

    def add(self, listener: Listener) -> int:
        """Tell a listener what changes from now on; waits for the database at the first one.

        Returns:
            The position of the history from which on it is told.

        Raises:
            UnavailableError: the database is away.
        """
        with self._starting:
            with self._lock:
                if self._closed is not None:
                    listener.end(self._closed)
                    return self._position
                if self._running:
                    self._listeners.add(listener)
                    return self._position
            with self._store.transaction(Scope.district()) as conn:
                changes = Changes(conn)
            with self._lock:
                self._position = changes.position
                self._listeners.add(listener)
                self._running = True
                self._leaving.clear()
            threading.Thread(
                target=self._run, args=(changes,), name="jobs-watcher", daemon=True
            ).start()
            return changes.position

    def remove(self, listener: Listener) -> None:
        """Forget a listener; at once, from any thread."""
        with self._lock:
            self._listeners.discard(listener)
            if not self._listeners:
                self._leaving.set()

    def close(self, why: str) -> None:
        """End all streams, and those that are opened from now on; from any thread."""
        with self._lock:
            self._closed = why
            listeners = list(self._listeners)
        for listener in listeners:
            listener.end(why)

    def _run(self, changes: Changes) -> None:
        while True:
            with self._lock:
                if not self._listeners:
                    self._running = False
                    self._owed.clear()
                    return
                self._leaving.clear()
            try:
                wait_s = 0.0 if self._tick(changes) else TICK_S
            except (TheonError, SQLAlchemyError) as error:
                _log.warning("changes of jobs cannot be read, and are read again: %s", error)
                wait_s = AFTER_ERROR_S
            except Exception:
                _log.exception("changes of jobs met an error that they do not know")
                wait_s = AFTER_ERROR_S
            self._leaving.wait(wait_s)

    def _tick(self, changes: Changes) -> bool:
        """Tell everybody what changed; returns whether there is more."""
        with self._store.transaction(Scope.district(), READ_LIMITS) as conn:
            changed = changes.read(conn)
        # After the read: who comes later reads the present state later still.
        with self._lock:
            self._position = changed.position
            listeners = list(self._listeners)
        scopes: dict[Scope, list[Listener]] = {}
        for listener in listeners:
            scopes.setdefault(listener.scope, []).append(listener)
        for scope, members in scopes.items():
            owed = self._owed.pop(scope, {})
            states = dict(owed)
            for job_id, found in changed.states.items():
                states[job_id] = owed.get(job_id, frozenset()) | found
            try:
                self._tell(scope, members, replace(changed, states=states))
            except (TheonError, SQLAlchemyError) as error:
                _log.warning("changes of %s are told later: %s", scope.campus, error)
                self._owed[scope] = states
        return changed.more

    def _tell(self, scope: Scope, members: Sequence[Listener], changed: Changed) -> None:
        single = {listener.job_id for listener in members}
        ids = [i for i in changed.states if i in single or None in single]
        found: dict[int, Told] = {}
        fitting: dict[JobFilter, set[int]] = {}
        if ids:
            with self._store.transaction(scope, READ_LIMITS) as conn:
                found = tell_of(conn, ids)
                for chosen in {m.chosen for m in members if m.job_id is None}:
                    fitting[chosen] = _fitting(conn, found, chosen, changed.states)
        for listener in members:
            if listener.job_id is not None:
                jobs = [found[listener.job_id]] if listener.job_id in found else []
            else:
                fits = fitting.get(listener.chosen, set())
                jobs = [told for job_id, told in found.items() if job_id in fits]
            listener.tell(jobs, changed.position)


def tell_of(conn: Connection, ids: Sequence[int]) -> dict[int, Told]:
    """What there is to tell of the jobs of these ids that the scope sees, the oldest first."""
    return {job.id: Told(job) for job in reversed(summaries(conn, ids))}


def _fitting(
    conn: Connection,
    found: Mapping[int, Told],
    chosen: JobFilter,
    states: Mapping[int, frozenset[str]],
) -> set[int]:
    """The jobs that match, or did before they changed their state."""
    ids = set(found)
    if chosen.states:
        ids = {i for i in ids if not states[i].isdisjoint(chosen.states)} | {
            i for i in ids if found[i].job.state in chosen.states
        }
    rest = replace(chosen, states=())
    if not ids or rest == JobFilter():
        return ids
    try:
        return matching(conn, sorted(ids), rest)
    except InputError:  # its campus is not there any more
        return set()


def tell_fitting(conn: Connection, changed: Changed, chosen: JobFilter) -> list[Told]:
    """What there is to tell of changed jobs to somebody who listens to those that match."""
    found = tell_of(conn, list(changed.states))
    ids = _fitting(conn, found, chosen, changed.states)
    return [told for job_id, told in found.items() if job_id in ids]
