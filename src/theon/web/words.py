"""Numbers and changes in plain words."""

from dataclasses import dataclass
from datetime import date
from typing import Literal


@dataclass(frozen=True)
class Change:
    """A change against the week before: which way, and the same in words."""

    way: Literal["up", "down", "same", "none"]
    words: str
    short: str


def describe_change(now: float, before: float | None) -> Change:
    """Say how `now` differs from `before`; less than half a per cent is the same."""
    if before is None:
        return Change("none", "no week before to compare with", "new")
    if not before:
        way: Literal["up", "same"] = "up" if now else "same"
        return Change(way, "none the week before", "new" if now else "same")
    percent = round((now - before) / before * 100)
    if percent == 0:
        return Change("same", "the same as the week before", "same")
    if percent > 0:
        return Change("up", f"{percent} % more than the week before", f"+{percent} %")
    return Change("down", f"{-percent} % less than the week before", f"\N{MINUS SIGN}{-percent} %")


def week_name(start: date, end: date) -> str:
    """`9 to 15 November 2026`, naming month and year once where they are the same."""
    last = f"{end.day} {end:%B %Y}"
    if start.year != end.year:
        return f"{start.day} {start:%B %Y} to {last}"
    if start.month != end.month:
        return f"{start.day} {start:%B} to {last}"
    return f"{start.day} to {last}"


def duration(hours: float) -> str:
    """`2 h 05 min`, `45 min` or `20 s`, for hours per learner."""
    seconds = round(hours * 3600)
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


@dataclass(frozen=True)
class TimeUnit:
    """A unit in which times of some size are whole numbers worth reading."""

    name: Literal["hours", "minutes", "seconds"]
    short: str
    seconds: int

    def of(self, seconds: int) -> int:
        """These seconds in this unit, rounded."""
        return round(seconds / self.seconds)


_UNITS = (
    TimeUnit("hours", "h", 3600),
    TimeUnit("minutes", "min", 60),
    TimeUnit("seconds", "s", 1),
)


def time_unit(largest_s: int) -> TimeUnit:
    """The largest unit of which `largest_s` seconds are at least ten."""
    return next((unit for unit in _UNITS if largest_s >= 10 * unit.seconds), _UNITS[-1])
