"""Outcomes of the real Moodle site: what SQL on its database says, by every road and mixture."""

import csv
import itertools
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from moodle_logs import Mariadb
from sqlalchemy import URL, text

from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.refresh import refresh
from theon.metrics.tables import ensure_tables
from theon.metrics.verify import verify
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]
Weeks = dict[tuple[str, str, Any], dict[str, Any]]
Ask = Callable[[str], list[tuple[Any, ...]]]

pytestmark = pytest.mark.real_data
LONDON = ZoneInfo("Europe/London")
COLUMNS = [c.name for c in load_catalog()["user_course_week"].family("outcome")]
NOTHING = {
    "quizzes_attempted": 0,
    "quizzes_avg_score": None,
    "assignments_submitted": 0,
    "course_progress": None,
    "activities_completed": 0,
}

# Understood by PostgreSQL and MariaDB alike; what a week is, is worked out below.
ATTEMPTS = """
    SELECT a.userid, q.course, a.timestart, a.quiz, a.attempt,
        CASE WHEN a.state = 'finished' THEN 100 * a.sumgrades / q.sumgrades END
    FROM mdl_quiz_attempts a JOIN mdl_quiz q ON q.id = a.quiz WHERE a.preview = 0
    ORDER BY a.attempt"""
SUBMISSIONS = """
    SELECT s.userid, a.course, s.timemodified, s.assignment
    FROM mdl_assign_submission s JOIN mdl_assign a ON a.id = s.assignment
    WHERE s.status = 'submitted' AND s.userid <> 0"""
COMPLETIONS = """
    SELECT c.userid, m.course, c.timemodified, c.coursemoduleid
    FROM mdl_course_modules_completion c JOIN mdl_course_modules m ON m.id = c.coursemoduleid
    WHERE c.completionstate IN (1, 2)"""
COMPLETABLE = """
    SELECT course, count(*) FROM mdl_course_modules
    WHERE completion > 0 AND deletioninprogress = 0 GROUP BY course"""


def said_by_moodle(ask: Ask) -> Weeks:
    """`user_course_week`'s outcome columns from the rows of Moodle's tables."""
    weeks: Weeks = defaultdict(lambda: dict(NOTHING))
    scores: dict[Any, dict[int, float | None]] = defaultdict(dict)
    for user, course, at, quiz, _, percent in ask(ATTEMPTS):
        last = scores[_key(user, course, at)]
        last[quiz] = last.get(quiz) if percent is None else float(percent)
    for key, quizzes in scores.items():
        graded = [percent for percent in quizzes.values() if percent is not None]
        weeks[key]["quizzes_attempted"] = len(quizzes)
        weeks[key]["quizzes_avg_score"] = sum(graded) / len(graded) if graded else None
    for column, query in (
        ("assignments_submitted", SUBMISSIONS),
        ("activities_completed", COMPLETIONS),
    ):
        found = defaultdict(set)
        for user, course, at, item in ask(query):
            found[_key(user, course, at)].add(item)
        for key, items in found.items():
            weeks[key][column] = len(items)
    completable = {str(course): int(count) for course, count in ask(COMPLETABLE)}
    for (user, course, week), row in weeks.items():
        if course in completable:
            done = sum(
                r["activities_completed"]
                for (u, c, w), r in weeks.items()
                if (u, c) == (user, course) and w <= week
            )
            row["course_progress"] = 100 * done / completable[course]
    return dict(weeks)


def _key(user: int, course: int, at: int) -> tuple[str, str, Any]:
    day = datetime.fromtimestamp(int(at), UTC).astimezone(LONDON).date()
    return str(user), str(course), day - timedelta(days=day.weekday())


def published(store: Store, *columns: str) -> Weeks:
    names = columns or tuple(COLUMNS)
    with store.transaction(Scope("lincoln")) as conn:
        rows = conn.execute(
            text(
                f"SELECT user_id, course_id, week_start, {', '.join(names)}"
                # A week in which something was only undone: Moodle's tables do not tell it.
                " FROM metrics.user_course_week WHERE quizzes_attempted > 0"
                " OR assignments_submitted > 0 OR activities_completed > 0"
            )
        )
        return {tuple(row[:3]): dict(zip(names, row[3:], strict=True)) for row in rows}


def close(weeks: Weeks) -> Weeks:
    """Moodle keeps five decimals, and so do we of a mean."""
    return {
        key: {c: round(v, 4) if isinstance(v, float) else v for c, v in row.items()}
        for key, row in weeks.items()
    }


@pytest.fixture(autouse=True)
def tables(store: Store) -> None:
    ensure_tables(store, load_catalog())


@pytest.fixture
def moodle_url(moodle_postgres: URL) -> str:
    return moodle_postgres.render_as_string(hide_password=False)


@pytest.fixture
def ask(moodle_url: str) -> Ask:
    def run(query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(moodle_url) as conn:
            return conn.execute(query).fetchall()  # type: ignore[arg-type]

    return run


def test_the_values_are_what_sql_on_moodle_says(
    take: Take, moodle_url: str, ask: Ask, store: Store, lake: EventLake, settings: Settings
) -> None:
    """Each week of each learner, at once and after a refresh; verified another way."""
    take(moodle_url, "moodle-db")
    expected = close(said_by_moodle(ask))
    assert len(expected) > 60
    assert any(row["quizzes_avg_score"] for row in expected.values())
    assert close(published(store)) == expected
    refresh(store, lake, settings)
    assert close(published(store)) == expected
    refresh(store, lake, settings, rebuild=True)
    assert close(published(store)) == expected
    report = verify(store, lake, settings)
    assert report.ok, [d.sentence() for d in report.differences]


@pytest.mark.service
def test_mariadb_says_the_same(take: Take, mariadb: Mariadb, ask: Ask, store: Store) -> None:
    """The other database of Moodle, read by its own SQL and by Theon."""

    def ask_mariadb(query: str) -> list[tuple[Any, ...]]:
        with mariadb.connect() as conn, conn.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    take(mariadb.url(), "moodle-db")
    expected = close(said_by_moodle(ask_mariadb))
    assert close(published(store)) == expected
    assert expected == close(said_by_moodle(ask))


@pytest.mark.parametrize("order", list(itertools.permutations(["log", "database"])))
def test_log_and_database_together_count_nothing_twice(
    take: Take,
    moodle_url: str,
    moodle_data: Path,
    ask: Ask,
    store: Store,
    order: tuple[str, ...],
) -> None:
    """The facts of both roads are about the same attempts, submissions and activities."""
    for road in (*order, *order):
        if road == "log":
            take(moodle_data / "logstore_standard_log_43.csv.gz", "moodle-logstore")
        else:
            take(moodle_url, "moodle-db")
    assert close(published(store)) == close(said_by_moodle(ask))


def test_the_log_alone_says_all_but_scores_and_progress(
    take: Take, moodle_data: Path, ask: Ask, store: Store
) -> None:
    """Moodle writes neither scores nor how much there is to complete into its log."""
    take(moodle_data / "logstore_standard_log_43.csv.gz", "moodle-logstore")
    told = ("quizzes_attempted", "assignments_submitted", "activities_completed")
    expected = {key: {c: row[c] for c in told} for key, row in said_by_moodle(ask).items()}
    assert published(store, *told) == expected


def test_a_second_reading_brings_nothing_new(
    take: Take, moodle_url: str, store: Store, lake: EventLake
) -> None:
    """Rows that did not change are known, and the cursor of each table has moved."""
    first = take(moodle_url, "moodle-db")
    before = published(store)
    again = take(moodle_url, "moodle-db")
    assert (again.new, again.rejected) == (0, 0)
    assert again.read < first.read
    assert published(store) == before


def test_outcome_rows_never_count_as_activity(take: Take, moodle_url: str) -> None:
    """They say what became of an attempt, not that somebody did something at that moment."""
    summary = take(moodle_url, "moodle-db")
    assert summary.reasons["activity"] == 1_768


def test_completions_are_those_that_moodle_exported(
    take: Take, moodle_url: str, moodle_data: Path, store: Store
) -> None:
    """Moodle's own report of course 6 marks as many activities as completed."""
    take(moodle_url, "moodle-db")
    with (moodle_data / "activity_completion.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    exported = sum(cell.startswith("Completed") for row in rows for cell in row[2:])
    with store.transaction(Scope("lincoln")) as conn:
        enrolled = conn.execute(
            text(
                "SELECT count(*) FROM theon.outcome_completions AS c WHERE completed"
                " AND course_id = '6' AND EXISTS (SELECT 1 FROM theon.outcome_enrolments AS e"
                " WHERE e.course_id = '6' AND e.user_id = c.user_id AND e.state = 'active')"
            )
        ).scalar_one()
    assert len(header) == 2 + 2 * 10
    assert enrolled == exported


def test_a_grade_changed_in_moodle_changes_the_week_of_its_attempt(
    take: Take, moodle_postgres: URL, moodle_url: str, superuser: URL, store: Store, ask: Ask
) -> None:
    """A regrade weeks later lowers the score where the attempt was made."""
    owner = superuser.set(database=moodle_postgres.database)
    take(moodle_url, "moodle-db")
    before = published(store)
    with psycopg.connect(owner.render_as_string(hide_password=False)) as site:
        site.execute("SELECT set_config('session_replication_role', 'replica', false)")
        kept = site.execute("SELECT id, sumgrades, timemodified FROM mdl_quiz_attempts").fetchall()
        site.execute(
            "UPDATE mdl_quiz_attempts SET sumgrades = sumgrades / 2, timemodified ="
            " (SELECT max(timemodified) FROM mdl_quiz_attempts) WHERE sumgrades > 0"
        )
    try:
        take(moodle_url, "moodle-db")
        assert close(published(store)) == close(said_by_moodle(ask))
        assert published(store) != before
        assert published(store).keys() == before.keys()
    finally:
        with psycopg.connect(owner.render_as_string(hide_password=False)) as site:
            site.cursor().executemany(
                "UPDATE mdl_quiz_attempts SET sumgrades = %s, timemodified = %s WHERE id = %s",
                [(grade, at, number) for number, grade, at in kept],
            )


def test_a_submission_of_a_group_counts_once_for_each_member(
    take: Take, moodle_postgres: URL, moodle_url: str, superuser: URL, store: Store, ask: Ask
) -> None:
    """Moodle writes a row of the group, without a user, and one of each member."""
    owner = superuser.set(database=moodle_postgres.database).render_as_string(hide_password=False)
    [(last, at)] = ask("SELECT max(id), max(timemodified) FROM mdl_assign_submission")
    [(assignment,)] = ask("SELECT min(id) FROM mdl_assign")
    people = ask("SELECT id FROM mdl_user WHERE id > 2 ORDER BY id LIMIT 2")
    rows = [(last + n, who) for n, who in enumerate([0, *(who for (who,) in people)], 1)]
    took = "SELECT user_id, sum(assignments_submitted) FROM metrics.user_course_week GROUP BY 1"

    def submitted() -> dict[str, int]:
        with store.transaction(Scope("lincoln")) as conn:
            return {user: int(count) for user, count in conn.execute(text(took))}

    take(moodle_url, "moodle-db")
    before = submitted()
    try:
        with psycopg.connect(owner) as site:
            site.execute("SELECT set_config('session_replication_role', 'replica', false)")
            site.cursor().executemany(
                "INSERT INTO mdl_assign_submission (id, assignment, userid, timecreated,"
                " timemodified, status, groupid, attemptnumber, latest)"
                " VALUES (%s, %s, %s, %s, %s, 'submitted', %s, 0, 1)",
                [(n, assignment, who, at, at, 0 if who else 1) for n, who in rows],
            )
        take(moodle_url, "moodle-db")
        more = {user: count - before.get(user, 0) for user, count in submitted().items()}
        assert {user: count for user, count in more.items() if count} == {
            str(who): 1 for (who,) in people
        }
        assert close(published(store)) == close(said_by_moodle(ask))
    finally:
        with psycopg.connect(owner) as site:
            site.execute("DELETE FROM mdl_assign_submission WHERE id > %s", [last])
