"""The rule by which a clock seems to be off: a lead is proof, and little else is told of.

A source is modelled as its clock's offset (seconds, ahead positive) and, per hour in which it sent,
the smallest delay between an event and its arrival; the lag that is seen is delay minus offset.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theon.intake.clocks import (
    BEHIND_HOURS,
    LOOKED_DAYS,
    TOLERANCE_S,
    SendingHour,
    Verdict,
    is_like_a_zone,
    judge,
    words_of_offset,
)

NOW = datetime(2026, 3, 4, 12, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE_S, HOUR_S = 60, 3600

PROMPT = st.floats(0, 150)  # seconds between an event and its arrival
LATE = st.floats(0, 30 * HOUR_S)
ZONES = st.integers(2, 56).map(lambda quarters: quarters * 900)  # half an hour to 14 hours
FINE = st.floats(-TOLERANCE_S, TOLERANCE_S)  # a clock that is right


def sent(offset_s: float, delays: Sequence[float], apart: int = 1) -> list[SendingHour]:
    """Hours `apart` from one another, the last one just now; the smallest delay in each."""
    last = NOW.replace(minute=0)
    hours = []
    for back, delay_s in enumerate(reversed(delays)):
        lag_s = delay_s - offset_s
        ahead = 4 if lag_s < -TOLERANCE_S else 0
        hours.append(SendingHour(last - back * apart * HOUR, 10, ahead, lag_s))
    return hours


def told(hours: list[SendingHour]) -> Verdict:
    return judge(hours, NOW)


@given(offset_s=FINE, delays=st.lists(st.one_of(PROMPT, LATE), max_size=30))
def test_a_clock_that_is_right_is_never_ahead_however_late_its_events_come(
    offset_s: float, delays: list[float]
) -> None:
    assert told(sent(offset_s, delays)).state != "ahead"


@given(offset_s=FINE, delays=st.lists(LATE, max_size=12), prompt=st.floats(0, 1500))
def test_a_source_that_sent_anything_soon_is_not_behind(
    offset_s: float, delays: list[float], prompt: float
) -> None:
    """One event in one of the last hours is enough: it cannot have come before it happened."""
    hours = [*delays, prompt, *delays[: BEHIND_HOURS - 1]]
    assert told(sent(offset_s, hours)).state in ("right", "unknown")


@given(
    offset_s=st.floats(TOLERANCE_S + 200, 24 * HOUR_S),
    delays=st.lists(PROMPT, min_size=2, max_size=12),
    late=LATE,
)
def test_a_clock_that_is_ahead_is_told_of_and_never_by_more_than_it_is(
    offset_s: float, delays: list[float], late: float
) -> None:
    found = told(sent(offset_s, delays))
    assert found.state == "ahead"
    assert offset_s - 151 <= found.off_s <= offset_s
    assert found.since == min(hour.hour for hour in sent(offset_s, delays))
    assert (found.timed, found.ahead) == (10 * found.hours, 4 * found.hours)
    # One hour in which everything came late changes nothing.
    assert told(sent(offset_s, [*delays, offset_s + late])).state == "ahead"


@given(offset_s=ZONES, delays=st.lists(PROMPT, min_size=BEHIND_HOURS, max_size=20), error_s=FINE)
def test_a_live_source_whose_time_zone_is_wrong_is_behind_by_just_that(
    offset_s: int, delays: list[float], error_s: float
) -> None:
    # Its clock may be a little wrong besides; what comes to less than the tolerance is not seen.
    lags = [max(delay - error_s, -TOLERANCE_S) for delay in delays]
    if max(lags) > 180:
        return
    found = told(sent(-offset_s, lags))
    assert (found.state, found.off_s) == ("behind", -offset_s)
    assert found.since == min(hour.hour for hour in sent(0, delays))
    assert told(sent(-offset_s, lags[: BEHIND_HOURS - 1])).state == "unknown"


@given(
    offset_s=ZONES,
    delays=st.lists(PROMPT, min_size=BEHIND_HOURS, max_size=BEHIND_HOURS),
    apart=st.integers(3, 24),
)
def test_who_sends_in_few_hours_of_the_day_is_not_behind(
    offset_s: int, delays: list[float], apart: int
) -> None:
    """Such as a nightly batch whose newest event is always as old."""
    assert told(sent(-offset_s, delays, apart)).state == "unknown"


@given(delays=st.lists(LATE, min_size=BEHIND_HOURS, max_size=20))
def test_who_sends_what_it_has_collected_is_not_behind(delays: list[float]) -> None:
    """The smallest lags differ by more than a live source's could."""
    if max(delays[-BEHIND_HOURS:]) - min(delays[-BEHIND_HOURS:]) > 300:
        assert told(sent(0, delays)).state in ("right", "unknown")


@given(
    offset_s=st.one_of(ZONES, ZONES.map(lambda s: -s)),
    delays=st.lists(PROMPT, min_size=BEHIND_HOURS, max_size=12),
)
def test_a_clock_that_is_set_right_is_right_after_two_hours_with_events(
    offset_s: int, delays: list[float]
) -> None:
    hours = sent(0, [10.0, 20.0])
    before = [
        SendingHour(hour.hour - 2 * HOUR, hour.timed, hour.ahead, hour.least_s)
        for hour in sent(offset_s, delays)
    ]
    assert told(before).state == ("ahead" if offset_s > 0 else "behind")
    assert told([*before, hours[1]]).state in ("ahead", "unknown")
    found = told([*before, *hours])
    assert (found.state, found.off_s) == ("right", 0)
    assert found.since == NOW.replace(minute=0) - HOUR


@given(
    hours=st.lists(
        st.tuples(st.integers(0, 10 * 24), st.floats(-24 * HOUR_S, 30 * HOUR_S)),
        unique_by=lambda hour: hour[0],
    ),
    days=st.integers(-400, 400),
    data=st.data(),
)
def test_the_verdict_depends_on_the_hours_alone(
    hours: list[tuple[int, float]], days: int, data: st.DataObject
) -> None:
    """Not on their order, not on the date, and not on hours that are long ago."""
    made = [SendingHour(NOW - back * HOUR, 1, int(lag < -120), lag) for back, lag in hours]
    found = judge(made, NOW)
    assert judge(data.draw(st.permutations(made)), NOW) == found
    recent = [hour for hour in made if hour.hour > NOW - timedelta(days=LOOKED_DAYS)]
    assert judge(recent, NOW) == found
    by = timedelta(days=days)
    moved = [SendingHour(h.hour + by, h.timed, h.ahead, h.least_s) for h in made]
    after = judge(moved, NOW + by)
    assert (after.state, after.off_s) == (found.state, found.off_s)


def test_one_hour_of_a_lead_is_not_enough() -> None:
    assert told(sent(3 * HOUR_S, [5.0])).state == "unknown"
    assert told(sent(0, [5.0, 5.0, 5.0 - HOUR_S])).state == "unknown"
    assert told([]).state == "unknown"


@pytest.mark.parametrize(
    ("off_s", "words", "like_a_zone"),
    [
        (3 * HOUR_S - 20, "2 h 59 min ahead", True),
        (3 * HOUR_S + 110, "3 h 1 min ahead", True),
        (-(5 * HOUR_S + 30 * MINUTE_S), "5 h 30 min behind", False),
        (3 * HOUR_S, "3 h ahead", True),
        (50 * MINUTE_S, "50 min ahead", False),
        (15 * MINUTE_S, "15 min ahead", False),
        (125, "2 min ahead", False),
    ],
)
def test_offsets_in_words(off_s: int, words: str, like_a_zone: bool) -> None:
    assert words_of_offset(off_s) == words
    if off_s > 0:
        assert is_like_a_zone(off_s) is like_a_zone
