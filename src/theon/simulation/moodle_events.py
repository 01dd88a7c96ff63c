"""The kinds of Moodle log rows that the simulation writes, named as Moodle 4.3 names them.

Weights say how often a kind comes up among a learner's actions in a course; the first
actions of a visit (sign-in, dashboard, course page) are placed by position instead.
"""

from dataclasses import dataclass
from typing import Literal

ObjectId = Literal["", "module", "row", "user", "course"]


@dataclass(frozen=True)
class Kind:
    r"""One kind of log row.

    Attributes:
        eventname: Moodle's class name, such as `\mod_page\event\course_module_viewed`.
        objecttable: Moodle's table of the object; empty where the event has none.
        object_id: where `objectid` comes from: the module's instance, a number of its own
            (`row`), the person, the course, or nothing.
        crud: c, r, u or d.
        edulevel: 0 other, 1 teaching, 2 participating.
        contextlevel: 10 system, 30 user, 50 course, 70 module.
        weights: share among the actions of a reading, discussing, testing and mixed course.
        other: the payload; `{cm}`, `{row}` and `{user}` are filled in.
        anonymous: 1 where Moodle hides who did it.
        origin: web, ws or cli.
    """

    eventname: str
    objecttable: str
    object_id: ObjectId
    crud: str
    edulevel: int
    contextlevel: int
    weights: tuple[float, float, float, float] = (0, 0, 0, 0)
    other: str = "null"
    anonymous: int = 0
    origin: str = "web"

    @property
    def component(self) -> str:
        r"""`mod_forum` of `\mod_forum\event\post_created`."""
        return self.eventname.split("\\")[1]

    @property
    def _verb_at(self) -> int:
        return self.eventname.rindex("_")

    @property
    def action(self) -> str:
        r"""`created` of `\mod_forum\event\post_created`."""
        return self.eventname[self._verb_at + 1 :]

    @property
    def target(self) -> str:
        r"""`post` of `\mod_forum\event\post_created`."""
        return self.eventname[self.eventname.rindex("\\") + 1 : self._verb_at]


def _viewed(module: str, weights: tuple[float, float, float, float], other: str = "null") -> Kind:
    name = f"\\mod_{module}\\event\\course_module_viewed"
    return Kind(name, module, "module", "r", 2, 70, weights, other)


LOGIN = Kind(
    "\\core\\event\\user_loggedin",
    "user",
    "user",
    "r",
    0,
    10,
    other='{"username":"u{user}","extrauserinfo":[]}',
)
DASHBOARD = Kind("\\core\\event\\dashboard_viewed", "", "", "r", 0, 30)
COURSE = Kind(
    "\\core\\event\\course_viewed",
    "",
    "",
    "r",
    2,
    50,
    (14, 10, 12, 12),
    '{"coursesectionnumber":1}',
)
LOGIN_FAILED = Kind(
    "\\core\\event\\user_login_failed", "", "", "r", 0, 10, other='{"username":"guest","reason":3}'
)
NOTIFICATION = Kind(
    "\\core\\event\\notification_sent",
    "notifications",
    "row",
    "c",
    0,
    10,
    other='{"courseid":"1"}',
    origin="cli",
)
GRADED = Kind(
    "\\core\\event\\user_graded",
    "grade_grades",
    "row",
    "u",
    1,
    50,
    other='{"itemid":"{cm}","overridden":false,"finalgrade":"72.00000"}',
    origin="cli",
)

KINDS: tuple[Kind, ...] = (
    LOGIN,
    DASHBOARD,
    COURSE,
    LOGIN_FAILED,
    NOTIFICATION,
    GRADED,
    _viewed("resource", (16, 7, 7, 9)),
    _viewed("page", (14, 7, 6, 9)),
    _viewed("url", (5, 4, 3, 4)),
    _viewed("folder", (3, 1, 1, 2)),
    _viewed("book", (6, 1, 1, 3)),
    Kind("\\mod_book\\event\\chapter_viewed", "book_chapters", "row", "r", 2, 70, (9, 2, 1, 4)),
    _viewed("h5pactivity", (5, 2, 5, 5)),
    _viewed("scorm", (1, 0.5, 2, 1)),
    _viewed("forum", (5, 15, 4, 8)),
    Kind(
        "\\mod_forum\\event\\discussion_viewed",
        "forum_discussions",
        "row",
        "r",
        2,
        70,
        (4, 16, 3, 7),
    ),
    Kind(
        "\\mod_forum\\event\\post_created",
        "forum_posts",
        "row",
        "c",
        2,
        70,
        (0.6, 3.2, 0.5, 1.2),
        '{"discussionid":{row},"forumid":{cm},"forumtype":"general"}',
    ),
    Kind(
        "\\mod_forum\\event\\discussion_created",
        "forum_discussions",
        "row",
        "c",
        2,
        70,
        (0.1, 0.7, 0.1, 0.3),
        '{"forumid":{cm}}',
    ),
    _viewed("quiz", (3, 2, 9, 5)),
    Kind("\\mod_quiz\\event\\attempt_started", "quiz_attempts", "row", "c", 2, 70, (1, 0.6, 4, 2)),
    Kind(
        "\\mod_quiz\\event\\attempt_viewed",
        "quiz_attempts",
        "row",
        "r",
        2,
        70,
        (3, 2, 18, 8),
        '{"quizid":"{cm}","page":"0"}',
    ),
    Kind(
        "\\mod_quiz\\event\\attempt_submitted",
        "quiz_attempts",
        "row",
        "u",
        2,
        70,
        (0.8, 0.5, 3.4, 1.6),
        '{"submitterid":"{user}","quizid":"{cm}","studentisonline":true}',
    ),
    _viewed("assign", (5, 4, 5, 6)),
    Kind(
        "\\mod_assign\\event\\submission_status_viewed",
        "",
        "",
        "r",
        0,
        70,
        (3, 2, 3, 4),
        '{"assignid":"{cm}"}',
    ),
    Kind(
        "\\mod_assign\\event\\assessable_submitted",
        "assign_submission",
        "row",
        "u",
        2,
        70,
        (0.6, 0.5, 0.7, 0.9),
        '{"submission_editable":true}',
    ),
    _viewed("choice", (0.5, 1, 0.5, 1)),
    _viewed("lesson", (1.5, 0.5, 2, 2)),
    _viewed("glossary", (1, 1, 0.5, 1)),
    _viewed("wiki", (0.5, 1.5, 0.3, 1)),
    _viewed("feedback", (0.3, 0.3, 0.3, 0.4), '{"anonymous":"1"}'),
    Kind(
        "\\mod_feedback\\event\\response_submitted",
        "feedback_completed",
        "row",
        "c",
        2,
        70,
        (0.2, 0.2, 0.2, 0.3),
        '{"cmid":"{cm}","anonymous":"1"}',
        anonymous=1,
    ),
    Kind(
        "\\core\\event\\course_module_completion_updated",
        "course_modules_completion",
        "row",
        "u",
        2,
        70,
        (3, 2, 3, 3),
        '{"relateduserid":"{user}","overrideby":null,"completionstate":1}',
    ),
    Kind(
        "\\core\\event\\webservice_function_called",
        "",
        "",
        "r",
        0,
        10,
        other='{"function":"core_course_get_contents"}',
        origin="ws",
    ),
)
