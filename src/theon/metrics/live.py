"""Who is told at once when metrics change or outcomes are accepted: streams and pages.

One thread listens on the channel of the metrics, and only while somebody wants to know. What
comes together is told together, four times a second at most. The figures are read once for each
scope, under that scope, so row-level security decides what they hold. Everybody has a mailbox
that keeps the newest state only: who reads slowly is told less often and holds nobody up.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from theon.errors import TheonError
from theon.events.outcome_news import OutcomeNews, unpack
from theon.metrics.announce import CHANNEL
from theon.metrics.headline import Headline, read_headline
from theon.store.engine import Store
from theon.store.scope import Scope

TICK_S = 0.25
IDLE_S = 1.0
# However it came that nothing was heard, and at midnight, the figures are right after this.
LOOK_S = 5.0
AFTER_ERROR_S = 1.0
READ_LIMITS = {"statement_timeout": "5s"}
MOST_OUTCOMES = 2_000  # kinds of a course that a mailbox keeps for somebody who does not read

_log = logging.getLogger(__name__)

Told = Counter[tuple[str, str | None, str]]


@dataclass
class Batch:
    """What lay in a mailbox.

    Attributes:
        headline: the newest figures; None if nothing changed.
        changed: slugs of the campuses of which rows of metrics changed.
        outcomes: how many were accepted, by campus, course and kind.
        away: whether the database cannot be reached now.
        over: the stream ends, and why.
    """

    headline: Headline | None = None
    changed: set[str] = field(default_factory=set)
    outcomes: Told = field(default_factory=Counter)
    away: bool = False
    over: str | None = None

    @property
    def news(self) -> list[OutcomeNews]:
        """The outcomes in order."""
        return [OutcomeNews(*where, count) for where, count in self.outcomes.items()]


class Listener:
    """A mailbox. Made and read in one event loop; the hub writes from its thread."""

    def __init__(self, scope: Scope) -> None:
        """Listen to the campuses of a scope."""
        self.scope = scope
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._batch = Batch()

    def tell(self, headline: Headline | None, changed: set[str], outcomes: Told) -> None:
        """Put something in; from any thread."""

        def put() -> None:
            batch = self._batch
            batch.headline = headline or batch.headline
            batch.changed |= changed
            batch.outcomes.update(outcomes)
            if len(batch.outcomes) > MOST_OUTCOMES:
                batch.outcomes.clear()
            batch.away = False
            self._ready.set()

        self._soon(put)

    def tell_away(self) -> None:
        """Say that the database cannot be reached; from any thread."""

        def put() -> None:
            self._batch.away = True
            self._ready.set()

        self._soon(put)

    def end(self, why: str) -> None:
        """Say that the stream ends; from any thread."""

        def put() -> None:
            self._batch.over = why
            self._ready.set()

        self._soon(put)

    def _soon(self, do: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody reads
            self._loop.call_soon_threadsafe(do)

    async def take(self, limit_s: float | None = None) -> Batch:
        """What lies there, as soon as there is something, or after `limit_s` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._ready.wait()
        self._ready.clear()
        batch, self._batch = self._batch, Batch()
        return batch


class LiveHub:
    """Listens for everybody; the thread lives while somebody wants to know."""

    def __init__(self, store: Store) -> None:
        """Name the database; nothing runs before the first `add`."""
        self._store = store
        self._lock = threading.Lock()
        self._listeners: set[Listener] = set()
        self._running = False
        self._closed: str | None = None
        self._told: dict[Scope, Headline] = {}
        self._changed: set[str] = set()
        self._outcomes: Told = Counter()
        self._flush_at = self._look_at = 0.0

    def add(self, listener: Listener) -> None:
        """Tell a listener what happens from now on; at once, from any thread."""
        with self._lock:
            if self._closed is not None:
                listener.end(self._closed)
                return
            self._listeners.add(listener)
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="live-hub", daemon=True).start()

    def remove(self, listener: Listener) -> None:
        """Forget a listener; at once, from any thread."""
        with self._lock:
            self._listeners.discard(listener)

    def close(self, why: str) -> None:
        """End all streams, and those that are opened from now on; from any thread."""
        with self._lock:
            self._closed = why
            listeners = list(self._listeners)
        for listener in listeners:
            listener.end(why)

    def read(self, scope: Scope) -> Headline:
        """The present figures of a scope.

        Raises:
            UnavailableError: the database is away.
        """
        with self._store.transaction(scope, READ_LIMITS) as conn:
            return read_headline(conn, scope.campus)

    def _run(self) -> None:
        self._look_at = 0.0
        for heard in self._store.listen(CHANNEL, timeout_s=self._wait_s):
            with self._lock:
                if not self._listeners:
                    self._running = False
                    self._told.clear()
                    self._changed.clear()
                    self._outcomes.clear()
                    return
            try:
                self._hear(heard)
            except (ValueError, TypeError, KeyError):
                _log.warning("what the channel %s carries cannot be read: %.200r", CHANNEL, heard)
            now = time.monotonic()
            is_look = now >= self._look_at
            if (is_look or self._changed or self._outcomes) and now >= self._flush_at:
                self._flush(is_look=is_look)

    def _wait_s(self) -> float:
        if self._changed or self._outcomes:
            return max(0.01, self._flush_at - time.monotonic())
        return IDLE_S

    def _hear(self, heard: str | None) -> None:
        if heard is None:
            return
        news = unpack(heard)
        if news is None:
            self._changed.add(heard)
            return
        for one in news:
            self._outcomes[one.campus, one.course_id, one.kind] += one.count

    def _flush(self, *, is_look: bool) -> None:
        changed, self._changed = self._changed, set()
        outcomes, self._outcomes = self._outcomes, Counter()
        now = time.monotonic()
        self._flush_at = now + TICK_S
        if is_look:
            self._look_at = now + LOOK_S
        with self._lock:
            scopes: dict[Scope, list[Listener]] = {}
            for listener in self._listeners:
                scopes.setdefault(listener.scope, []).append(listener)
        for gone in self._told.keys() - scopes.keys():
            del self._told[gone]
        for scope, members in scopes.items():
            try:
                self._tell(scope, members, changed, outcomes, is_look=is_look)
            except (TheonError, SQLAlchemyError) as error:
                _log.warning("changes of %s are told later: %s", scope.campus, error)
                self._later(scope, members, changed)
            except Exception:
                _log.exception("changes of %s met an error that they do not know", scope.campus)
                self._later(scope, members, changed)

    def _tell(
        self,
        scope: Scope,
        members: list[Listener],
        changed: set[str],
        outcomes: Told,
        *,
        is_look: bool,
    ) -> None:
        """Tell the listeners of one scope what is theirs."""
        last = self._told.get(scope)
        headline = last
        # A campus that was added just now is known after the next look.
        if last is None or is_look or not changed.isdisjoint(last.visible):
            headline = self._told[scope] = self.read(scope)
        assert headline is not None  # noqa: S101 - it has just been read
        theirs = changed & headline.visible
        accepted = Counter({key: n for key, n in outcomes.items() if key[0] in headline.visible})
        is_new = last is None or headline.shown != last.shown
        if is_new or theirs or accepted:
            for listener in members:
                listener.tell(headline if is_new or theirs else None, theirs, accepted)

    def _later(self, scope: Scope, members: list[Listener], changed: set[str]) -> None:
        """Come back to it soon; outcomes are told at once or not at all."""
        self._told.pop(scope, None)
        self._changed |= changed
        self._look_at = 0.0
        self._flush_at = time.monotonic() + AFTER_ERROR_S
        for listener in members:
            listener.tell_away()
