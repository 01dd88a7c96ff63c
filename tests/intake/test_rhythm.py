"""A silence is told of when it is against the source's own rhythm, and only then."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from theon.intake.rhythm import judge

HOUR = timedelta(hours=1)
# A Monday, 00:00 UTC, in a time without a clock change in the zones used here.
MONDAY = datetime(2026, 2, 2, tzinfo=UTC)
ZONES = st.sampled_from(["UTC", "Europe/London", "America/New_York", "Asia/Kolkata"])


def school_days(weeks: int, days: set[int], first: int, last: int, zone: str) -> list[datetime]:
    """The hours, UTC, in which a source of school days sends: `first` to `last`, local."""
    begin = MONDAY.replace(tzinfo=ZoneInfo(zone))
    return [
        (begin + timedelta(days=7 * week + day, hours=hour)).astimezone(UTC).replace(minute=0)
        for week in range(weeks)
        for day in sorted(days)
        for hour in range(first, last + 1)
    ]


@example(zone="Asia/Kolkata", days={0, 1, 2, 3, 4}, first=6, length=4, minute=0, after=4_140)
@given(
    zone=ZONES,
    days=st.sets(st.integers(0, 4), min_size=2),
    first=st.integers(6, 10),
    length=st.integers(4, 9),
    minute=st.integers(0, 59),
    after=st.integers(0, 4 * 24 * 60),
)
def test_nights_weekends_and_free_days_are_no_alarm(
    zone: str, days: set[int], first: int, length: int, minute: int, after: int
):
    hours = school_days(4, days, first, first + length, zone)
    last_at = hours[-1] + timedelta(minutes=minute)
    begin = MONDAY.replace(tzinfo=ZoneInfo(zone)) + timedelta(days=28 + min(days), hours=first)
    # Until the end of the first hour in which it usually sends again; where a zone's hours begin at
    # half past, the ledger's hour is that of UTC.
    usual = begin.astimezone(UTC).replace(minute=0)
    now = min(last_at + timedelta(minutes=after), usual + timedelta(minutes=59))
    assert judge(hours, last_at, now, zone) is None


@given(
    zone=ZONES,
    day=st.integers(0, 4),
    stop=st.integers(8, 12),
    minute=st.integers(0, 59),
)
def test_a_source_that_stops_in_the_middle_of_a_school_day_is_noticed_within_two_hours(
    zone: str, day: int, stop: int, minute: int
):
    whole = school_days(5, {0, 1, 2, 3, 4}, 8, 15, zone)
    sent = [hour for hour in whole if hour <= whole[4 * 40 + day * 8 + stop - 8]]
    last_at = sent[-1] + timedelta(minutes=minute)
    # Where a zone's hours begin at half past, the clock's hour is that of UTC.
    floor = last_at.replace(minute=0)
    assert judge(sent, last_at, floor + HOUR, zone) is None
    silence = judge(sent, last_at, floor + 2 * HOUR, zone)
    assert silence is not None
    assert silence.since == last_at
    assert silence.length == pytest.approx(1)


@given(weeks=st.integers(0, 1), hours=st.integers(1, 60))
def test_a_source_with_little_history_is_not_judged(weeks: int, hours: int):
    sent = school_days(weeks + 1, {0, 1, 2, 3, 4}, 8, 15, "UTC")[:hours]
    assert judge(sent, sent[-1], sent[-1] + timedelta(days=20), "UTC") is None


def test_a_source_that_never_sent_is_not_judged():
    assert judge([], MONDAY, MONDAY + timedelta(days=3), "UTC") is None


def test_a_failure_a_week_ago_does_not_hide_the_next_one():
    whole = school_days(4, {0, 1, 2, 3, 4}, 8, 15, "UTC")
    failed = [h for h in whole if not (h.day == 17 and 9 <= h.hour <= 14)]
    last_at = failed[-1].replace(hour=9)
    sent = [hour for hour in failed if hour <= last_at]
    assert judge(sent, last_at, last_at + timedelta(hours=4), "UTC") is not None


def test_an_irregular_source_is_given_more_time_than_a_regular_one():
    """Of the first, silences of some hours are nothing new."""
    whole = [MONDAY + n * HOUR for n in range(28 * 24)]
    chance = random.Random(7)  # noqa: S311 - a test's
    irregular = [hour for hour in whole if chance.random() < 0.3]
    last = whole[-1]
    assert judge(whole, last, last + 2 * HOUR, "UTC") is not None
    last = irregular[-1]
    assert judge(irregular, last, last + 10 * HOUR, "UTC") is None
    assert judge(irregular, last, last + 72 * HOUR, "UTC") is not None


def test_the_hours_are_those_of_the_campus_also_across_a_clock_change():
    """School begins at 8 in London, before and after the last Sunday of March."""
    zone = ZoneInfo("Europe/London")
    begin = datetime(2026, 3, 2, tzinfo=zone)
    hours = [
        (begin + timedelta(days=day, hours=hour)).astimezone(UTC)
        for day in range(28)
        if (begin + timedelta(days=day)).weekday() < 5
        for hour in range(8, 16)
    ]
    monday = datetime(2026, 3, 30, 8, 0, tzinfo=zone).astimezone(UTC)
    assert judge(hours, hours[-1], monday + timedelta(minutes=59), "Europe/London") is None
    assert judge(hours, hours[-1], monday + timedelta(minutes=60), "Europe/London") is not None
