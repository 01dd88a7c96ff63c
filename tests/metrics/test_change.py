"""X4 and D3: a changed definition recomputes history; outcomes are not the refresh's to touch."""

import shutil
from dataclasses import replace

import pytest
from sqlalchemy import text

from tests.events import native_events
from tests.metrics.conftest import District
from tests.metrics.test_definitions import FOLDERS, read_given
from theon.errors import ConflictError
from theon.events.activity import load_rules, parse_rules
from theon.metrics.catalog import Column, get_metric, load_catalog
from theon.metrics.refresh import refresh
from theon.outcomes.observer import observe
from theon.store.scope import Scope


@pytest.fixture
def campus(district: District) -> str:
    slug = district.campus("Europe/London")
    district.put(slug, read_given(FOLDERS[0]))
    district.refresh(slug)
    return slug


def _weeks(district: District, campus: str, columns: str = "*") -> list[tuple[object, ...]]:
    query = f"SELECT {columns} FROM metrics.user_course_week ORDER BY user_id, week_start"
    with district.store.transaction(Scope(campus)) as conn:
        found = conn.execute(text(query))
        return [tuple(row) for row in found]


def test_a_changed_query_recomputes_that_metric_and_reads_no_event(
    district: District, campus: str
) -> None:
    """Twice the views in the file: twice the views published, from the same days."""
    old = get_metric("campus_week")
    sql = old.sql.replace("sum(pages_viewed)", "sum(2 * pages_viewed)")
    catalog = {**load_catalog(), "campus_week": replace(old, sql=sql, hash="changed")}
    before = [r["pages_viewed"] for r in district.rows(campus, "campus_week")]
    summary = district.refresh(campus, catalog=catalog)
    assert summary.events == 0
    assert [k for k, v in summary.rows_written.items() if v] == ["campus_week"]
    assert [r["pages_viewed"] for r in district.rows(campus, "campus_week")] == [
        2 * n for n in before
    ]


def test_a_raised_version_fills_its_own_table_and_then_takes_the_view(
    district: District, campus: str
) -> None:
    """Readers see the old version whole until the new one is whole."""
    old = get_metric("campus_week")
    extra = Column("days_seen", "integer", "days", "Days.", "activity")
    new = replace(
        old,
        version=2,
        hash="v2",
        columns=(*old.columns, extra),
        sql=old.sql.replace("FROM days", ", count(DISTINCT day) AS days_seen FROM days"),
    )
    catalog = {**load_catalog(), "campus_week": new}

    def die(step: str) -> None:
        if step == "before commit":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        district.refresh(campus, catalog=catalog, checkpoint=die)
    assert len(district.rows(campus, "campus_week")) == 2
    # All campuses, among them one without events and the district, which never have any rows.
    district.campus()
    refresh(district.store, district.lake, district.settings, catalog=catalog)
    with district.store.transaction(Scope(campus)) as conn:
        seen = conn.execute(
            text("SELECT days_seen FROM metrics.campus_week ORDER BY week_start")
        ).scalars()
        assert list(seen) == [3, 3]
        tables = conn.execute(
            text("SELECT tablename FROM pg_tables WHERE tablename LIKE 'campus_week%'")
        ).scalars()
        assert list(tables) == ["campus_week_v2"]


def test_changed_rules_compute_the_cells_again(district: District, campus: str) -> None:
    """What counts is data: with quizzes let in, they count."""
    rules = load_rules()
    open_rules = replace(rules, exclusions=rules.exclusions[:-1], hash="open")
    before = sum(r["total_actions"] for r in district.rows(campus, "campus_week"))
    district.refresh(campus, rules=open_rules)
    after = sum(r["total_actions"] for r in district.rows(campus, "campus_week"))
    assert after == before + 2


def test_another_time_zone_moves_the_days_and_reads_no_event(
    district: District, campus: str
) -> None:
    """A corrected time zone cuts the same cells into other days."""
    with district.store.transaction(Scope.district()) as conn:
        conn.execute(
            text("UPDATE theon.campuses SET timezone = 'Asia/Tokyo' WHERE slug = :slug"),
            {"slug": campus},
        )
    assert district.refresh(campus).events == 0
    moved = district.all_rows(campus)
    district.refresh(campus, rebuild=True)
    assert district.all_rows(campus) == moved


def test_the_refresh_never_touches_outcome_columns(district: District, campus: str) -> None:
    """Outcomes that were observed stand beside the activity, and where there is none, alone."""
    with district.store.transaction(Scope(campus)) as conn:
        who = conn.execute(
            text("SELECT id, timezone FROM theon.campuses WHERE slug = :slug"), {"slug": campus}
        ).one()
        told = [
            {"event_id": "a", "user_id": "5", "other": {"assessment_id": "q", "attempt": 1}},
            {"event_id": "b", "user_id": "88", "other": {"assessment_id": "q", "attempt": 1}},
        ]
        observe(conn, who.id, who.timezone, native_events("AssessmentStarted", told))
    rows = read_given(FOLDERS[0])
    district.put(campus, [{**rows[0], "id": "moodle:more"}])
    district.refresh(campus)
    district.refresh(campus)
    found = _weeks(district, campus, "user_id, total_actions, quizzes_attempted")
    mine = [row[1:] for row in found if row[0] == "5"]
    assert sum(n or 0 for n, _ in mine) == 10
    assert sorted(quizzes for _, quizzes in mine if quizzes is not None) == [1]
    assert [row[1:] for row in found if row[0] == "88"] == [(None, 1)]


def test_a_refresh_that_was_overtaken_begins_again(district: District, campus: str) -> None:
    """A second worker that commits in between costs the first its work, not the numbers."""
    rows = read_given(FOLDERS[0])
    district.put(campus, [{**rows[0], "id": "moodle:a"}])
    overtaken = []

    def other_worker(step: str) -> None:
        if step == "cells written" and not overtaken:
            overtaken.append(step)
            district.refresh(campus)

    district.refresh(campus, checkpoint=other_worker)
    published = district.all_rows(campus)
    district.refresh(campus, rebuild=True)
    assert district.all_rows(campus) == published


def test_a_refresh_that_is_always_overtaken_gives_up_in_words(
    district: District, campus: str
) -> None:
    """It ends, says why, and keeps nothing of its own."""

    def other_worker(step: str) -> None:
        if step == "days written":
            district.refresh(campus, rebuild=True)

    with pytest.raises(ConflictError, match="kept refreshing the same campus"):
        district.refresh(campus, rebuild=True, checkpoint=other_worker)


@pytest.mark.parametrize("dataset", ["cells", "days", ""])
def test_lost_derived_files_are_computed_again(
    district: District, campus: str, dataset: str
) -> None:
    """Cells and days are no source of truth: without them a refresh makes them anew."""
    before = district.all_rows(campus)
    shutil.rmtree(district.settings.home_dir / "derived" / campus / dataset)
    rows = read_given(FOLDERS[0])
    district.put(campus, [{**rows[0], "id": "moodle:late", "user_id": "12"}])
    district.refresh(campus)
    after = district.all_rows(campus)
    assert after != before
    district.refresh(campus, rebuild=True)
    assert district.all_rows(campus) == after


def test_an_unknown_condition_in_the_rules_is_refused() -> None:
    """A typing error in the rules file must not silently count nothing."""
    with pytest.raises(Exception, match="unknown condition 'componnent'"):
        parse_rules('measures = {}\n[[excluded]]\nreason = "r"\nany = [{ componnent = ["x"] }]')
