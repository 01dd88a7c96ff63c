"""From a source to the lake: counted once whatever happens, and every run in the book."""

import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from moodle_logs import lake_rows, log_row, write_log
from sqlalchemy import text

from theon.errors import ConflictError, InputError
from theon.intake import pipeline
from theon.intake.pipeline import without_password
from theon.intake.runs import IngestSummary, Run
from theon.lake.table import EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.tables import ensure_tables
from theon.outcomes.observer import observe
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three good rows and a bad one."""
    rows = [log_row(1), log_row(2), log_row(3, userid="x"), log_row(4, origin="cli")]
    return write_log(tmp_path / "log.csv", rows)


def runs(store: Store, campus: str) -> list[dict[str, object]]:
    with store.transaction(Scope(campus)) as conn:
        found = conn.execute(text("SELECT * FROM theon.intake_runs ORDER BY id"))
        return [dict(row) for row in found.mappings()]


def test_a_run_counts_what_was_read_new_known_rejected_and_why_rows_do_not_count(
    take: Take, log: Path
) -> None:
    summary = take(log, "moodle-logstore")
    assert (summary.read, summary.new, summary.known, summary.rejected) == (4, 3, 0, 1)
    assert summary.reasons == {"activity": 2, "origin": 1}
    assert (summary.state, summary.exit_status) == ("completed_with_rejects", 3)


def test_a_run_without_bad_rows_ends_with_status_0(take: Take, tmp_path: Path) -> None:
    summary = take(write_log(tmp_path / "log.csv", [log_row(1)]), "moodle-logstore")
    assert (summary.state, summary.exit_status, summary.rejects_file) == ("completed", 0, None)


def test_the_same_file_again_is_known_and_the_mended_row_is_new(
    take: Take, log: Path, lake: EventLake
) -> None:
    take(log, "moodle-logstore")
    again = take(log, "moodle-logstore")
    assert (again.new, again.known, again.rejected) == (0, 3, 1)
    log.write_text(log.read_text().replace(",x,", ",115,"))
    mended = take(log, "moodle-logstore")
    assert (mended.new, mended.known, mended.exit_status) == (1, 3, 0)
    assert lake_rows(lake, "SELECT event_id FROM events ORDER BY 1") == [
        ("moodle:1",),
        ("moodle:2",),
        ("moodle:3",),
        ("moodle:4",),
    ]


def test_rejects_are_in_the_book_and_in_a_file_with_line_reason_and_original(
    take: Take, log: Path, store: Store, lincoln: str
) -> None:
    summary = take(log, "moodle-logstore")
    original = log.read_text().splitlines()[3]
    with store.transaction(Scope(lincoln)) as conn:
        rows = conn.execute(
            text("SELECT line_number, reason, detail, original, run_id FROM theon.intake_rejects")
        ).all()
    expected = (4, "userid is not a whole number", "x", original)
    assert [tuple(row) for row in rows] == [(*expected, summary.run_id)]
    assert summary.rejects_file is not None
    with summary.rejects_file.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {
                "line_number": "4",
                "reason": "userid is not a whole number",
                "detail": "x",
                "original": original,
            }
        ]


def test_a_file_that_is_refused_is_a_failed_run_with_its_message(
    take: Take, tmp_path: Path, store: Store, lincoln: str
) -> None:
    path = tmp_path / "page.csv"
    path.write_text("<!DOCTYPE html>")
    with pytest.raises(InputError):
        take(path, "moodle-logstore")
    (run,) = runs(store, lincoln)
    assert run["state"] == "failed"
    assert "login page" in str(run["error"])


class Crash(BaseException):
    """Ends the process at this point."""


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (pipeline, "count_reasons"),
        (EventLake, "append"),
        (Run, "record"),
        (Run, "_list_rejects"),
        (Run, "finish"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_interrupted_at_any_step_and_run_again_nothing_is_lost_or_counted_twice(
    take: Take,
    log: Path,
    lake: EventLake,
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    what: str,
    before: bool,
) -> None:
    """Before and after each step, the commit to the lake included."""
    step = getattr(where, what)

    def crash(*args: object, **kwargs: object) -> object:
        if not before:
            step(*args, **kwargs)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(where, what, crash)
        with pytest.raises(Crash):
            take(log, "moodle-logstore")
    summary = take(log, "moodle-logstore")
    assert (summary.new + summary.known, summary.rejected) == (3, 1)
    assert lake_rows(lake, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(3, 3)]


def test_a_run_that_never_ended_is_marked_when_the_source_is_read_again(
    take: Take, log: Path, store: Store, lincoln: str, lake: EventLake
) -> None:
    """After `kill -9` nothing could say so at the time, or remove what was staged."""
    first = take(log, "moodle-logstore")
    orphan = lake.path.parents[1] / "tmp" / f"intake-{first.run_id}"
    orphan.mkdir(parents=True)
    with store.transaction(Scope(lincoln)) as conn:
        conn.execute(text("UPDATE theon.intake_runs SET state = 'running', finished_at = NULL"))
    take(log, "moodle-logstore")
    assert [run["state"] for run in runs(store, lincoln)] == [
        "interrupted",
        "completed_with_rejects",
    ]
    assert not orphan.exists()


def test_a_source_that_is_being_read_is_not_read_by_a_second_process(
    take: Take, log: Path, lake: EventLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hourly reading may find the one before still at work; other sources go on."""
    append = EventLake.append
    seen: list[type[Exception]] = []

    def append_while_others_come(*args: object, **kwargs: object) -> object:
        monkeypatch.undo()
        with pytest.raises(ConflictError, match="another process is reading") as caught:
            take(log, "moodle-logstore")
        seen.append(caught.type)
        assert take(log.rename(log.with_name("same.csv")), "moodle-logstore").new == 3
        return append(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(EventLake, "append", append_while_others_come)
    summary = take(log, "moodle-logstore")
    assert seen == [ConflictError]
    assert (summary.new, summary.known) == (0, 3)


def test_no_staged_file_is_left_behind(take: Take, log: Path, lake: EventLake) -> None:
    take(log, "moodle-logstore")
    tmp = lake.path.parents[1] / "tmp"
    assert [p for p in tmp.rglob("*") if "intake" in str(p.relative_to(tmp))] == []


def test_an_unknown_campus_or_format_is_refused(take: Take, log: Path) -> None:
    with pytest.raises(InputError, match="no format"):
        take(log, "csv")
    with pytest.raises(InputError, match="belongs to a report"):
        take(log, "moodle-logstore", course="6")


@pytest.mark.parametrize(
    ("location", "stored"),
    [
        ("mysql://u:secret@host/moodle?password=secret", "mysql://u:***@host/moodle"),
        ("postgresql://u@host:5/moodle", "postgresql://u@host:5/moodle"),
        ("postgresql://u:secret@host:port/moodle", "postgresql://…"),
    ],
)
def test_passwords_are_never_written_down(location: str, stored: str) -> None:
    assert without_password(location) == stored


@pytest.mark.real_data
def test_the_log_then_the_reports_of_the_real_site_by_reason(take: Take, moodle_data: Path) -> None:
    """How many rows count on each road; the guide quotes these numbers."""
    log = take(moodle_data / "logstore_standard_log_43.csv.gz", "moodle-logstore")
    course = take(moodle_data / "report_log_course.csv", "moodle-report", course="6")
    site = take(moodle_data / "report_log_site.csv", "moodle-report")
    assert (log.new, course.new, site.new) == (5_798, 3_367, 5_790)
    assert log.reasons == {
        "activity": 1_768,
        "origin": 1_512,
        "left to the observers": 1_069,
        "no course": 886,
        "no person": 328,
        "anonymous": 207,
        "logged in as somebody else": 28,
    }
    assert course.reasons == {
        "activity": 1_778,
        "left to the observers": 1_234,
        "origin": 226,
        "no person": 105,
        "logged in as somebody else": 24,
    }
    assert site.reasons == {
        "no course": 3_502,
        "origin": 1_446,
        "no person": 510,
        "activity": 296,
        "logged in as somebody else": 28,
        "left to the observers": 8,
    }


def test_a_run_that_dies_between_lake_and_observers_is_made_whole_by_the_next(
    take: Take,
    tmp_path: Path,
    store: Store,
    lake: EventLake,
    lincoln: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its events are known then; what they say of outcomes was not."""
    ensure_tables(store, load_catalog())
    row = log_row(
        1,
        eventname="\\mod_quiz\\event\\attempt_started",
        component="mod_quiz",
        objectid="45",
        contextinstanceid="152",
    )
    log = write_log(tmp_path / "log.csv", [row])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "observe", die)
        with pytest.raises(KeyboardInterrupt):
            take(log, "moodle-logstore")
    assert lake_rows(lake, "SELECT count(*) FROM events") == [(1,)]
    again = take(log, "moodle-logstore")
    assert (again.new, again.known) == (0, 1)
    with store.transaction(Scope(lincoln)) as conn:
        attempted = conn.execute(text("SELECT quizzes_attempted FROM metrics.user_course_week"))
        assert list(attempted.scalars()) == [1]


def test_outcomes_of_a_learner_in_a_course_are_observed_together(
    take: Take, tmp_path: Path, store: Store, lincoln: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long log is sorted part by part; nothing of it is left out or seen twice."""
    ensure_tables(store, load_catalog())
    monkeypatch.setattr(pipeline, "SORTED_EVENTS", 50)
    monkeypatch.setattr(pipeline, "OBSERVED_EVENTS", 20)
    seen: list[list[tuple[str, str]]] = []

    def watch(conn: object, campus: int, zone: str, events: pa.Table) -> object:
        seen.append(
            list(zip(events["user_id"].to_pylist(), events["course_id"].to_pylist(), strict=True))
        )
        return observe(conn, campus, zone, events)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "observe", watch)
    started = {"eventname": "\\mod_quiz\\event\\attempt_started", "component": "mod_quiz"}
    rows = [
        log_row(n, userid=str(5 + n % 7), courseid=str(6 + n % 3), objectid=str(n), **started)
        for n in range(1, 240)
    ]
    take(write_log(tmp_path / "log.csv", rows), "moodle-logstore")
    events = [learner for batch in seen for learner in batch]
    assert len(events) == 239
    assert max(map(len, seen)) <= 20
    runs = sum(one != other for one, other in pairwise(events)) + 1
    assert runs == len(set(events)) == 21
    with store.transaction(Scope(lincoln)) as conn:
        facts = conn.execute(text("SELECT count(*) FROM theon.outcome_facts"))
        assert facts.scalar_one() == 239
