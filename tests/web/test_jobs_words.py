"""Words for filters, durations and arguments."""

import re
from datetime import UTC
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theon.errors import InputError
from theon.jobs.query import Remaining
from theon.jobs.search import STATES, JobFilter, parse_search
from theon.web.jobs_base import duration, megabytes
from theon.web.jobs_filter import words_of
from theon.web.jobs_words import read_json, time_left

# -- words ---------------------------------------------------------------------------------

_VALUES = st.lists(
    st.text(min_size=1, max_size=8).filter(
        lambda s: s == s.strip() and s and not set(s) & set('",\0') and s.isprintable()
    ),
    max_size=2, unique=True,
).map(tuple)  # fmt: skip
_FILTERS = st.builds(
    JobFilter,
    states=st.lists(st.sampled_from(STATES), max_size=2, unique=True).map(tuple),
    kinds=_VALUES,
    owners=_VALUES,
    campuses=_VALUES,
    created_from=st.none() | st.datetimes(timezones=st.just(UTC)),
    ended_before=st.none() | st.datetimes(timezones=st.just(UTC)),
    text=st.text(max_size=12).filter(lambda s: not set(s) & set('"\0') and s.isprintable()),
)


@given(_FILTERS)
def test_a_filter_in_words_is_the_same_filter(chosen: JobFilter) -> None:
    assert parse_search(words_of(chosen)) == chosen


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"), (0, "0 ms"), (0.0123, "12 ms"), (0.1, "0.1 s"),
        (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"),
        (200, "3 min 20 s"), (7500, "2 h 5 min"), (352_800, "4 d 2 h"), (-1, "0 ms"),
    ],
    ids=str,
)  # fmt: skip
def test_durations_are_in_units_that_fit(seconds: float | None, said: str) -> None:
    assert duration(seconds) == (said if seconds is not None else "\N{EN DASH}")


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (Remaining(60, 120, "progress"), "1 min to 2 min left"),
        (Remaining(0, 30, "history"), "up to 30 s left"),
        (Remaining(0, 0, "history"), "longer than such jobs usually take"),
        (Remaining(0, 0.2, "progress"), "done in a moment"),
        (Remaining(20, 20.2, "progress"), "20 s left"),
        (Remaining(3.2, 9.4, "progress"), "3 s to 9 s left"),
    ],
    ids=["range", "open", "late", "soon", "same", "seconds"],
)
def test_time_that_remains_is_a_range(left: Remaining, said: str) -> None:
    assert time_left(left) == said


def test_megabytes_become_gigabytes() -> None:
    assert [megabytes(n) for n in (None, 12.4, 1536)] == ["\N{EN DASH}", "12 MB", "1.5 GB"]


def test_nothing_typed_is_no_arguments() -> None:
    assert read_json(" \n") == {}
    with pytest.raises(InputError, match="not JSON"):
        read_json("{'a': 1}")


# -- colours -------------------------------------------------------------------------------

GROUNDS = [
    *((text, ground) for text in ("ink", "soft", "accent", "up", "down", "wait", "rest")
      for ground in ("page", "panel")),
    ("accent", "tint"), ("ink", "tint"), ("soft", "plain-tint"), ("accent", "plain-tint"),
    *((name, f"{name}-tint") for name in ("up", "down", "wait", "rest")),
]  # fmt: skip


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_of_the_pages_stands_out_from_its_ground(theme: int) -> None:
    """4.5 to 1, as WCAG 2.2 AA asks for text of this size; in both themes."""
    css = resources.files("theon.web").joinpath("jobs_style.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
    for text, ground in GROUNDS:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])))[::-1]
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"
