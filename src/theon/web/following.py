"""A page that follows: what is shown is read again when metrics in view change.

The figures of now come with the news, so they are shown at once. The rest of the page is read for
it, takes longer, and may wait for it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial

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

# Charts and tables do not change more often than this: who reads them wants to read them.
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


class _Newest:
    """The position of the newest headline, for whoever waits for one."""

    def __init__(self) -> None:
        self._position = 0
        self._told = asyncio.Event()

    def tell(self, position: int) -> None:
        self._position = max(self._position, position)
        self._told.set()

    async def wait(self) -> int:
        """A position that was told since the last call."""
        await self._told.wait()
        self._told.clear()
        return self._position


@dataclass(frozen=True)
class Follower:
    """Keeps one open page at what the database says.

    Attributes:
        hub: tells when something changes.
        readings: shared by all pages.
        view: what the page shows.
        show: puts an overview onto the page.
        show_now: puts a headline onto the page, the newer the later.
        show_away: says on the page that the database cannot be reached.
    """

    hub: LiveHub
    readings: Readings
    view: View
    show: Callable[[Overview], None]
    show_now: Callable[[Headline], None]
    show_away: Callable[[], None]

    async def follow(self, client: Client) -> None:
        """For as long as the page is open."""
        try:
            await client.connected(CONNECT_LIMIT_S)
        except ClientConnectionTimeout:
            return
        listener = Listener(Scope(self.view.campus))
        self.hub.add(listener)
        newest = _Newest()
        try:
            async with asyncio.TaskGroup() as both:
                rest = both.create_task(self._keep_the_rest(client, newest))
                await self._until_over(client, listener, newest)
                rest.cancel()
        finally:
            self.hub.remove(listener)

    async def _until_over(self, client: Client, listener: Listener, newest: "_Newest") -> None:
        # What changed between the reading of the page and now.
        await self._first(client, newest)
        while not client.is_deleted:
            batch = await listener.take()
            if batch.over is not None:
                return
            if batch.away:
                self._in(client, self.show_away)
            if batch.headline is not None:
                self._show_now(client, batch.headline)
                newest.tell(batch.headline.position)

    async def _first(self, client: Client, newest: "_Newest") -> None:
        while not client.is_deleted:
            try:
                headline = await asyncio.to_thread(self.hub.read, Scope(self.view.campus))
            except (TheonError, SQLAlchemyError) as error:
                await self._wait_for_database(client, error)
                continue
            self._show_now(client, headline)
            newest.tell(headline.position)
            return

    async def _keep_the_rest(self, client: Client, newest: "_Newest") -> None:
        """Read the overview again whenever something is new, and show it."""
        while not client.is_deleted:
            position = await newest.wait()
            try:
                overview = await self.readings.get(self.view, position)
            except (TheonError, SQLAlchemyError) as error:
                await self._wait_for_database(client, error)
                newest.tell(position)
                continue
            self._in(client, partial(self.show, overview))
            await asyncio.sleep(CALM_S)

    async def _wait_for_database(self, client: Client, error: Exception) -> None:
        _log.info("a page waits for its figures: %s", error)
        self._in(client, self.show_away)
        await asyncio.sleep(AFTER_ERROR_S)

    def _show_now(self, client: Client, headline: Headline) -> None:
        self._in(client, partial(self.show_now, headline))

    def _in(self, client: Client, do: Callable[[], None]) -> None:
        if not client.is_deleted:
            with client:
                do()
