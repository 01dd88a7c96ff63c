"""A page that follows: what is shown is read again when metrics in view change."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date

from cachetools import LRUCache
from nicegui import Client
from nicegui.client import ClientConnectionTimeout
from sqlalchemy.exc import SQLAlchemyError

from theon.errors import TheonError
from theon.metrics.headline import Headline
from theon.metrics.live import Listener, LiveHub
from theon.store.engine import Store
from theon.store.scope import Scope
from theon.web.figures import Overview, read_overview

# A page is not changed more often than this: who reads it wants to read it.
CALM_S = 1.0
AFTER_ERROR_S = 2.0
CONNECT_LIMIT_S = 60.0
MOST_READINGS = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """What a page shows: a campus and all below it, and the week that was asked for."""

    campus: str
    week: date | None


@dataclass(frozen=True)
class _Reading:
    position: int
    overview: "asyncio.Task[Overview]"


class Readings:
    """Overviews as they are now, read once for all pages that show the same."""

    def __init__(self, store: Store) -> None:
        """Name the database."""
        self._store = store
        self._newest: LRUCache[View, _Reading] = LRUCache(MOST_READINGS)

    async def get(self, view: View, position: int) -> Overview:
        """An overview that was begun after a headline of this position.

        Raises:
            InputError, UnavailableError: as `read_overview`.
        """
        found = self._newest.get(view)
        if found is None or found.position < position or _has_failed(found.overview):
            read = asyncio.to_thread(read_overview, self._store, campus=view.campus, week=view.week)
            found = self._newest[view] = _Reading(position, asyncio.ensure_future(read))
        return await asyncio.shield(found.overview)


def _has_failed(task: "asyncio.Task[Overview]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


@dataclass(frozen=True)
class Follower:
    """Keeps one open page at what the database says.

    Attributes:
        hub: tells when something changes.
        readings: shared by all pages.
        view: what the page shows.
        show: puts figures and headline onto the page.
        show_away: says on the page that the database cannot be reached.
    """

    hub: LiveHub
    readings: Readings
    view: View
    show: Callable[[Overview, Headline], None]
    show_away: Callable[[], None]

    async def follow(self, client: Client) -> None:
        """For as long as the page is open."""
        try:
            await client.connected(CONNECT_LIMIT_S)
        except ClientConnectionTimeout:
            return
        listener = Listener(Scope(self.view.campus))
        self.hub.add(listener)
        try:
            await self._until_over(client, listener)
        finally:
            self.hub.remove(listener)

    async def _until_over(self, client: Client, listener: Listener) -> None:
        # What changed between the reading of the page and now.
        await self._try(client, self._first)
        while not client.is_deleted:
            batch = await listener.take()
            if batch.over is not None:
                return
            if batch.away:
                self._in(client, self.show_away)
            if batch.headline is not None:
                headline = batch.headline

                async def shown(newest: Headline = headline) -> Callable[[], None]:
                    overview = await self.readings.get(self.view, newest.position)
                    return lambda: self.show(overview, newest)

                await self._try(client, shown)
                await asyncio.sleep(CALM_S)

    async def _first(self) -> Callable[[], None]:
        headline = await asyncio.to_thread(self.hub.read, Scope(self.view.campus))
        overview = await self.readings.get(self.view, headline.position)
        return lambda: self.show(overview, headline)

    async def _try(self, client: Client, read: Callable[[], Awaitable[Callable[[], None]]]) -> None:
        """Read and show; while the database is away, say so and try again."""
        while not client.is_deleted:
            try:
                show = await read()
            except (TheonError, SQLAlchemyError) as error:
                _log.info("a page waits for its figures: %s", error)
                self._in(client, self.show_away)
                await asyncio.sleep(AFTER_ERROR_S)
                continue
            self._in(client, show)
            return

    def _in(self, client: Client, do: Callable[[], None]) -> None:
        if not client.is_deleted:
            with client:
                do()
