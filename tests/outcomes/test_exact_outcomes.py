"""X1 for outcomes: any order, batches and repetitions of events give what the words say."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.events import native_events
from tests.metrics.conftest import District, district, make_district
from tests.outcomes.in_words import Row, expected_weeks
from theon.metrics.catalog import load_catalog
from theon.metrics.tables import ensure_tables
from theon.metrics.verify import verify
from theon.outcomes import observer
from theon.outcomes.observer import observe
from theon.roster.campuses import get_campus
from theon.store.scope import Scope

__all__ = ["district", "make_district"]

LONDON = ZoneInfo("Europe/London")
START = datetime(2026, 10, 23, 12, 0, tzinfo=UTC)  # clocks go back on the Sunday
OUTCOMES = (
    "quizzes_attempted", "quizzes_avg_score", "assignments_submitted", "course_progress",
    "activities_completed",
)  # fmt: skip

points = st.sampled_from([0, 1, 2.5, 4])
attempt = st.fixed_dictionaries(
    {"assessment_id": st.sampled_from(["q1", "q2"]), "attempt": st.sampled_from([1, 2, 10])}
)
scored = st.builds(
    lambda a, score, top: {**a, "score": score, "max_score": top},
    attempt, points, st.sampled_from([4, 5, None]),
)  # fmt: skip
submission = st.fixed_dictionaries({"assignment_id": st.sampled_from(["a1", "a2"])})
activity = st.fixed_dictionaries({"activity_id": st.sampled_from(["x", "y", "z"])})
structure = st.one_of(
    st.fixed_dictionaries({"completable": st.sampled_from([0, 2, 3])}),
    st.sampled_from([["x"], ["x", "y", "z"], ["y", "w"]]).map(
        lambda ids: {"completable": len(ids), "activities": ids}
    ),
)
said = st.one_of(
    st.tuples(st.just("AssessmentStarted"), attempt),
    st.tuples(st.sampled_from(["AssessmentCompleted", "AssessmentGraded"]), scored),
    st.tuples(st.just("AssessmentRemoved"), attempt),
    st.tuples(
        st.sampled_from(["SubmissionCreated", "SubmissionReverted", "SubmissionRemoved"]),
        submission,
    ),
    st.tuples(st.sampled_from(["ActivityCompleted", "ActivityUncompleted"]), activity),
    st.tuples(st.just("CourseStructure"), structure),
)
# Many at the same instant, and around the beginning of a week.
hours = st.one_of(st.sampled_from([0, 1, 59, 60, 61, 62]), st.integers(0, 24 * 20))
events = st.lists(
    st.tuples(said, hours, st.sampled_from(["5", "6"]), st.sampled_from(["6", "7"])),
    min_size=1,
    max_size=30,
)
relaxed = settings(
    max_examples=25,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _rows(drawn: list[Any]) -> list[Row]:
    return [
        {
            "event_id": f"e:{n}",
            "event_name": name,
            "other": other,
            "occurred_at": START + timedelta(hours=hour),
            "user_id": None if name == "CourseStructure" else user,
            "course_id": course,
        }
        for n, ((name, other), hour, user, course) in enumerate(drawn)
    ]


def see(district: District, campus: str, rows: list[Row]) -> None:
    """Observe events in a transaction of their own."""
    found = get_campus(district.store, campus)
    with district.store.transaction(Scope(campus)) as conn:
        observe(conn, found.id, found.timezone, native_events("", rows))


def put(district: District, campus: str, rows: list[Row]) -> None:
    """Append events to the lake, without telling the observers."""
    table = native_events("", rows)
    path = district.folder / f"native-{next(district.numbers)}.parquet"
    pq.write_table(table, path)
    district.lake.append(path, campus)


def outcomes(district: District, campus: str) -> dict[tuple[str, str, Any], tuple[Any, ...]]:
    return {
        (r["user_id"], r["course_id"], r["week_start"]): tuple(r[c] for c in OUTCOMES)
        for r in district.rows(campus, "user_course_week")
        if any(r[c] is not None for c in OUTCOMES)
    }


@relaxed
@given(drawn=events, data=st.data())
def test_any_order_batches_and_repetitions_end_as_the_words_say(
    make_district: Callable[[], District], drawn: list[Any], data: st.DataObject
) -> None:
    """Shuffled, repeated and cut into batches: what the descriptions of the columns say."""
    district = make_district()
    ensure_tables(district.store, load_catalog())
    campus = district.campus()
    rows = _rows(drawn)
    again = data.draw(st.lists(st.sampled_from(rows), max_size=10))
    shuffled = data.draw(st.permutations(rows + again))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(shuffled)), max_size=5)))
    for low, high in zip([0, *cuts], [*cuts, len(shuffled)], strict=True):
        # A few facts and thousands go in by different statements.
        with patch.object(observer, "FEW_EVENTS", data.draw(st.sampled_from([0, 1_000]))):
            see(district, campus, shuffled[low:high])
    expected = expected_weeks(rows, LONDON)
    assert outcomes(district, campus) == expected

    clean = district.campus()
    put(district, clean, rows)
    district.refresh(clean)
    assert outcomes(district, clean) == expected
    report = verify(district.store, district.lake, district.settings, campus=clean)
    assert report.ok, [d.sentence() for d in report.differences]


@settings(relaxed, max_examples=4)
@given(drawn=st.lists(events, min_size=4, max_size=8), data=st.data())
def test_observers_and_refreshes_at_the_same_time_lose_nothing(
    make_district: Callable[[], District], drawn: list[Any], data: st.DataObject
) -> None:
    """Real threads, real transactions: neither road overwrites the other's columns, or its own."""
    district = make_district()
    ensure_tables(district.store, load_catalog())
    campus = district.campus()
    batches = []
    for number, batch in enumerate(drawn):
        rows = [{**row, "event_id": f"{number}:{row['event_id']}"} for row in _rows(batch)]
        batches.append(rows)
    everything = [row for rows in batches for row in rows]
    activity = [
        {"id": f"moodle:{n}", "at": START + timedelta(hours=n % 90), "user_id": str(5 + n % 2)}
        for n in range(60)
    ]
    put(district, campus, everything)
    start = threading.Barrier(len(batches) + 2)

    def observer(rows: list[Row]) -> None:
        start.wait()
        for low in range(0, len(rows), 3):
            see(district, campus, rows[low : low + 3])

    def refresher(rebuild: bool) -> None:
        start.wait()
        for low in range(0, 60, 20):
            if not rebuild:
                district.put(campus, activity[low : low + 20])
            district.refresh(campus, rebuild=rebuild)

    with ThreadPoolExecutor(len(batches) + 2) as pool:
        work = [pool.submit(observer, rows) for rows in batches]
        work += [pool.submit(refresher, rebuild) for rebuild in (False, True)]
        for one in work:
            one.result()
    district.refresh(campus)
    assert outcomes(district, campus) == expected_weeks(everything, LONDON)
    report = verify(district.store, district.lake, district.settings, campus=campus)
    assert report.ok, [d.sentence() for d in report.differences]
    published = district.rows(campus, "user_course_week")
    assert sum(r["total_actions"] or 0 for r in published) >= len(activity)
