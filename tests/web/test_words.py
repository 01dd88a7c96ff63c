"""Plain words for numbers, and colours that can be read."""

import re
from datetime import date
from importlib import resources

import pytest

from theon.web.charts import sparkline
from theon.web.words import describe_change, duration, time_unit, week_name


@pytest.mark.parametrize(
    ("now", "before", "way", "words"),
    [
        (110, 100, "up", "10 % more than the week before"),
        (90, 100, "down", "10 % less than the week before"),
        (1000, 1004, "same", "the same as the week before"),
        (5, None, "none", "no week before to compare with"),
        (5, 0, "up", "none the week before"),
        (0, 0, "same", "none the week before"),
        (0, 7, "down", "100 % less than the week before"),
    ],
)
def test_a_change_is_said_in_words(now: float, before: float | None, way: str, words: str) -> None:
    change = describe_change(now, before)
    assert (change.way, change.words) == (way, words)


@pytest.mark.parametrize(
    ("start", "end", "name"),
    [
        (date(2026, 11, 9), date(2026, 11, 15), "9 to 15 November 2026"),
        (date(2026, 10, 26), date(2026, 11, 1), "26 October to 1 November 2026"),
        (date(2025, 12, 29), date(2026, 1, 4), "29 December 2025 to 4 January 2026"),
    ],
)
def test_a_week_names_month_and_year_once(start: date, end: date, name: str) -> None:
    assert week_name(start, end) == name


@pytest.mark.parametrize(
    ("hours", "said"),
    [(0, "0 s"), (0.01, "36 s"), (0.75, "45 min"), (0.999, "1 h 00 min"), (2.1, "2 h 06 min")],
)
def test_durations_are_hours_minutes_or_seconds(hours: float, said: str) -> None:
    assert duration(hours) == said


@pytest.mark.parametrize(
    ("largest_s", "name", "shown"),
    [(36_000, "hours", 10), (35_999, "minutes", 600), (600, "minutes", 10), (599, "seconds", 599)],
)
def test_small_times_are_shown_in_a_smaller_unit(largest_s: int, name: str, shown: int) -> None:
    """So that a small school does not read a row of zeros."""
    unit = time_unit(largest_s)
    assert (unit.name, unit.of(largest_s)) == (name, shown)
    assert time_unit(0).name == "seconds"


def test_a_sparkline_keeps_zero_at_the_bottom_and_the_most_at_the_top() -> None:
    points = [tuple(map(float, p.split(","))) for p in sparkline([0, 5, 10], 100, 30).split()]
    assert [x for x, _ in points] == [2, 50, 98]
    assert [y for _, y in points] == [27, 15, 3]
    assert sparkline([3]) == ""
    assert sparkline([0, 0]) != ""


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [":root", ".body--dark"])
def test_text_stands_out_from_its_ground_in_both_themes(theme: str) -> None:
    """4.5 to 1, as WCAG 2.2 AA asks for text of this size."""
    css = resources.files("theon.web").joinpath("overview.css").read_text(encoding="utf-8")
    block = re.search(re.escape(theme) + r" \{(.*?)\}", css, re.DOTALL)
    assert block is not None
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block[1]))
    for text in ("ink", "soft", "accent", "up", "down"):
        for ground in ("page", "panel"):
            light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"
