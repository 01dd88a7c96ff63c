"""D4: outcomes are known at once, corrected by what comes later, and computed again if need be."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import text

from tests.events import native_events
from tests.metrics.conftest import District, district, make_district
from tests.outcomes.test_exact_outcomes import outcomes, put, see
from theon.events.outcomes import load_rules, parse_rules
from theon.lake.engine import open_engine
from theon.metrics.catalog import get_metric, load_catalog
from theon.metrics.explain import explain
from theon.metrics.outcomes import lake_facts
from theon.metrics.tables import ensure_tables
from theon.metrics.verify import verify
from theon.outcomes import columns
from theon.outcomes.observer import observe
from theon.roster.campuses import get_campus
from theon.store.scope import Scope

__all__ = ["district", "make_district"]

MONDAY = date(2026, 10, 19)
WEEK = ("5", "6", MONDAY)
ATTEMPT = {"assessment_id": "q", "attempt": 1}
DONE = {
    "event_id": "done",
    "event_name": "AssessmentCompleted",
    "other": {**ATTEMPT, "score": 8, "max_score": 10},
}


def row(event_id: str, name: str, other: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"event_id": event_id, "event_name": name, "other": other, **more}


@pytest.fixture
def campus(district: District) -> str:
    ensure_tables(district.store, load_catalog())
    return district.campus()


def test_a_grade_lowered_later_lowers_the_week_of_the_attempt(
    district: District, campus: str
) -> None:
    """Whether the correction comes after what it corrects, or before."""
    lowered = row(
        "regrade",
        "AssessmentGraded",
        {**ATTEMPT, "score": 6, "max_score": 10},
        occurred_at=datetime(2026, 11, 20, tzinfo=UTC),
    )
    other = district.campus()
    for slug, rows in ((campus, [DONE, lowered]), (other, [lowered, DONE])):
        for one in rows:
            see(district, slug, [one])
        assert outcomes(district, slug) == {WEEK: (1, 60.0, 0, None, 0)}


def test_the_last_graded_attempt_of_each_quiz_counts(district: District, campus: str) -> None:
    """Attempt 10 is after attempt 9, and one that is not graded yet does not hide one that is."""
    see(district, campus, [
        row("a", "AssessmentCompleted", {**ATTEMPT, "attempt": 9, "score": 1, "max_score": 10}),
        row("b", "AssessmentCompleted", {**ATTEMPT, "attempt": 10, "score": 7, "max_score": 10}),
        row("c", "AssessmentStarted", {**ATTEMPT, "attempt": 11}),
        row("d", "AssessmentCompleted", {"assessment_id": "other", "score": 1, "max_score": 4}),
    ])  # fmt: skip
    assert outcomes(district, campus) == {WEEK: (2, (70 + 25) / 2, 0, None, 0)}


def test_points_beyond_all_measure_are_none(district: District, campus: str) -> None:
    """Percent of them would fit into no column, and so keep out all that came with them."""
    pairs = ((1e308, 1e-308), (1e-308, 1e308), (1e12, 1e-12))
    too_large, too_small, most = (
        row(q, "AssessmentCompleted", {"assessment_id": q, "score": score, "max_score": of})
        for q, (score, of) in zip("abc", pairs, strict=True)
    )
    see(district, campus, [DONE, too_large, too_small])
    assert outcomes(district, campus) == {WEEK: (3, 80.0, 0, None, 0)}
    see(district, campus, [most])
    assert outcomes(district, campus) == {WEEK: (4, (80.0 + 1e26) / 2, 0, None, 0)}


def test_what_is_removed_leaves_no_row(district: District, campus: str) -> None:
    """A deleted attempt and a submission taken away were all there was of the week."""
    see(district, campus, [DONE, row("s", "SubmissionCreated", {"assignment_id": "a"})])
    assert outcomes(district, campus) == {WEEK: (1, 80.0, 1, None, 0)}
    later = {"occurred_at": datetime(2026, 10, 22, tzinfo=UTC)}
    see(district, campus, [
        row("x", "AssessmentRemoved", ATTEMPT, **later),
        row("y", "SubmissionRemoved", {"assignment_id": "a"}, **later),
    ])  # fmt: skip
    assert outcomes(district, campus) == {}


def test_another_structure_moves_the_progress_of_all_learners(
    district: District, campus: str
) -> None:
    """Activities that can no longer be completed do not count, for anybody."""
    for user in ("5", "7"):
        for item in ("x", "y"):
            done = row(f"{user}{item}", "ActivityCompleted", {"activity_id": item}, user_id=user)
            see(district, campus, [done])
    structure = {"completable": 4, "activities": ["x", "y", "z", "w"]}
    see(district, campus, [row("s1", "CourseStructure", structure, user_id=None)])
    assert {o[3] for o in outcomes(district, campus).values()} == {50.0}
    fewer = row("s2", "CourseStructure", {"completable": 1, "activities": ["x"]}, user_id=None)
    see(district, campus, [fewer])
    assert {o[3] for o in outcomes(district, campus).values()} == {100.0}


def test_a_transaction_that_fails_leaves_nothing(district: District, campus: str) -> None:
    """Facts and columns are the caller's transaction, and go with it."""
    found = get_campus(district.store, campus)
    with district.store.transaction(Scope(campus)) as conn:
        seen = observe(conn, found.id, found.timezone, native_events("", [DONE]))
        assert (seen.facts, seen.learners, seen.rows) == (1, 1, 1)
        transaction = conn.get_transaction()
        assert transaction is not None
        transaction.rollback()
    assert outcomes(district, campus) == {}
    see(district, campus, [DONE])
    assert outcomes(district, campus) == {WEEK: (1, 80.0, 0, None, 0)}


def test_other_outcomes_are_kept_as_present_states(district: District, campus: str) -> None:
    """Enrolments, attendance, rewards, grades and completed courses, each by its last word."""
    later = {"occurred_at": datetime(2026, 10, 22, tzinfo=UTC)}
    see(district, campus, [
        row("6", "UserUnenrolled", {}, **later),
        row("1", "UserEnrolled", {}),
        row("2", "AttendanceRecorded", {"session_id": "s", "status": "absent"}),
        row("3", "AttendanceRecorded", {"session_id": "s", "status": "excused"}, **later),
        row("4", "RewardGranted", {"reward_id": "r", "points": 10}, course_id=None),
        row("5", "RewardRevoked", {"reward_id": "r"}, course_id=None, **later),
        row("7", "UserCompletedCourse", {}),
        row("8", "GradeGiven", {"grade_item_id": "g", "score": 3, "max_score": 5}),
    ])  # fmt: skip
    found = {}
    with district.store.transaction(Scope(campus)) as conn:
        for name in ("enrolments", "attendance", "rewards", "course_completions", "grades"):
            states = conn.execute(text(f"SELECT state FROM theon.outcome_{name}")).scalars()
            found[name] = list(states)
        assert conn.execute(text("SELECT points FROM theon.outcome_rewards")).scalars().all() == [
            10
        ]
    assert found == {
        "enrolments": ["ended"],
        "attendance": ["excused"],
        "rewards": ["revoked"],
        "course_completions": ["complete"],
        "grades": ["graded"],
    }


def test_a_scope_sees_only_its_own_outcomes(district: District, campus: str) -> None:
    """Row-level security holds for facts, states and the view of the metric."""
    other = district.campus()
    see(district, campus, [DONE])
    with district.store.transaction(Scope(other)) as conn:
        for table in ("theon.outcome_facts", "theon.outcome_attempts", "metrics.user_course_week"):
            assert conn.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 0


def test_changed_rules_derive_the_facts_again_from_the_lake(
    district: District, campus: str
) -> None:
    """What an event says is data, too; events that are not in the lake yet keep their facts."""
    put(district, campus, [DONE, row("view", "QuizPeeked", {**ATTEMPT, "attempt": 5})])
    district.refresh(campus)
    waiting = row("waiting", "AssessmentStarted", {"assessment_id": "new"})
    see(district, campus, [waiting])
    assert outcomes(district, campus) == {WEEK: (2, 80.0, 0, None, 0)}
    peek = (
        '[[rule]]\nevent_name = ["QuizPeeked"]\nkind = "attempt"\nstate = "started"\n'
        'item = ["$.assessment_id"]\nattempt = ["$.attempt"]\n'
    )
    district.refresh(campus, outcome_rules=parse_rules(peek))
    assert outcomes(district, campus) == {WEEK: (2, None, 0, None, 0)}
    district.refresh(campus)
    assert load_rules().hash != parse_rules(peek).hash
    assert outcomes(district, campus) == {WEEK: (2, 80.0, 0, None, 0)}


def test_a_changed_definition_rewrites_history_and_what_comes_after(
    district: District, campus: str
) -> None:
    """The query of outcome columns is part of the metric's one file, like that of activity."""
    put(district, campus, [DONE])
    district.refresh(campus)
    old = get_metric("user_course_week")
    sql = old.outcome_sql.replace("coalesce(quizzes, 0)", "7 + coalesce(quizzes, 0)")
    catalog = {"user_course_week": replace(old, outcome_sql=sql, hash="seven more")}
    district.refresh(campus, catalog=catalog)
    assert outcomes(district, campus)[WEEK][0] == 8
    see(district, campus, [row("more", "AssessmentStarted", {"assessment_id": "new"})])
    assert outcomes(district, campus)[WEEK][0] == 9
    district.refresh(campus)
    assert outcomes(district, campus)[WEEK][0] == 2


def test_a_raised_version_has_its_outcomes_before_readers_get_it(
    district: District, campus: str
) -> None:
    """Until every campus is in the new table observers write both; then the old one is gone."""
    put(district, campus, [DONE])
    district.refresh(campus)
    other = district.campus()
    put(district, other, [DONE])
    district.refresh(other)
    old = get_metric("user_course_week")
    new = replace(old, version=old.version + 1, hash="next")
    district.refresh(campus, catalog={new.name: new})
    see(district, other, [row("more", "AssessmentStarted", {"assessment_id": "new"})])
    assert outcomes(district, other) == {WEEK: (2, 80.0, 0, None, 0)}
    district.refresh(other, catalog={new.name: new})
    assert outcomes(district, other) == {WEEK: (2, 80.0, 0, None, 0)}
    assert outcomes(district, campus) == {WEEK: (1, 80.0, 0, None, 0)}
    with district.store.transaction(Scope(campus)) as conn:
        versions = conn.execute(text("SELECT version FROM theon.outcome_columns")).scalars()
        assert list(versions) == [new.version]


def test_another_time_zone_moves_outcomes_into_other_weeks(district: District, campus: str) -> None:
    """Sunday evening in London is Monday in Tokyo."""
    put(district, campus, [{**DONE, "occurred_at": datetime(2026, 10, 25, 20, 0, tzinfo=UTC)}])
    district.refresh(campus)
    assert set(outcomes(district, campus)) == {WEEK}
    with district.store.transaction(Scope.district()) as conn:
        conn.execute(
            text("UPDATE theon.campuses SET timezone = 'Asia/Tokyo' WHERE slug = :slug"),
            {"slug": campus},
        )
    district.refresh(campus)
    assert set(outcomes(district, campus)) == {("5", "6", date(2026, 10, 26))}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("UPDATE {} SET quizzes_avg_score = 81", "quizzes_avg_score of"),
        ("DELETE FROM {}", "is missing"),
        ("UPDATE {} SET user_id = '99'", "should not be there"),
    ],
)
def test_verify_names_an_outcome_that_is_not_right_and_a_rebuild_mends_it(
    district: District, campus: str, damage: str, says: str
) -> None:
    """Outcome columns are compared with the lake's events, like all others."""
    put(district, campus, [DONE])
    district.refresh(campus)
    with district.store.transaction(Scope(campus)) as conn:
        conn.execute(text(damage.format(get_metric("user_course_week").outcome_table)))
    report = verify(district.store, district.lake, district.settings, campus=campus)
    assert any(says in d.sentence() for d in report.differences)
    district.refresh(campus, rebuild=True)
    assert verify(district.store, district.lake, district.settings, campus=campus).ok


def test_explain_shows_the_facts_behind_the_outcomes(district: District, campus: str) -> None:
    """Every word on the learner and the course up to the end of the week, and what it comes to."""
    put(district, campus, [DONE, row("s", "SubmissionCreated", {"assignment_id": "a"})])
    district.refresh(campus)
    found = explain(
        district.store,
        district.lake,
        district.settings,
        get_metric("user_course_week"),
        campus=campus,
        key={"user_id": "5", "course_id": "6", "week_start": MONDAY.isoformat()},
    )
    assert found.facts["event_id"].to_pylist() == ["s", "done"]
    assert found.totals["quizzes_avg_score"] == found.value["quizzes_avg_score"] == 80.0
    assert "exactly what these events give" in found.sentences[-1]


def test_long_answers_take_no_more_memory_than_there_is(district: District, campus: str) -> None:
    """Whole pages in `other`, and one of a megabyte; the engine may hold 200 MB."""
    long = {"answer": "a word " * 700, "longer": {"words": ["x"] * 100}}
    done = [
        row(f"e{n}", "AssessmentCompleted", {**ATTEMPT, **long, "score": 8, "max_score": 10})
        for n in range(6_000)
    ]
    longest = row("m", "SubmissionCreated", {"assignment_id": "a", "text": "x" * 1_000_000})
    put(district, campus, [*done, longest])
    small = district.settings.model_copy(update={"engine_memory_mb": 200, "engine_threads": 2})
    with open_engine(small) as engine:
        parts = list(lake_facts(engine, district.lake.files(campus), load_rules()))
    kinds = Counter(kind for part in parts for kind in part["kind"].to_pylist())
    assert kinds == {"attempt": 6_000, "submission": 1}


def test_a_learner_is_found_by_their_key_before_anything_is_known_of_the_tables(
    district: District, campus: str
) -> None:
    """Else each would be looked for among all of the campus, as long as no statistics are made."""
    found = get_campus(district.store, campus)
    rows = [
        row(f"e{n}", "SubmissionCreated", {"assignment_id": f"a{n % 3}"}, user_id=f"{n // 3}")
        for n in range(6_000)
    ]
    with district.store.transaction(Scope(campus)) as conn:
        observe(conn, found.id, found.timezone, native_events("", rows))
        [statement] = conn.execute(text("SELECT statement FROM theon.outcome_columns")).scalars()
        given = {"campus": found.id, "timezone": found.timezone, "everybody": False}
        some = {"users": [str(n) for n in range(500)], "courses": ["6"] * 500}
        conn.execute(columns._PLAN)
        plan = conn.execute(text(f"EXPLAIN {statement}"), given | some).scalars().all()
    looked = [line for line in plan if "Scan using" in line]
    assert any("outcome_facts_learner" in line for line in looked)
    assert any("_outcomes_pkey" in line for line in looked)
    assert not any("of_period" in line for line in looked)
