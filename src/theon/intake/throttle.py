"""How much one client may send: a share of each minute, then "come back in n seconds"."""

import logging
import math
import time
from typing import cast

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, SlidingWindowCounterSupport
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
        self._storage = cast(SlidingWindowCounterSupport, storage)
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
            minute_s = self._item.get_expiry()
            window = await self._storage.get_sliding_window(self._item.key_for(client), minute_s)
        except StorageError:
            _log.warning("the counter of what clients send is away; nobody is throttled")
            return
        before, before_s, now, _ = window
        left_s = minute_s - time.time() % minute_s  # windows begin with the minutes of the clock
        room = self._allowed - cost
        wait_s = until_it_fits(before, before_s, now, left_s, minute_s, room)
        raise ThrottledError(self._allowed, max(1, math.ceil(wait_s)))


def until_it_fits(
    before: int, before_s: float, now: int, left_s: float, minute_s: float, room: int
) -> float:
    """Seconds until no more than `room` counts, if nothing else is sent.

    What was sent in this minute counts whole; what was sent in the one before counts less and less,
    until it is nothing at the end of this one.

    Args:
        before: what was sent in the minute before.
        before_s: for how long it counts.
        now: what was sent in this minute.
        left_s: of this minute.
        minute_s: its length.
        room: of what has been sent, so much may count beside what is to be sent.
    """
    if now > room:  # not in this minute
        return left_s + minute_s * (1 - room / now)
    return before_s - minute_s * (room - now) / before if before else 0.0
