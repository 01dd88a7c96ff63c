"""When the clock of a source seems to be off.

What is known of each event that comes as it is sent: when it came, by the clock here, and when it
says it happened. The difference is its *lag*; nothing can come before it happened, so a negative
lag is proof, and nothing else is. The rule looks at *sending hours*: hours (UTC) in which something
came whose lag is known, of the last `LOOKED_DAYS` days.

1. **Ahead**: in at least `AHEAD_LEAST` of the last `AHEAD_HOURS` sending hours an event was from
   the future by more than `TOLERANCE_S`. The clock is ahead by at least the largest lead of these
   hours.
2. **Behind**: the last `BEHIND_HOURS` sending hours lie within `BEHIND_SPAN_HOURS` hours, and in
   every one of them the smallest lag is about the same whole multiple of `STEP_S` (a quarter of an
   hour), from `BEHIND_LEAST_S` to `BEHIND_MOST_S`: at most `TOLERANCE_S` less and `DELAY_S` more.
   The clock seems to be behind by that multiple, as if a time zone were written wrongly.
3. **Right**: in each of the last `RIGHT_HOURS` sending hours the smallest lag is neither that of a
   lead nor as long as the least that is told of.
4. Otherwise nothing can be said.

What the rule cannot know:

- Whose clock differs: a lead is a difference between two clocks, and the other one is Theon's.
- A clock that is behind by less than half an hour, or by no multiple of a quarter of an hour: late
  events look the same.
- A source that holds every event back for, say, exactly two hours is told of as two hours behind.
- One that sends what it has collected, a nightly batch or a device that was offline, is not told of
  as behind, as it has too few sending hours or its smallest lags differ. Its lead, if it has one,
  shows only in what it sends soon enough.
- Of senders that share a name one that is ahead shows, one that is behind does not.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import pyarrow as pa

from theon.intake.arrivals import ORDINAL, Arrival

TOLERANCE_S = 120
LOOKED_DAYS = 7
AHEAD_HOURS, AHEAD_LEAST = 3, 2
BEHIND_HOURS, BEHIND_SPAN_HOURS = 6, 12
STEP_S = 900
BEHIND_LEAST_S, BEHIND_MOST_S = 1_800, 14 * 3_600
DELAY_S = 180
RIGHT_HOURS = 2

State = Literal["ahead", "behind", "right", "unknown"]


@dataclass(frozen=True)
class Lags:
    """How long before their arrival events happened, by their own account.

    Attributes:
        timed: events of which that is known.
        ahead: those from the future by more than the tolerance.
        least_s: the smallest lag, seconds; negative: the largest lead. None of no event.
    """

    timed: int = 0
    ahead: int = 0
    least_s: float | None = None


NO_LAGS = Lags()


@dataclass(frozen=True)
class SendingHour:
    """The lags of an hour in which something came; see `Lags`.

    Attributes:
        hour: at which it begins, UTC.
    """

    hour: datetime
    timed: int
    ahead: int
    least_s: float


@dataclass(frozen=True)
class Verdict:
    """What can be said of a clock.

    Attributes:
        state: see the module.
        off_s: whole seconds; ahead is positive, behind negative; 0 if it is right or unknown.
        since: the first of the hours in a row that are like the last; None if it is unknown.
        hours: how many sending hours were looked at.
        timed, ahead: events in them.
    """

    state: State
    off_s: int = 0
    since: datetime | None = None
    hours: int = 0
    timed: int = 0
    ahead: int = 0


UNKNOWN = Verdict("unknown")


def measure(arrival: Arrival, new: pa.Table) -> Lags:
    """The lags of new events: what was known says nothing, as it may be sent again at any time.

    Args:
        arrival: says when its events came, and which of them had waited.
        new: `ARRIVAL_SCHEMA`; those that were accepted.
    """
    if arrival.came_s is None or not new.num_rows:
        return NO_LAGS
    # Microseconds since 1970.
    times = new["occurred_at"].cast(pa.int64()).to_numpy()
    if arrival.waited is not None:
        waited = np.asarray(arrival.waited)
        times = times[~waited[new[ORDINAL].to_numpy()]]
        if not times.size:
            return NO_LAGS
    came = int(arrival.came_s * 1_000_000)
    last = int(times.max())
    limit, ahead = came + TOLERANCE_S * 1_000_000, 0
    if last > limit:
        ahead = int(np.count_nonzero(times > limit))
    return Lags(times.size, ahead, (came - last) / 1_000_000)


def judge(hours: Iterable[SendingHour], now: datetime) -> Verdict:
    """What the lags of a source say of its clock.

    Args:
        hours: sending hours, one each, in any order.
        now: the present.
    """
    since = now - timedelta(days=LOOKED_DAYS)
    sent = sorted((hour for hour in hours if hour.hour > since), key=lambda h: h.hour)
    if sum(_is_ahead(hour) for hour in sent[-AHEAD_HOURS:]) >= AHEAD_LEAST:
        off = math.floor(-min(hour.least_s for hour in sent[-AHEAD_HOURS:]))
        own = sent if _is_ahead(sent[-1]) else sent[:-1]
        return _verdict("ahead", off, sent[-AHEAD_HOURS:], _row(own, _is_ahead))
    steps = _behind(sent[-BEHIND_HOURS:])
    if steps is not None:
        row = _row(sent, lambda hour: _fits(hour, steps))
        return _verdict("behind", -steps * STEP_S, sent[-BEHIND_HOURS:], row)
    if len(sent) >= RIGHT_HOURS and all(map(_is_right, sent[-RIGHT_HOURS:])):
        return _verdict("right", 0, sent[-RIGHT_HOURS:], _row(sent, _is_right))
    return UNKNOWN


def is_like_a_zone(off_s: int) -> bool:
    """Whether a lead may be a time zone that is written wrongly: near quarters of an hour."""
    nearest_s = _steps(off_s + DELAY_S) * STEP_S
    return nearest_s >= BEHIND_LEAST_S and nearest_s - off_s >= -TOLERANCE_S


def words_of_offset(off_s: int) -> str:
    """Such as '5 h 30 min behind', '47 min ahead'; whole minutes."""
    hours, minutes = divmod(abs(off_s) // 60, 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0 or not hours)
    return f"{' '.join(parts)} {'ahead' if off_s > 0 else 'behind'}"


def _behind(last: list[SendingHour]) -> int | None:
    """By how many quarters of an hour the clock seems to be behind."""
    if len(last) < BEHIND_HOURS:
        return None
    if last[-1].hour - last[0].hour >= timedelta(hours=BEHIND_SPAN_HOURS):
        return None
    steps = _steps(min(hour.least_s for hour in last) + TOLERANCE_S)
    within = BEHIND_LEAST_S <= steps * STEP_S <= BEHIND_MOST_S
    return steps if within and all(_fits(hour, steps) for hour in last) else None


def _steps(seconds: float) -> int:
    """Whole quarters of an hour in it."""
    return math.floor(seconds / STEP_S)


def _fits(hour: SendingHour, steps: int) -> bool:
    return -TOLERANCE_S <= hour.least_s - steps * STEP_S <= DELAY_S


def _is_ahead(hour: SendingHour) -> bool:
    return hour.least_s < -TOLERANCE_S


def _is_right(hour: SendingHour) -> bool:
    return -TOLERANCE_S <= hour.least_s < BEHIND_LEAST_S - TOLERANCE_S


def _row(sent: list[SendingHour], holds: Callable[[SendingHour], bool]) -> list[SendingHour]:
    """The last hours in a row for which something holds."""
    return list(itertools.takewhile(holds, reversed(sent)))


def _verdict(
    state: State, off_s: int, looked: list[SendingHour], row: list[SendingHour]
) -> Verdict:
    return Verdict(
        state,
        off_s,
        row[-1].hour,
        len(looked),
        sum(hour.timed for hour in looked),
        sum(hour.ahead for hour in looked),
    )
