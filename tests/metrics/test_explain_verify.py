"""X3: every number leads to its events; `verify` finds a number that is not theirs."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from tests.metrics.conftest import District
from tests.metrics.test_definitions import FOLDERS, read_given
from theon.errors import InputError
from theon.metrics.catalog import get_metric
from theon.metrics.explain import Explanation, explain
from theon.metrics.verify import verify
from theon.store.scope import Scope

KEYS = {
    "user_course_week": {"user_id": "5", "course_id": "6", "week_start": "2026-10-19"},
    "user_day": {"user_id": "5", "day": "2026-10-25"},
    "course_day": {"course_id": "6", "day": "2026-10-26"},
    "course_week": {"course_id": "6", "week_start": "2026-10-19"},
    "course_month": {"course_id": "8", "month_start": "2026-10-01"},
    "campus_week": {"week_start": "2026-10-26"},
    "campus_month": {"month_start": "2026-10-01"},
}


@pytest.fixture
def campus(district: District) -> str:
    slug = district.campus("Europe/London")
    district.put(slug, read_given(FOLDERS[0]))
    district.refresh(slug)
    return slug


def ask(district: District, metric: str, campus: str, key: dict[str, str]) -> Explanation:
    return explain(
        district.store,
        district.lake,
        district.settings,
        get_metric(metric),
        campus=campus,
        key=key,
    )


@pytest.mark.parametrize("metric", KEYS)
def test_the_events_behind_a_row_add_up_to_it(district: District, campus: str, metric: str) -> None:
    """For every metric: the explained events give exactly the published row."""
    found = ask(district, metric, campus, KEYS[metric])
    assert found.value
    shared = set(found.totals) & set(found.value)
    assert {"total_actions", "time_spent_s", "pages_viewed"} <= shared
    assert {k: found.totals[k] for k in shared} == {k: found.value[k] for k in shared}
    assert "exactly what these events give" in found.sentences[-1]


def test_events_that_do_not_count_are_shown_with_their_reason(
    district: District, campus: str
) -> None:
    """The day with a quiz view, a cli row and others says of each why it does not count."""
    found = ask(
        district,
        "user_course_week",
        campus,
        {"user_id": "5", "course_id": "6", "week_start": "2026-10-19"},
    )
    reasons = {r for r in found.events["reason"].to_pylist() if r}
    assert reasons == {"left to the observers", "origin", "anonymous", "logged in as somebody else"}


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ({"user_id": "5", "course_id": "6"}, "missing: week_start"),
        ({**KEYS["user_course_week"], "day": "2026-10-19"}, "not part of it: day"),
        ({**KEYS["user_course_week"], "week_start": "soon"}, "no date"),
        ({**KEYS["user_course_week"], "week_start": "2026-10-21"}, "begins at 2026-10-19"),
    ],
)
def test_a_key_that_does_not_fit_is_refused_with_what_would(
    district: District, campus: str, key: dict[str, str], says: str
) -> None:
    """A wrong question gets the right form of it as the answer."""
    with pytest.raises(InputError, match=says):
        ask(district, "user_course_week", campus, key)


def test_verify_agrees_with_a_fresh_refresh(district: District, campus: str) -> None:
    """Another way of computing, the same numbers."""
    report = verify(district.store, district.lake, district.settings, campus=campus)
    assert report.ok
    assert report.rows_compared == 29


def test_verify_passes_over_weeks_in_which_nothing_happened(
    district: District, campus: str
) -> None:
    """Two files with a silent month between them are no difference."""
    row = read_given(FOLDERS[0])[0]
    district.put(campus, [{**row, "id": "moodle:much-later", "at": row["at"] + timedelta(days=60)}])
    district.refresh(campus)
    assert verify(district.store, district.lake, district.settings, campus=campus).ok


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE {} SET time_spent_s = time_spent_s + 1 WHERE user_id = '5'", "time_spent_s of"),
        ("DELETE FROM {} WHERE user_id = '7'", "is missing"),
        (
            "INSERT INTO {} (campus_id, user_id, course_id, week_start, total_actions)"
            " SELECT campus_id, '99', course_id, week_start, 1 FROM {} WHERE user_id = '5'",
            "should not be there",
        ),
    ],
)
def test_verify_names_a_number_that_is_not_right(
    district: District, campus: str, damage: str, says: str
) -> None:
    """A changed value, a missing row, a row too many: each is found and said in words."""
    table = get_metric("user_course_week").table
    with district.store.transaction(Scope(campus)) as conn:
        conn.execute(text(damage.format(table, table)))
    report = verify(district.store, district.lake, district.settings, campus=campus)
    assert not report.ok
    assert any(says in d.sentence() for d in report.differences)
    district.refresh(campus, rebuild=True)
    assert verify(district.store, district.lake, district.settings, campus=campus).ok


def test_explain_says_when_events_came_after_the_last_refresh(
    district: District, campus: str
) -> None:
    """A published row that is behind its events is called so."""
    day = read_given(FOLDERS[0])[0]
    district.put(campus, [{**day, "id": "moodle:late"}])
    found = ask(district, "user_course_week", campus, KEYS["user_course_week"])
    assert any("run `theon metrics refresh`" in s for s in found.sentences)
