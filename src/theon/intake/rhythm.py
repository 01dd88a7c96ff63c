"""When a source's silence is against its own rhythm.

The rule, in whole hours of the clock where the campus is:

1. The rhythm is learnt from the `WEEKS` weeks before the source's last delivery. An hour of the
   week (Monday 00, … Sunday 23) is *usual* to the degree in which those weeks had a delivery in
   it: in 3 of 4 is 0.75.
2. The length of a silence is the sum of what its whole hours are usual. A weekend of a source that
   sends on school days has the length 0, and so has a night.
3. The present silence is told of when its length is at least `LEAST` plus `MARGIN` times the
   second longest silence of those weeks. The longest is left out, so that one failure does not
   make the next one go unnoticed.
4. A source with less than `LEAST_DAYS` days of history, or deliveries in less than `LEAST_HOURS`
   hours of it, has no rhythm yet and is not judged.

So a source that sent in every hour of every school day is told of after one whole such hour in
which nothing came: from one to two hours after it stopped.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

WEEKS = 4
LEAST = 1.0
MARGIN = 1.5
LEAST_DAYS = 14
LEAST_HOURS = 24

_HOUR = timedelta(hours=1)
_WINDOW = timedelta(weeks=WEEKS)


@dataclass(frozen=True)
class Silence:
    """A silence that is against the rhythm.

    Attributes:
        since: the last delivery, UTC.
        length: in usual hours.
        limit: what length is told of.
        usual_before: the second longest silence of the weeks before, in usual hours.
    """

    since: datetime
    length: float
    limit: float
    usual_before: float


def judge(
    hours: Iterable[datetime], last_at: datetime, now: datetime, timezone: str
) -> Silence | None:
    """Whether a source has been silent for too long.

    Args:
        hours: the hours in which it delivered something, UTC, at full hours.
        last_at: its last delivery.
        now: the present.
        timezone: of the campus, IANA.

    Returns:
        The silence, if it is against the rhythm; None if it is not, or there is no rhythm yet.
    """
    zone = ZoneInfo(timezone)
    last = _floor(last_at)
    sent = {hour.astimezone(UTC) for hour in hours if last - _WINDOW < hour <= last}
    if len(sent) < LEAST_HOURS or last - min(sent) < timedelta(days=LEAST_DAYS):
        return None
    begin = min(sent)
    usual = _usual(sent, begin, last, zone)
    before = sorted(_silences(sent, begin, last, usual, zone), reverse=True)
    second = before[1] if len(before) > 1 else 0.0
    limit = LEAST + MARGIN * second
    silent = _hours(last + _HOUR, _floor(now) - _HOUR)
    length = sum(usual.get(_place(hour, zone), 0.0) for hour in silent)
    return Silence(last_at, length, limit, second) if length > limit - 1e-9 else None


def _usual(
    sent: set[datetime], begin: datetime, end: datetime, zone: ZoneInfo
) -> dict[tuple[int, int], float]:
    """Per hour of the week: in which share of its occurrences something was sent."""
    active: dict[tuple[int, int], int] = {}
    there: dict[tuple[int, int], int] = {}
    for hour in _hours(begin, end):
        place = _place(hour, zone)
        there[place] = there.get(place, 0) + 1
        active[place] = active.get(place, 0) + (hour in sent)
    return {place: active[place] / there[place] for place in there}


def _silences(
    sent: set[datetime],
    begin: datetime,
    end: datetime,
    usual: dict[tuple[int, int], float],
    zone: ZoneInfo,
) -> list[float]:
    """The lengths of all silences, in usual hours."""
    found, length = [], 0.0
    for hour in _hours(begin, end):
        if hour in sent:
            found.append(length)
            length = 0.0
        else:
            length += usual[_place(hour, zone)]
    return found


def _hours(begin: datetime, end: datetime) -> Iterable[datetime]:
    """From `begin` to `end`, both inclusive."""
    return (begin + n * _HOUR for n in range((end - begin) // _HOUR + 1))


def _place(hour: datetime, zone: ZoneInfo) -> tuple[int, int]:
    local = hour.astimezone(zone)
    return local.weekday(), local.hour


def _floor(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
