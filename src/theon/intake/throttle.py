"""How much one client may send: a share of each minute, then "come back in n seconds"."""

import logging
import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string

from theon.errors import TheonError
from theon.settings import Settings

_log = logging.getLogger(__name__)


class ThrottledError(TheonError):
    """A client has sent its share; nothing of this request was taken."""

    def __init__(self, allowed: int, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"this client has sent its {allowed:,} events of this minute",
            next_step=f"Nothing of this request was taken; send it again in {retry_after_s} s.",
        )


class Throttle:
    """Counts what each client sends: on Redis, where there is one, for all processes together."""

    def __init__(self, settings: Settings) -> None:
        """Choose where to count; connects to nothing yet."""
        self._allowed = settings.client_events_per_minute
        self._item = RateLimitItemPerMinute(self._allowed)
        storage = (
            MemoryStorage()
            if settings.redis_url is None
            else storage_from_string(
                f"async+{settings.redis_url}", implementation="redispy", wrap_exceptions=True
            )
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def take(self, client: str, events: int) -> None:
        """Let a client send this many events now.

        Raises:
            ThrottledError: its share is used up. A Redis that is away throttles nobody.
        """
        # A request of more than a minute's share is let through when nothing else was sent.
        cost = min(events, self._allowed)
        try:
            if await self._limiter.hit(self._item, client, cost=cost):
                return
            reset = (await self._limiter.get_window_stats(self._item, client)).reset_time
        except StorageError:
            _log.warning("the counter of what clients send is away; nobody is throttled")
            return
        raise ThrottledError(self._allowed, max(1, math.ceil(reset - time.time())))
