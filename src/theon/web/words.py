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
    """`2 h 05 min`, for hours per learner."""
    minutes = round(hours * 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
