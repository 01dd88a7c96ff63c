"""X1: the same events give the same metrics, whatever happened on the way."""

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.metrics.conftest import District, Row
from theon.events.activity import parse_rules
from theon.metrics import rows
from theon.metrics.catalog import load_catalog

# Sunday 25 October 2026 01:00 UTC: clocks go back in London, the hour 01:00-02:00 repeats.
START = int(datetime(2026, 10, 24, 21, 0, tzinfo=UTC).timestamp())
LONDON = ZoneInfo("Europe/London")
LIMIT_S = 1800

KINDS = [
    {},
    {"component": "mod_page", "event_name": "\\mod_page\\event\\course_module_viewed"},
    {"component": "mod_forum", "event_name": "\\mod_forum\\event\\discussion_viewed"},
    {
        "component": "mod_forum",
        "action": "created",
        "event_name": "\\mod_forum\\event\\post_created",
    },
    {"component": "mod_quiz", "event_name": "\\mod_quiz\\event\\attempt_viewed"},
    {"origin": "cli"},
    {"anonymous": True},
    {"real_user_id": "2"},
    {"user_id": "-1"},
    {"course_id": "1"},
]

# Offsets cluster around slot, hour, midnight and limit borders, where mistakes live.
offsets = st.one_of(
    st.integers(0, 3 * 86_400),
    st.builds(
        lambda hour, wobble: max(0, hour * 900 + wobble),
        st.integers(0, 40),
        st.sampled_from([-1800, -900, -2, -1, 0, 1, 2, 899, 1799, 1800, 1801]),
    ),
)
events = st.lists(
    st.tuples(
        offsets, st.sampled_from(["5", "6"]), st.sampled_from(["6", "7"]), st.sampled_from(KINDS)
    ),
    min_size=1,
    max_size=30,
)
relaxed = settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _rows(drawn: list[tuple[int, str, str, Row]]) -> list[Row]:
    return [
        {"id": f"moodle:{n}", "at": START + offset, "user_id": user, "course_id": course, **kind}
        for n, (offset, user, course, kind) in enumerate(drawn)
    ]


def _expected_weeks(rows: list[Row]) -> list[Row]:
    """`user_course_week` by the definition's words, event by event, sharing no code."""
    by_key: dict[tuple[str, str], list[Row]] = defaultdict(list)
    defaults = {"origin": "web", "component": "core", "action": "viewed"}
    for row in ({**defaults, **given_row} for given_row in rows):
        if (
            row["user_id"] not in ("-1", "0", "1")
            and not row.get("anonymous")
            and not row.get("real_user_id")
            and row["origin"] in ("web", "ws")
            and row["course_id"] not in ("0", "1")
            and row["component"] not in ("mod_quiz", "mod_assign")
        ):
            by_key[row["user_id"], row["course_id"]].append(row)
    weeks: dict[tuple[int, int, Any], Row] = {}
    for (user, course), mine in by_key.items():
        before = None
        for row in sorted(mine, key=lambda r: r["at"]):
            local = datetime.fromtimestamp(row["at"], LONDON).date()
            monday = local - timedelta(days=local.weekday())
            week = weeks.setdefault(
                (int(user), int(course), monday),
                {
                    "n": 0,
                    "days": set(),
                    "time": 0,
                    "pages": 0,
                    "res": 0,
                    "fv": 0,
                    "fp": 0,
                    "at": [],
                },
            )
            week["n"] += 1
            week["days"].add(local)
            week["at"].append(row["at"])
            if before is not None and row["at"] - before <= LIMIT_S:
                week["time"] += row["at"] - before
            before = row["at"]
            viewed = row.get("action", "viewed") == "viewed"
            week["pages"] += viewed
            week["res"] += viewed and row.get("component") == "mod_page"
            week["fv"] += viewed and row.get("component") == "mod_forum"
            week["fp"] += row.get("event_name") == "\\mod_forum\\event\\post_created"
    return [
        {
            "user_id": str(user),
            "course_id": str(course),
            "week_start": monday,
            "total_actions": w["n"],
            "active_days": len(w["days"]),
            "time_spent_s": w["time"],
            "resources_viewed": w["res"],
            "pages_viewed": w["pages"],
            "forum_views": w["fv"],
            "forum_posts": w["fp"],
            "first_access": datetime.fromtimestamp(min(w["at"]), UTC),
            "last_access": datetime.fromtimestamp(max(w["at"]), UTC),
            "quizzes_attempted": None,
            "quizzes_avg_score": None,
            "assignments_submitted": None,
            "course_progress": None,
            "activities_completed": None,
        }
        for (user, course, monday), w in sorted(weeks.items())
    ]


@relaxed
@given(drawn=events, data=st.data())
def test_any_order_duplication_batches_and_refreshes_give_one_clean_rebuild(
    make_district: Callable[[], District], drawn: list[Any], data: st.DataObject
) -> None:
    """Shuffled, repeated, cut into batches with refreshes between: equal to the plain words."""
    district = make_district()
    rows = _rows(drawn)
    campus = district.campus()
    again = data.draw(st.lists(st.sampled_from(rows), max_size=10))
    shuffled = data.draw(st.permutations(rows + again))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shuffled)), max_size=4)))
    for low, high in zip([0, *cuts], [*cuts, len(shuffled)], strict=True):
        if low < high:
            district.put(campus, shuffled[low:high])
        if data.draw(st.booleans()):
            district.refresh(campus)
    district.refresh(campus)
    incremental = district.all_rows(campus)
    assert incremental["user_course_week"] == _expected_weeks(rows)

    clean = district.campus()
    district.put(clean, rows)
    district.refresh(clean, rebuild=True)
    assert incremental == district.all_rows(clean)
    district.refresh(campus, rebuild=True)
    assert incremental == district.all_rows(campus)


class _KilledError(BaseException):
    """Stands for kill -9 right after a step: nothing after it runs, nothing is caught."""


STEPS = ["cells written", "days written", "user_course_week written", "before commit", "committed"]


@relaxed
@given(drawn=events, data=st.data())
def test_a_kill_between_any_two_steps_changes_no_number(
    make_district: Callable[[], District], drawn: list[Any], data: st.DataObject
) -> None:
    """A refresh that dies after any step leaves what was published, or all of the new."""
    district = make_district()
    rows = _rows(drawn)
    campus = district.campus()
    half = data.draw(st.integers(0, len(rows)))
    for part in (rows[:half], rows[half:]):
        if part:
            district.put(campus, part)
        before = district.all_rows(campus) if part is not rows[:half] and half else None
        deadly = data.draw(st.sampled_from(STEPS))

        def die(step: str, deadly: str = deadly) -> None:
            if step == deadly:
                raise _KilledError

        try:
            district.refresh(campus, checkpoint=die)
        except _KilledError:
            if before is not None and deadly != "committed":
                assert district.all_rows(campus) == before
    district.refresh(campus)
    assert district.rows(campus, "user_course_week") == _expected_weeks(rows)


@relaxed
@given(drawn=events, limit_s=st.sampled_from([900, 1200, 1799, 7200, 86_400]))
def test_another_session_limit_needs_no_event_and_equals_a_rebuild(
    make_district: Callable[[], District], drawn: list[Any], limit_s: int
) -> None:
    """A changed limit reads cells only, and gives what a rebuild under it gives."""
    district = make_district()
    campus = district.campus()
    district.put(campus, _rows(drawn))
    district.refresh(campus)
    district.settings = district.settings.model_copy(update={"session_limit_s": limit_s})
    summary = district.refresh(campus)
    assert summary.events == 0
    changed = district.all_rows(campus)
    district.refresh(campus, rebuild=True)
    assert changed == district.all_rows(campus)


def test_late_events_reopen_only_their_hours(district: District) -> None:
    """One late event in a history of ten days reopens one hour and at most two days."""
    campus = district.campus()
    day = 86_400
    rows = [{"id": f"moodle:{n}", "at": START + n * 600} for n in range(10 * day // 600)]
    district.put(campus, rows)
    assert district.refresh(campus).hours == 240
    district.put(campus, [{"id": "moodle:late", "at": START + 3 * day + 5}])
    summary = district.refresh(campus)
    assert (summary.hours, summary.days) == (1, 1)
    assert summary.events < 10
    assert summary.rows_written["user_course_week"] == 1


def test_a_late_event_reaches_the_day_after_the_next_under_a_long_limit(
    district: District,
) -> None:
    """With a limit of a day, an event at five to midnight ends its gap two dates on."""
    district.settings = district.settings.model_copy(update={"session_limit_s": 86_400})
    campus = district.campus("UTC")
    midnight = int(datetime(2026, 11, 10, tzinfo=UTC).timestamp())
    district.put(campus, [{"id": f"moodle:{n}", "at": midnight + n} for n in (43_000, 86_000)])
    district.refresh(campus)
    district.put(campus, [{"id": "moodle:late", "at": midnight - 300}])
    district.refresh(campus)
    late = district.all_rows(campus)
    district.refresh(campus, rebuild=True)
    assert late == district.all_rows(campus)
    assert [r["time_spent_s"] for r in district.rows(campus, "user_day")] == [0, 86_300]


def test_clocks_that_change_at_midnight_lose_no_hour(district: District) -> None:
    """Sao Paulo, February 2018: at midnight it was 23:00 again, still the 17th."""
    campus = district.campus("America/Sao_Paulo")
    first_23 = int(datetime(2018, 2, 18, 1, 0, tzinfo=UTC).timestamp())
    rows = [{"id": f"moodle:{n}", "at": first_23 + 900 * n} for n in range(12)]
    district.put(campus, rows[::2])
    district.refresh(campus)
    district.put(campus, rows[1::2])
    district.refresh(campus)
    assert [(r["day"].day, r["total_actions"]) for r in district.rows(campus, "user_day")] == [
        (17, 8),
        (18, 4),
    ]


def test_a_second_refresh_does_nothing(district: District) -> None:
    """Without news a refresh reads no event and writes no row."""
    campus = district.campus()
    district.put(campus, [{"id": "moodle:1", "at": START}])
    district.refresh(campus)
    again = district.refresh(campus)
    assert (again.events, again.hours, again.rows_written) == (0, 0, {})


def test_a_late_event_moves_the_gap_of_the_next_day(district: District) -> None:
    """A late event before midnight lends the first cell after midnight a gap it did not have."""
    campus = district.campus("UTC")
    midnight = int(datetime(2026, 10, 26, tzinfo=UTC).timestamp())
    district.put(campus, [{"id": "moodle:1", "at": midnight + 100}])
    district.refresh(campus)
    assert [r["time_spent_s"] for r in district.rows(campus, "user_day")] == [0]
    district.put(campus, [{"id": "moodle:2", "at": midnight - 100}])
    district.refresh(campus)
    assert [(r["day"].day, r["time_spent_s"]) for r in district.rows(campus, "user_day")] == [
        (25, 0),
        (26, 200),
    ]
    # 26 October is a Monday: the gap belongs to the new week.
    assert [r["time_spent_s"] for r in district.rows(campus, "user_course_week")] == [0, 200]


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "Australia/Eucla", "America/St_Johns"])
def test_quarter_hour_zones_cut_days_at_their_own_midnight(district: District, zone: str) -> None:
    """Zones off by 45 or 30 minutes: the day changes at local midnight, inside a UTC hour."""
    campus = district.campus(zone)
    local = datetime(2026, 11, 10, 0, 0, tzinfo=ZoneInfo(zone))
    midnight = int(local.timestamp())
    district.put(
        campus,
        [{"id": "moodle:1", "at": midnight - 1}, {"id": "moodle:2", "at": midnight}],
    )
    district.refresh(campus)
    assert [(r["day"].day, r["total_actions"]) for r in district.rows(campus, "user_day")] == [
        (9, 1),
        (10, 1),
    ]


def test_days_too_many_to_keep_give_the_same_rows(
    district: District, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether metrics share the days that were read, or each reads its own, shows nowhere."""
    found = []
    for limit in (rows.KEPT_DAY_ROWS, 0):
        monkeypatch.setattr(rows, "KEPT_DAY_ROWS", limit)
        campus = district.campus()
        district.put(campus, [{"id": f"moodle:{n}", "at": START + n * 40_000} for n in range(40)])
        district.refresh(campus)
        late = [
            {"id": f"moodle:late-{n}", "at": START + n * 200_000 + 600, "user_id": str(5 + n % 2)}
            for n in range(8)
        ]
        district.put(campus, late)
        district.refresh(campus)
        found.append(district.all_rows(campus))
        district.refresh(campus, rebuild=True)
        assert district.all_rows(campus) == found[-1]
    assert found[0] == found[1]


def test_a_late_event_without_a_course_replaces_the_day_it_belongs_to(district: District) -> None:
    """Rules may let events without a course count; a late one is not counted beside the old."""
    shipped = resources.files("theon.events").joinpath("activity_rules.toml").read_text("utf-8")
    no_course = '{ absent = ["course_id"] }, '
    assert no_course in shipped
    options = {
        "rules": parse_rules(shipped.replace(no_course, "")),
        "catalog": {"user_day": load_catalog()["user_day"]},
    }
    campus = district.campus("UTC")
    for number in range(3):
        at = START + 600 * number
        district.put(campus, [{"id": f"moodle:{number}", "at": at, "course_id": None}])
        district.refresh(campus, **options)
    [row] = district.rows(campus, "user_day")
    assert (row["total_actions"], row["time_spent_s"]) == (3, 1200)
