"""Cron lines: every local time that exists once, and what happens to those that do not."""

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from theon.errors import InputError
from theon.jobs.cron import check_cron, check_timezone, fires, in_words, next_fire, next_fires

LONDON, NEW_YORK = "Europe/London", "America/New_York"


def utc(words: str) -> datetime:
    return datetime.fromisoformat(words).replace(tzinfo=UTC)


def seen(cron: str, timezone: str, after: str, before: str) -> list[str]:
    """The moments at which a line fires after one moment and before another, both in UTC."""
    found = []
    for moment in fires(cron, timezone, utc(after)):
        if moment >= utc(before):
            return found
        found.append(moment.strftime("%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("timezone", "cron", "after", "expected"),
    [
        (LONDON, "30 1 * * *", "2026-03-27 12:00", ["28 01:30", "29 01:00", "30 00:30"]),
        (NEW_YORK, "30 2 * * *", "2026-03-06 12:00", ["07 07:30", "08 07:00", "09 06:30"]),
        ("Australia/Lord_Howe", "10 2 * * *", "2026-10-02 00:00",
         ["02 15:40", "03 15:30", "04 15:10"]),
        # Midnight itself is skipped.
        ("Africa/Cairo", "0 0 * * *", "2026-04-22 12:00", ["22 22:00", "23 22:00", "24 21:00"]),
    ],
)  # fmt: skip
def test_a_skipped_local_time_fires_when_the_clock_goes_on(
    timezone: str, cron: str, after: str, expected: list[str]
) -> None:
    """Once, at the end of the gap: that day has its run too."""
    assert [m.strftime("%d %H:%M") for m in next_fires(cron, timezone, utc(after), 3)] == expected


@pytest.mark.parametrize(
    ("timezone", "after", "expected"),
    [
        (LONDON, "2026-10-24 00:00", ["24 00:30", "25 00:30", "26 01:30"]),
        (NEW_YORK, "2026-10-31 00:00", ["31 05:30", "01 05:30", "02 06:30"]),
    ],
)
def test_a_repeated_local_time_fires_the_first_time_only(
    timezone: str, after: str, expected: list[str]
) -> None:
    found = next_fires("30 1 * * *", timezone, utc(after), 3)
    assert [m.strftime("%d %H:%M") for m in found] == expected
    # Also for somebody who asks between the two passes.
    assert next_fire("30 1 * * *", timezone, found[1] + timedelta(minutes=30)) == found[2]


def test_two_times_in_one_gap_fire_together_once() -> None:
    """01:00 and 01:30 do not exist on that day, and 02:00 is a time of the line itself."""
    found = seen("0,30 1,2 * * *", LONDON, "2026-03-29 00:00", "2026-03-30 00:00")
    assert found == ["29 01:00", "29 01:30"]


def test_a_line_that_follows_the_clock_has_a_run_for_each_hour_that_passes() -> None:
    """Every hour at :30, twice at a repeated time and not at a skipped one, is every 60 minutes."""
    for timezone, day in ((LONDON, "2026-03-29"), (LONDON, "2026-10-25"), (NEW_YORK, "2026-11-01")):
        found = next_fires("30 * * * *", timezone, utc(f"{day} 00:00") - timedelta(hours=3), 12)
        assert {b - a for a, b in pairwise(found)} == {timedelta(hours=1)}
    assert seen("*/30 1 * * *", LONDON, "2026-10-25 00:00", "2026-10-26 00:00") == [
        "25 00:30", "25 01:00", "25 01:30",
    ]  # fmt: skip
    # Half an hour is repeated there, and one is skipped.
    assert seen("*/20 1 * * *", "Australia/Lord_Howe", "2026-04-04 13:59", "2026-04-04 20:00") == [
        "04 14:00", "04 14:20", "04 14:40", "04 15:10",
    ]  # fmt: skip
    assert seen("*/20 2 * * *", "Australia/Lord_Howe", "2026-10-03 15:00", "2026-10-03 20:00") == [
        "03 15:40"
    ]
    assert seen("*/30 1 * * *", "Africa/Cairo", "2026-04-23 20:00", "2026-04-24 20:00") == [
        "23 22:00", "23 22:30",
    ]  # fmt: skip


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "5 4 30,31 FEB */2"])
def test_a_line_that_never_fires_is_refused(cron: str) -> None:
    with pytest.raises(InputError, match="never fires"):
        check_cron(cron)
    with pytest.raises(InputError, match="never fires"):
        next_fires(cron, LONDON, utc("2026-01-01"))


@pytest.mark.parametrize(
    ("cron", "what"),
    [
        ("", "five fields, this one has 0"),
        ("0 0 * *", "five fields, this one has 4"),
        ("0 0 0 * * *", "five fields, this one has 6"),
        ("60 * * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 32 * *", "bad day-of-month"),
        ("0 0 0 * *", "bad day-of-month"),
        ("0 0 * 13 *", "bad month"),
        ("0 0 * * MUN", "bad day-of-week"),
        ("*/0 * * * *", "bad minute"),
        (f"{'9' * 5_000} * * * *", "too long"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_with_the_field_that_is_wrong(
    cron: str, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        check_cron(cron)


def test_rare_lines_are_lines() -> None:
    """The 29th of February, and a fifth Monday in it, come some day."""
    assert next_fires("0 0 29 2 *", "UTC", utc("2026-01-01"), 2) == [
        utc("2028-02-29"), utc("2032-02-29"),
    ]  # fmt: skip
    assert next_fire("0 0 * 2 MON#5", "UTC", utc("2026-01-01")) == utc("2044-02-29")
    assert next_fire("* * * * *", "UTC", utc("8999-12-31 23:59")) is None


@pytest.mark.parametrize("timezone", ["Mars/Olympus", "", "../etc/passwd", "/etc/localtime", "a\0"])
def test_an_unknown_time_zone_is_refused(timezone: str) -> None:
    with pytest.raises(InputError, match="no time zone"):
        check_timezone(timezone)


fields = st.lists(st.text("0123456789*/,-#LWMONFRI", max_size=6), min_size=5, max_size=5)


@settings(max_examples=300, deadline=None)
@given(fields.map(" ".join))
@example("0 0 L LW *")
@example("* * L-LW * MON#1/2")
def test_a_line_is_accepted_or_refused_and_nothing_else(cron: str) -> None:
    """Whatever a person types, the answer is an error for a person or a time."""
    try:
        check_cron(cron)
    except InputError:
        return
    assert next_fires(cron, "UTC", utc("2024-01-01"), 1)


minutes = st.sampled_from(["0", "30", "0,59", "*/15", "*", "7-50/9"])
hours = st.sampled_from(["*", "0", "1", "2", "1,2", "0-23", "*/2", "*/3", "23"])
zones = st.sampled_from(
    [LONDON, NEW_YORK, "UTC", "Australia/Lord_Howe", "Africa/Cairo", "America/Havana",
     "Asia/Kolkata", "Antarctica/Troll", "America/St_Johns", "Pacific/Apia", "Pacific/Chatham"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(minutes, hours, zones, st.integers(0, 3), st.integers(-2, 36 * 60))
def test_fire_times_are_those_of_a_clock_that_is_looked_at_every_minute(
    minute: str, hour: str, timezone: str, change: int, before: int
) -> None:
    """Compared with a plain walk over days on which clocks change, from wherever one asks."""
    cron, zone = f"{minute} {hour} * * *", ZoneInfo(timezone)
    changes = clock_changes(timezone)
    after = changes[change % len(changes)] - timedelta(minutes=before, seconds=before % 60)
    end = after + timedelta(days=2)
    found = []
    for moment in fires(cron, timezone, after):
        if moment > end:
            break
        found.append(moment)
    assert found == sorted(set(found))
    previous = after
    for moment in found:
        assert next_fire(cron, timezone, previous) == moment
        previous = moment
    assert found == walk(cron, zone, after, end)


@cache
def clock_changes(timezone: str) -> list[datetime]:
    """When the zone's clocks are put forward or back; any time for one that never does."""
    zone = ZoneInfo(timezone)
    hours = [utc("2026-01-01") + timedelta(hours=n) for n in range(2 * 365 * 24)]
    return [
        b
        for a, b in pairwise(hours)
        if a.astimezone(zone).utcoffset() != b.astimezone(zone).utcoffset()
    ] or hours[:1]


def walk(cron: str, zone: ZoneInfo, after: datetime, end: datetime) -> list[datetime]:
    """The moments in (after, end], by looking at the clock once a minute."""
    minute, hour = cron.split()[:2]
    follows = minute.startswith("*") or hour.startswith("*")
    found = []
    moment = after.replace(second=0, microsecond=0)
    while moment <= end:
        local = moment.astimezone(zone)
        before = (moment - timedelta(minutes=1)).astimezone(zone)
        naive, naive_before = local.replace(tzinfo=None), before.replace(tzinfo=None)
        shown = matches(cron, naive) and (follows or local.fold == 0)
        skipped = (naive_before + timedelta(minutes=k) for k in range(1, gap(naive, naive_before)))
        if moment > after and (shown or (not follows and any(matches(cron, t) for t in skipped))):
            found.append(moment)
        moment += timedelta(minutes=1)
    return found


def gap(now: datetime, before: datetime) -> int:
    return max(0, int((now - before).total_seconds() // 60))


def matches(cron: str, time: datetime) -> bool:
    """Whether a line of every day fires when a clock shows this."""
    return time.hour * 60 + time.minute in minutes_of_a_day(cron)


@cache
def minutes_of_a_day(cron: str) -> set[int]:
    day = datetime(2026, 1, 1)  # noqa: DTZ001 - a local time has no zone
    times = takewhile(
        lambda time: time < day + timedelta(days=1), CronSim(cron, day - timedelta(seconds=1))
    )
    return {time.hour * 60 + time.minute for time in times}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("15 * * * *", "At minute 15 of every hour"),
        ("0 2 * * *", "At 02:00 every day"),
        ("30 2 1 * *", "At 02:30 on the first day of every month"),
    ],
    ids=["hourly", "daily", "monthly"],
)
def test_a_line_is_told_in_words(line: str, said: str) -> None:
    assert in_words(line) == said


def test_a_line_that_cannot_be_read_has_no_words() -> None:
    with pytest.raises(InputError):
        in_words("0 2 30 2 *")
