"""When a cron line fires, in a time zone whose clocks are put forward and back.

`cronsim` finds the local times that match a line; this module says which moments those are. As in
Debian's cron, a line that names its minutes and hours stands for so many runs a day: a local time
that is skipped fires when the clock goes on, one that is repeated fires the first time. A line
whose minute or hour begins with `*` follows the clock: it leaves out skipped times and fires in
both passes of repeated ones.
"""

import heapq
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import groupby, islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from theon.errors import InputError

# No clock that is in use today is put back by more than this.
LONGEST_REPEAT = timedelta(hours=3)
LAST_YEAR = 9_000
_MINUTE = timedelta(minutes=1)
_ANY_TIME = datetime(2024, 1, 1)  # noqa: DTZ001 - a local time has no zone


def check_cron(cron: str) -> None:
    """Refuse a line that cannot be read or that never fires.

    Raises:
        InputError: says which.
    """
    try:
        next(_simulate(cron, _ANY_TIME))
    except StopIteration:
        raise _never(cron) from None


def check_timezone(timezone: str) -> ZoneInfo:
    """The time zone of this name.

    Raises:
        InputError: there is none.
    """
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):  # not found; an absolute path; a folder
        raise InputError(
            f"{timezone!r} is no time zone",
            where="schedule",
            next_step="Give an IANA name, such as Europe/London or America/New_York.",
        ) from None


def next_fires(cron: str, timezone: str, after: datetime, n: int = 5) -> list[datetime]:
    """The next `n` moments after `after` at which the line fires, in UTC.

    Raises:
        InputError: the line cannot be read or never fires, or there is no such time zone.
    """
    return list(islice(fires(cron, timezone, after), n))


@lru_cache(maxsize=1_000)
def in_words(cron: str) -> str:
    """The line in words, such as `At 02:00 every day`; its times are local.

    Raises:
        InputError: the line cannot be read or never fires.
    """
    check_cron(cron)
    return CronSim(cron, _ANY_TIME).explain()


@lru_cache(maxsize=10_000)
def next_fire(cron: str, timezone: str, after: datetime) -> datetime | None:
    """The first moment after `after` at which the line fires; None at the end of the calendar."""
    return next(fires(cron, timezone, after), None)


def fires(cron: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """All moments after `after` at which the line fires, in UTC and in order, each once.

    Raises:
        InputError: see `next_fires`.
    """
    zone = check_timezone(timezone)
    check_cron(cron)
    after = after.astimezone(UTC)
    minute, hour = cron.split()[:2]
    follows_clock = minute.startswith("*") or hour.startswith("*")
    local = after.astimezone(zone)
    start = local.replace(tzinfo=None)
    if (after + LONGEST_REPEAT).astimezone(zone).utcoffset() != local.utcoffset():
        # The clock is put back soon: a local time before `after` may come a second time after it.
        start -= LONGEST_REPEAT
    moments = (_followed if follows_clock else _named)(_simulate(cron, start), zone)
    # Two times inside one skipped hour fire together: once.
    return (moment for moment, _ in groupby(moments) if moment > after)


def _simulate(cron: str, start: datetime) -> Iterator[datetime]:
    """The local times after `start`, which has no zone, that match the line."""
    if len(cron.split()) != 5:
        raise InputError(
            f"a cron line has five fields, this one has {len(cron.split())}",
            where=f"cron line {cron!r}",
            next_step="Give minute, hour, day of month, month, day of week: 30 2 * * MON-FRI",
        )
    try:
        # From just before `start`, so that `start` itself counts.
        found = CronSim(cron, start - timedelta(seconds=1))
    except CronSimError as error:
        # The library knows days that no month of the line has, and tells them like bad syntax.
        if _is_bad_day(cron, error):
            raise _never(cron) from None
        raise _unreadable(cron, str(error)) from None
    except ValueError:  # a number of thousands of digits
        raise _unreadable(cron, "a number is too long") from None
    # Where the calendar ends, zones can no longer be compared.
    return takewhile(lambda time: time.year < LAST_YEAR, found)


def _is_bad_day(cron: str, error: CronSimError) -> bool:
    """Whether the days of a line are wrong only for its months."""
    if "day-of-month" not in str(error):
        return False
    try:
        CronSim(f"0 0 {cron.split()[2]} * *", _ANY_TIME)
    except CronSimError:
        return False
    return True


def _unreadable(cron: str, what: str) -> InputError:
    return InputError(
        f"it cannot be read: {what[:1].lower()}{what[1:]}",
        where=f"cron line {cron[:100]!r}",
        next_step="Give minute (0-59), hour (0-23), day of month (1-31, L), month (1-12), "
        "day of week (0-7, SUN-SAT): 30 2 * * MON-FRI",
    )


def _never(cron: str) -> InputError:
    return InputError(
        "it never fires: no date has such a day and month",
        where=f"cron line {cron!r}",
        next_step="Change the day or the month; L is the last day of every month.",
    )


def _named(times: Iterator[datetime], zone: ZoneInfo) -> Iterator[datetime]:
    """A run for each local time: after the gap if it is skipped, the first if it is repeated."""
    for time in times:
        yield _moment_after_gap(time, zone)


def _moment_after_gap(time: datetime, zone: ZoneInfo) -> datetime:
    while not _exists(time, zone):
        time += _MINUTE
    return time.replace(tzinfo=zone, fold=0).astimezone(UTC)


def _followed(times: Iterator[datetime], zone: ZoneInfo) -> Iterator[datetime]:
    """A run for each moment at which the clock shows a matching time."""
    second: list[datetime] = []  # the moments of second passes, earliest first
    for time in times:
        if not _exists(time, zone):
            continue
        moment = time.replace(tzinfo=zone, fold=0).astimezone(UTC)
        while second and second[0] <= moment:
            yield heapq.heappop(second)
        yield moment
        again = time.replace(tzinfo=zone, fold=1).astimezone(UTC)
        if again != moment:
            heapq.heappush(second, again)
    yield from sorted(second)


def _exists(time: datetime, zone: ZoneInfo) -> bool:
    local = time.replace(tzinfo=zone, fold=0)
    return local.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) == time
