"""What the statements of xAPI, the lines of Open edX and messages become."""

import hashlib
import json
from typing import Any

import pyarrow as pa
import pytest

from theon.intake.mapped import read_arrival

INFO = "http://lrs.learninglocker.net/define/extensions/info"
ADL = "http://adlnet.gov/expapi"


def mapped(row: dict[str, Any], mapping: str) -> dict[str, Any]:
    """The event of one line, without what is null; `other` as an object."""
    arrival = read_arrival(pa.array([json.dumps(row)]), mapping)
    assert arrival.refused.to_pylist() == []
    (event,) = arrival.events.to_pylist()
    event["other"] = json.loads(event["other"] or "{}")
    return {key: value for key, value in event.items() if value is not None}


def statement(**more: Any) -> dict[str, Any]:
    return {
        "id": "7D8DC490-2885-4cd1-abad-bb9627c88fb6",
        "actor": {"account": {"homePage": "http://lms", "name": "8"}},
        "verb": {"id": f"{ADL}/verbs/experienced"},
        "object": {"id": "http://books/1", "definition": {"type": f"{ADL}/activities/media"}},
        "timestamp": "2026-03-01T10:00:00+01:00",
    } | more


def moodle(name: str, verb: str, object_: str, type_: str, **more: Any) -> dict[str, Any]:
    context = {
        "contextActivities": {
            "parent": [
                {"id": "http://lms/mod/quiz/view.php?id=60"},
                {"id": "http://lms/course/view.php?id=6",
                 "definition": {"type": "https://w3id.org/xapi/cmi5/activitytype/course"}},
            ]
        },
        "extensions": {INFO: {"event_name": name}},
    }  # fmt: skip
    return statement(
        verb={"id": f"{ADL}/verbs/{verb}"},
        object={"id": f"http://lms{object_}", "definition": {"type": f"x/{type_}"}},
        context=context | more.pop("context", {}),
        **more,
    )


def person(actor: dict[str, Any]) -> str | None:
    return mapped(statement(actor=actor), "xapi").get("user_id")


def test_a_statement_of_moodle_is_told_as_the_row_of_its_log():
    event = mapped(
        moodle(
            "\\mod_page\\event\\course_module_viewed", "viewed", "/mod/page/view.php?id=9", "page"
        ),
        "xapi",
    )
    assert event["event_id"] == "xapi:7d8dc490-2885-4cd1-abad-bb9627c88fb6"
    assert (event["user_id"], event["course_id"], event["origin"]) == ("8", "6", "web")
    assert event["event_name"] == "\\mod_page\\event\\course_module_viewed"
    assert (event["component"], event["action"], event["target"]) == (
        "mod_page", "viewed", "course_module",
    )  # fmt: skip
    assert (event["context_level"], event["context_instance_id"]) == (70, 9)


def test_the_attempt_of_a_quiz_is_an_outcome_and_its_questions_are_none():
    """Moodle's plugin tells both by the same event."""
    name = "\\mod_quiz\\event\\attempt_submitted"
    score = {"score": {"raw": 8, "min": 0, "max": 10, "scaled": 0.8}, "success": True}
    address = "/mod/quiz/attempt.php?attempt=33&cmid=60"
    event = mapped(moodle(name, "completed", address, "attempt", result=score), "xapi")
    assert event["event_name"] == "AssessmentCompleted"
    assert (event["component"], event["object_id"]) == ("mod_quiz", "33")
    said = event["other"]
    assert (said["assessment_id"], said["attempt"]) == ("60", "33")
    assert (said["score"], said["max_score"], said["passed"]) == (8, 10, True)
    answered = mapped(
        moodle(name, "answered", "/question.php?cmid=60&id=7", "cmi.interaction"), "xapi"
    )
    assert (answered["event_name"], answered["component"]) == ("QuestionAnswered", "mod_quiz")


def test_in_a_statement_of_moodle_the_instructor_acts_and_the_actor_is_concerned():
    """As in Moodle's log, so that a teacher's work is not the learner's activity."""
    event = mapped(
        moodle(
            "\\core\\event\\user_enrolment_created", "enrolled", "/course/view.php?id=6", "course",
            context={"instructor": {"account": {"homePage": "http://lms", "name": "2"}}},
        ),
        "xapi",
    )  # fmt: skip
    assert (event["user_id"], event["related_user_id"]) == ("2", "8")
    assert event["event_name"] == "UserEnrolled"


@pytest.mark.parametrize(("verb", "state"), [("completed", 1), ("uncompleted", 0)])
def test_the_completion_of_an_activity_says_its_state_as_moodle_does(verb, state):
    name = "\\core\\event\\course_module_completion_updated"
    event = mapped(moodle(name, verb, "/mod/page/view.php?id=9", "page"), "xapi")
    assert (event["event_name"], event["other"]["completionstate"]) == (name, state)
    assert (event["context_instance_id"], event["related_user_id"]) == (9, "8")


def test_one_learner_by_address_or_by_its_hash_is_one_and_the_address_is_not_kept():
    by_address = person({"mbox": "mailto:alice@example.org"})
    sha1 = hashlib.sha1(b"mailto:alice@example.org", usedforsecurity=False).hexdigest()
    assert by_address == f"sha1:{sha1}"
    assert person({"mbox_sha1sum": sha1.upper()}) == by_address
    assert person({"account": {"homePage": "http://x", "name": "alice@example.org"}}) == by_address


def test_accounts_of_different_systems_are_different_people():
    """Only Moodle's own ids stand as they are; another system may have an '8' as well."""
    assert person({"account": {"homePage": "http://lms", "name": "8"}}) == "http://lms#8"
    assert person({"openid": "http://openid/8"}) == "http://openid/8"
    assert person({"objectType": "Group", "account": {"homePage": "h", "name": "g"}}) is None
    at_home = statement(object={"id": "http://lms/mod/hvp/view.php?id=3"})
    assert mapped(at_home, "xapi")["user_id"] == "8"


@pytest.mark.parametrize(
    ("verb", "type_", "result", "expected"),
    [
        ("experienced", "media", None, ("mod_resource", "viewed")),
        ("completed", "course", None, ("UserCompletedCourse", "core")),
        ("completed", "lesson", None, ("ActivityCompleted", "core")),
        ("completed", "lesson", {"score": {"scaled": 0.5}}, ("AssessmentCompleted", "mod_quiz")),
        ("failed", "assessment", None, ("AssessmentCompleted", "mod_quiz")),
        ("attempted", "assessment", None, ("AssessmentStarted", "mod_quiz")),
        ("scored", "attempt", {"score": {"raw": 1}}, ("AssessmentGraded", "mod_quiz")),
        ("registered", "course", None, ("UserEnrolled", "core")),
        ("submitted", "assignment", None, ("SubmissionCreated", "mod_assign")),
        ("voided", "x", None, ("StatementVoided", "xapi")),
        ("replied", "forum-reply", None, ("mod_forum", "created", "post")),
        ("dreamt", "x", None, ("xapi", "dreamt", "x")),
    ],
)
def test_verb_and_kind_of_activity_decide_what_a_statement_is(verb, type_, result, expected):
    event = mapped(
        statement(
            verb={"id": f"{ADL}/verbs/{verb}"},
            object={"id": "http://a/1", "definition": {"type": f"{ADL}/activities/{type_}"}},
            **({"result": result} if result else {}),
        ),
        "xapi",
    )
    said = [event["event_name"], event["component"], event["action"], event.get("target")]
    assert set(expected) <= set(said), said


def test_a_score_is_counted_from_its_least():
    result = {"score": {"raw": 3, "min": 1, "max": 5}}
    said = mapped(statement(verb={"id": "v/passed"}, result=result), "xapi")["other"]
    assert (said["score"], said["max_score"]) == (2, 4)


def test_a_voiding_statement_is_nobodys():
    event = mapped(statement(verb={"id": f"{ADL}/verbs/voided"}), "xapi")
    assert "user_id" not in event
    assert event["origin"] == "xapi"


def test_a_statement_without_any_time_is_refused():
    row = statement()
    del row["timestamp"]
    arrival = read_arrival(pa.array([json.dumps(row)]), "xapi")
    assert arrival.refused["reason"].to_pylist() == ["timestamp is missing"]


def tracked(event_type: str, source: str = "browser", **more: Any) -> dict[str, Any]:
    return {
        "event_type": event_type,
        "event_source": source,
        "username": "ann",
        "context": {"user_id": 6, "course_id": "course-v1:edX+DemoX+2026"},
        "event": {},
        "time": "2026-03-01T10:00:00.123456+00:00",
    } | more


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (tracked("play_video"), ("mod_resource", "viewed", "video", "web")),
        (tracked("edx.video.played"), ("mod_resource", "viewed", "video", "web")),
        (tracked("edx.forum.thread.created", "server"),
         ("mod_forum", "created", "discussion", "web")),
        (tracked("edx.forum.comment.created", "server"),
         ("mod_forum", "created", "post", "web")),
        (tracked("edx.forum.thread.viewed", "server"),
         ("mod_forum", "viewed", "discussion", "web")),
        (tracked("/courses/course-v1:edX+DemoX+2026/courseware/a/b/", "server"),
         ("core", "viewed", "course_section", "web")),
        (tracked("/courses/edX/DemoX/2026/info", "server"), ("core", "viewed", "course", "web")),
        (tracked("/courses/course-v1:edX+DemoX+2026/xblock/b/handler/x", "server"),
         ("edx", "requested", "page", "request")),
        (tracked("edx.grades.course.grade_calculated", "server"),
         ("core", "graded", "user", "system")),
        (tracked("problem_check"), ("mod_quiz", "answered", "question", "web")),
        (tracked("edx.unheard.of"), ("edx", "of", None, "web")),
    ],
)  # fmt: skip
def test_lines_of_open_edx_are_told_in_moodles_words(line, expected):
    event = mapped(line, "edx")
    parts = (event["component"], event["action"], event.get("target"), event["origin"])
    assert parts == expected
    assert (event["user_id"], event["course_id"]) == ("6", "course-v1:edX+DemoX+2026")
    assert "ann" not in json.dumps(event, default=str)


def test_a_problem_that_the_server_checked_is_an_assessment():
    said = {"problem_id": "p1", "attempts": 3, "grade": 1, "max_grade": 2, "success": "incorrect"}
    event = mapped(tracked("problem_check", "server", event=said), "edx")
    assert event["event_name"] == "AssessmentCompleted"
    other = event["other"]
    assert (other["assessment_id"], other["attempt"]) == ("p1", "3")
    assert (other["score"], other["max_score"], other["passed"]) == (1, 2, False)


def test_an_event_of_open_edx_may_be_json_within_json():
    event = mapped(tracked("play_video", event='{"id": "v1", "code": "x"}'), "edx")
    assert event["object_id"] == "v1"
    assert event["other"]["event"] == {"id": "v1", "code": "x"}


def test_whom_a_server_tells_of_is_not_who_works_at_it():
    said = {"user_id": 9, "course_id": "c", "mode": "audit"}
    event = mapped(tracked("edx.course.enrollment.activated", "server", event=said), "edx")
    assert (event["event_name"], event["user_id"], event["origin"]) == (
        "UserEnrolled",
        "9",
        "system",
    )


def test_a_plain_message_and_a_native_one_are_the_same_event():
    plain = mapped(
        {"type": "AssessmentCompleted", "eventId": "1", "timestamp": "2026-03-01T10:00:00Z",
         "userId": 5, "courseId": "6", "data": {"assessment_id": "q", "score": 3}},
        "messages",
    )  # fmt: skip
    native = mapped(
        {"event_name": "AssessmentCompleted", "id": "1", "occurred_at": "2026-03-01T10:00:00Z",
         "user_id": 5, "course_id": "6", "other": {"assessment_id": "q", "score": 3}},
        "messages",
    )  # fmt: skip
    assert plain == native
    assert (plain["component"], plain["other"]["score"]) == ("mod_quiz", 3)
