"""X5: what learners do gives the same metrics, whichever source tells of it."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moodle_logs import log_row, write_log

from theon.intake.arrivals import EVENT_COLUMNS
from theon.intake.mapped import read_arrival
from theon.intake.pipeline import ingest
from theon.lake.table import EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.export import published_rows
from theon.metrics.refresh import refresh
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

LMS = "http://lms"
INFO = "http://lrs.learninglocker.net/define/extensions/info"
START = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Action:
    """Something a learner does, as each source tells it.

    Attributes:
        moodle: name of Moodle's event.
        verb, kind: last words of the verb and the activity type of a statement.
        edx: type and payload of an Open edX event.
        named: Theon's own name.
    """

    moodle: str
    verb: str
    kind: str
    edx: tuple[str, dict[str, Any]]
    named: str


ACTIONS = [
    Action("\\core\\event\\course_viewed", "viewed", "course",
           ("/courses/course-v1:a+b+c/info", {}), "CourseViewed"),
    Action("\\mod_resource\\event\\course_module_viewed", "viewed", "resource",
           ("edx.googlecomponent.document.displayed", {}), "ResourceViewed"),
    Action("\\mod_resource\\event\\course_module_viewed", "played", "video",
           ("play_video", {"id": "v"}), "VideoViewed"),
    Action("\\mod_forum\\event\\discussion_viewed", "viewed", "discussion",
           ("edx.forum.thread.viewed", {}), "ForumViewed"),
    Action("\\mod_forum\\event\\discussion_created", "created", "discussion",
           ("edx.forum.thread.created", {}), "ForumDiscussionCreated"),
    Action("\\mod_forum\\event\\post_created", "replied", "forum-reply",
           ("edx.forum.response.created", {}), "ForumPostCreated"),
    Action("\\mod_quiz\\event\\attempt_submitted", "completed", "attempt",
           ("problem_check", {"problem_id": "q", "grade": 1, "max_grade": 2, "attempts": 1}),
           "AssessmentCompleted"),
    Action("\\mod_assign\\event\\assessable_submitted", "submitted", "assignment",
           ("openassessmentblock.create_submission", {"attempt_number": 1}), "SubmissionCreated"),
    Action("\\core\\event\\course_module_completion_updated", "completed", "lesson",
           ("edx.completion.block_completion.changed", {"block_id": "b", "completion": 1.0}),
           "ActivityCompleted"),
]  # fmt: skip


@dataclass(frozen=True)
class Done:
    """An action of somebody, somewhere, at some time."""

    number: int
    action: Action
    user: str
    course: str
    at: datetime

    @property
    def told_at(self) -> str:
        return self.at.isoformat()


# Across a midnight, an hour and gaps on both sides of the session limit.
DONE = [
    Done(n, ACTIONS[n % len(ACTIONS)], user, course, START + timedelta(seconds=n * 977 % 20_000))
    for n, (user, course) in enumerate(
        [("5", "6"), ("7", "6"), ("5", "8")] * (2 * len(ACTIONS) + 1)
    )
]


def moodle_row(done: Done) -> dict[str, str]:
    _, component, _, last = done.action.moodle.split("\\")
    target, _, action = last.rpartition("_")
    return log_row(
        done.number + 1, eventname=done.action.moodle, component=component, target=target,
        action=action, userid=done.user, courseid=done.course,
        timecreated=str(int(done.at.timestamp())),
    )  # fmt: skip


def plain_statement(done: Done) -> dict[str, Any]:
    """As an authoring tool or a player writes it, which knows nothing of Moodle's events."""
    course = {"id": f"{LMS}/course/view.php?id={done.course}"}
    is_course = done.action.kind == "course"
    address = course["id"] if is_course else f"{LMS}/mod/x/view.php?id={done.number}"
    kind = f"http://adlnet.gov/expapi/activities/{done.action.kind}"
    return {
        "id": f"7d8dc490-2885-4cd1-abad-{done.number:012}",
        "actor": {"account": {"homePage": LMS, "name": done.user}},
        "verb": {"id": f"http://adlnet.gov/expapi/verbs/{done.action.verb}"},
        "object": {"id": address, "definition": {"type": kind}},
        "context": {"contextActivities": {"grouping": [course]}},
        "timestamp": done.told_at,
    }


def moodle_statement(done: Done) -> dict[str, Any]:
    """As Moodle's plugin writes it."""
    row = plain_statement(done)
    row["context"]["extensions"] = {INFO: {"event_name": done.action.moodle}}
    return row


def edx_line(done: Done) -> dict[str, Any]:
    kind, payload = done.action.edx
    return {
        "event_type": kind,
        "event_source": "server",
        "context": {"user_id": int(done.user), "course_id": done.course},
        "event": payload | {"user_id": done.user, "n": done.number},
        "time": done.told_at,
    }


def native(done: Done) -> dict[str, Any]:
    return {"id": f"n{done.number}", "event_name": done.action.named, "occurred_at": done.told_at,
            "user_id": done.user, "course_id": done.course}  # fmt: skip


def message(done: Done) -> dict[str, Any]:
    return {"type": done.action.named, "eventId": f"m{done.number}", "timestamp": done.told_at,
            "userId": done.user, "courseId": done.course, "data": {}}  # fmt: skip


@dataclass
class Compared:
    """Ingests into a campus of its own and gives the rows of every metric."""

    store: Store
    lake: EventLake
    settings: Settings
    folder: Path
    numbers: "count[int]"

    def metrics(self, write: Callable[[Path], tuple[Path, str]] | list[bytes]) -> dict[str, Any]:
        """The rows, from a file that `write` writes (with its format) or from messages."""
        campus = f"source-{next(self.numbers)}"
        add_campus(self.store, campus, "Europe/London")
        folder = self.folder / campus
        folder.mkdir()
        if isinstance(write, list):
            arrival = read_arrival(pa.array(write), "messages")
            assert arrival.refused.num_rows == 0
            columns = [column.name for column in EVENT_COLUMNS]
            pq.write_table(arrival.events.select(columns), folder / "staged.parquet")
            self.lake.append(folder / "staged.parquet", campus)
        else:
            location, source_format = write(folder)
            summary = ingest(self.store, self.lake, self.settings, location=str(location),
                             format=source_format, campus=campus)  # fmt: skip
            assert summary.rejected == 0
        refresh(self.store, self.lake, self.settings, campus=campus)
        return {
            name: [
                {key: value for key, value in row.items() if key != "campus"}
                for row in published_rows(self.store, metric, Scope(campus)).to_pylist()
            ]
            for name, metric in load_catalog().items()
        }


@pytest.fixture
def compared(store: Store, lake: EventLake, settings: Settings, tmp_path: Path) -> Compared:
    return Compared(store, lake, settings, tmp_path, count())


def written(rows: list[dict[str, Any]], source_format: str) -> Callable[[Path], tuple[Path, str]]:
    def write(folder: Path) -> tuple[Path, str]:
        file = folder / "events.json"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return file, source_format

    return write


def log(rows: list[dict[str, str]]) -> Callable[[Path], tuple[Path, str]]:
    return lambda folder: (write_log(folder / "log.csv", rows), "moodle-logstore")


def activity(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without the columns of outcomes, which Moodle's log knows less of than the others."""
    catalog = load_catalog()
    outcome = {
        name: {column.name for column in metric.columns if column.family == "outcome"}
        for name, metric in catalog.items()
    }
    return {
        name: [{k: v for k, v in row.items() if k not in outcome[name]} for row in rows]
        for name, rows in metrics.items()
    }


def test_the_same_actions_give_the_same_metrics_from_every_source(compared: Compared) -> None:
    expected = activity(compared.metrics(log([moodle_row(done) for done in DONE])))
    assert len(expected["user_course_week"]) == 6  # three of them, in the weeks of both days
    assert sum(row["forum_posts"] for row in expected["user_course_week"]) > 0
    assert sum(row["resources_viewed"] for row in expected["user_course_week"]) > 0
    sources = {
        "statements of Moodle": written([moodle_statement(done) for done in DONE], "xapi"),
        "other statements": written([plain_statement(done) for done in DONE], "xapi"),
        "Open edX": written([edx_line(done) for done in DONE], "edx"),
        "native events": written([native(done) for done in DONE], "ndjson"),
        "messages": [json.dumps(message(done)).encode() for done in DONE],
    }
    for name, source in sources.items():
        assert activity(compared.metrics(source)) == expected, name


def moodle_course(row: dict[str, Any]) -> str:
    """The course of a real statement, found another way than the mapping does."""
    around = [row["object"], *(
        activity
        for related in row["context"].get("contextActivities", {}).values()
        for activity in related
    )]  # fmt: skip
    found = [a["id"].partition("/course/view.php?id=")[2] for a in around]
    return next((course for course in found if course), "0")


@pytest.mark.real_data
def test_real_statements_give_the_metrics_of_the_log_rows_they_were_made_from(
    compared: Compared, moodle_data: Path
) -> None:
    file = moodle_data.parent / "xapi" / "moodle_statements.json.gz"
    # The file holds 619 statements, many of them twice.
    statements = {row["id"]: row for row in json.loads(gzip.decompress(file.read_bytes()))}
    assert len(statements) == 422
    rows = []
    for number, row in enumerate(statements.values(), 1):
        name = row["context"]["extensions"][INFO]["event_name"]
        _, component, _, last = name.split("\\")
        target, _, action = last.rpartition("_")
        who = row["context"].get("instructor", row["actor"])["account"]["name"]
        at = datetime.fromisoformat(row["timestamp"])
        rows.append(
            log_row(number, eventname=name, component=component, target=target, action=action,
                    userid=who, courseid=moodle_course(row), timecreated=str(int(at.timestamp())))
        )  # fmt: skip
    expected = activity(compared.metrics(log(rows)))
    assert sum(row["total_actions"] for row in expected["user_course_week"]) == 161
    assert activity(compared.metrics(lambda _: (file, "xapi"))) == expected
