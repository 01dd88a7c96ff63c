"""Every definition against rows of its own: `cases/<metric>/<case>/given → expected.csv`."""

import csv
import io
from datetime import datetime
from pathlib import Path

import pytest

from tests.metrics.conftest import District, Row
from theon.errors import InputError
from theon.metrics.catalog import get_metric, load_catalog, parse_metric
from theon.metrics.export import export
from theon.store.scope import Scope

CASES = Path(__file__).parent / "cases"
FOLDERS = sorted(p.parent for p in CASES.glob("*/*/expected.csv"))


def read_given(folder: Path) -> list[Row]:
    with (folder / "given" / "events.csv").open(newline="") as file:
        rows = [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        row["id"] = row.pop("event_id")
        row["at"] = datetime.fromisoformat(str(row.pop("occurred_at")))
        row["anonymous"] = row["anonymous"] == "true"
    return rows


def exported(district: District, metric: str, campus: str, form: str = "csv") -> str:
    out = io.BytesIO()
    export(district.store, get_metric(metric), scope=Scope(campus), format=form, out=out)
    return out.getvalue().decode()


def test_every_metric_has_a_case() -> None:
    """A definition without a row test does not go in."""
    assert {f.parent.name for f in FOLDERS} == set(load_catalog())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_given_rows_give_the_expected_export(district: District, folder: Path) -> None:
    """The exported CSV is, to the letter, what the case expects."""
    campus = district.campus("Europe/London")
    district.put(campus, read_given(folder))
    district.refresh(campus)
    expected = (folder / "expected.csv").read_text()
    assert exported(district, folder.parent.name, campus).replace(campus, "campus") == expected


def test_user_course_week_has_the_promised_columns_in_order() -> None:
    """The export's columns are an interface: others read them by position."""
    assert [c.name for c in get_metric("user_course_week").columns] == [
        "campus", "user_id", "course_id", "week_start", "total_actions", "active_days",
        "time_spent_s", "resources_viewed", "pages_viewed", "forum_views", "forum_posts",
        "first_access", "last_access", "quizzes_attempted", "quizzes_avg_score",
        "assignments_submitted", "course_progress", "activities_completed",
    ]  # fmt: skip


def test_days_add_up_to_weeks_and_months(district: District) -> None:
    """Counts and time of the days of a month are the month's; so for weeks."""
    campus = district.campus()
    district.put(campus, read_given(FOLDERS[0]))
    district.refresh(campus)
    for column in ("total_actions", "time_spent_s", "pages_viewed", "forum_posts"):
        sums = {
            name: sum(r[column] for r in district.rows(campus, name)) for name in load_catalog()
        }
        assert len(set(sums.values())) == 1, (column, sums)


def test_ids_sort_as_numbers_where_they_are_numbers(district: District) -> None:
    """User 10 comes after user 9."""
    campus = district.campus()
    at = datetime.fromisoformat("2026-10-19T08:00:00+00:00")
    district.put(
        campus,
        [{"id": f"moodle:{u}", "at": at, "user_id": u} for u in ("10", "9", "zoë", "100")],
    )
    district.refresh(campus)
    users = [r["user_id"] for r in district.rows(campus, "user_day")]
    assert users == ["9", "10", "100", "zoë"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SELECT 1", "no header"),
        ("/* question = */ SELECT 1", "no TOML"),
        ('/* question = "q" */ SELECT 1', "lacks"),
        (
            '/* question="q"\nowner="o"\ngrain=["day","campus"]\nversion=1\n[columns]\n'
            'day={type="date",description="d"}\ncampus={type="text",description="c"} */ SELECT 1',
            "begin with the grain",
        ),
    ],
)
def test_a_wrong_definition_says_what_is_wrong(text: str, says: str) -> None:
    """Whoever adds a metric is told what the file lacks."""
    with pytest.raises(InputError, match=says):
        parse_metric("broken", text)


def test_an_unknown_metric_lists_those_there_are() -> None:
    """A misspelt name is answered with the right ones."""
    with pytest.raises(InputError, match="user_course_week"):
        get_metric("user_course_weeks")
