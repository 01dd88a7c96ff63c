"""Reading a downloaded report: the person, the moment and the event, as the log has them."""

import csv
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import openpyxl
import pytest
from moodle_logs import rejects, staged_rows

from theon.errors import InputError
from theon.intake.moodle_logstore import stage_logstore
from theon.intake.moodle_report import stage_report
from theon.intake.staged import Staged
from theon.settings import Settings

Stage = Callable[..., Staged]
TITLES = [
    "Time", "User full name", "Affected user", "Event context", "Component", "Event name",
    "Description", "Origin", "IP address",
]  # fmt: skip
# What the report and the log of the same site must agree in, for one event to be recognised.
KEY = "occurred_at, user_id, event_name, real_user_id IS NULL AS themselves, origin, ip"


def viewed(
    at: str = "22/11/26, 07:01:11",
    *,
    user: int = 115,
    name: str = "Ada Lovelace",
    component: str = "Forum",
    event: str = "Course module viewed",
    description: str | None = None,
) -> list[str]:
    """An ordinary row of a report: somebody looks at a forum."""
    sentence = f"The user with id '{user}' viewed the 'forum' activity with course module id '146'."
    return [
        at, name, "-", "Forum: Questions", component, event, description or sentence, "web",
        "127.0.0.1",
    ]  # fmt: skip


def write_report(
    path: Path, rows: Sequence[Sequence[str]], titles: Sequence[str] = tuple(TITLES)
) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as out:
        csv.writer(out, lineterminator="\n").writerows([titles, *rows])
    return path


@pytest.fixture
def stage(tmp_path: Path, settings: Settings) -> Stage:
    def run(path: Path, timezone: str = "Europe/London", course: str | None = None) -> Staged:
        workspace = tmp_path / f"work-{path.name}-{course}"
        workspace.mkdir(exist_ok=True)
        return stage_report(path, workspace, settings, timezone=timezone, course=course)

    return run


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def test_a_row_gives_person_moment_and_event(stage: Stage, tmp_path: Path) -> None:
    staged = stage(write_report(tmp_path / "r.csv", [viewed("15/10/26, 10:11:12")]), course="6")
    assert staged_rows(
        staged,
        "occurred_at, user_id, course_id, event_name, component, action, target, origin, ip, "
        "real_user_id, context_instance_id, anonymous, source",
    ) == [
        (
            utc(2026, 10, 15, 9, 11, 12),
            "115",
            "6",
            r"\mod_forum\event\course_module_viewed",
            "mod_forum",
            "viewed",
            "course_module",
            "web",
            "127.0.0.1",
            None,
            146,
            None,
            "moodle-report",
        )
    ]


@pytest.mark.parametrize(
    ("description", "user"),
    [
        ("The user with id '115' has logged in.", "115"),
        ("The user with the id '115' submitted the element 'cmi.core.score.raw' with", "115"),
        ("The user id '2' assigned the 'moodle/site:config' capability for role '7'", "2"),
        ("The user with id '-1' updated the grade with id '2' for the user with id '3'", "-1"),
        ("The user with id '0' viewed the course with id '1'.", "0"),
        ("A notification was sent by the system to the user with id '103'.", None),
        ("Item created with ID 1.", None),
        ("The reset of the course with id '7' has ended.", None),
    ],
)
def test_the_person_is_who_the_sentence_begins_with(
    stage: Stage, tmp_path: Path, description: str, user: str | None
) -> None:
    """Whom something was done to is named later in the sentence, and is not the doer."""
    staged = stage(write_report(tmp_path / "r.csv", [viewed(description=description)]))
    assert staged_rows(staged, "user_id") == [(user,)]


def test_two_people_of_one_name_stay_two(stage: Stage, tmp_path: Path) -> None:
    rows = [viewed(user=103, name="John Smith"), viewed(user=104, name="John Smith")]
    staged = stage(write_report(tmp_path / "r.csv", rows))
    assert staged_rows(staged, "user_id") == [("103",), ("104",)]


def test_somebody_logged_in_as_them_is_marked(stage: Stage, tmp_path: Path) -> None:
    staged = stage(write_report(tmp_path / "r.csv", [viewed(name="Admin User as Ada Lovelace")]))
    assert staged_rows(staged, "user_id, real_user_id") == [("115", "?")]


def test_a_name_that_holds_the_word_as_is_still_a_name(stage: Stage, tmp_path: Path) -> None:
    """It stands alone as an affected user, where "X as Y" never does."""
    own = viewed(name="Tan as Noor")
    own[2] = "Tan as Noor"
    staged = stage(write_report(tmp_path / "r.csv", [own, viewed(name="Tan as Noor")]))
    assert staged_rows(staged, "real_user_id") == [(None,), (None,)]


def test_a_task_that_acts_for_a_learner_is_not_the_learner(stage: Stage, tmp_path: Path) -> None:
    """An overdue attempt: the sentence names the learner, the first column the task's user."""
    task = viewed(name="Admin User", event="Quiz attempt submitted", component="Quiz")
    task[2], task[6] = (
        "Ada Lovelace",
        "The user with id '115' has submitted the attempt with id '5'",
    )
    staged = stage(write_report(tmp_path / "r.csv", [viewed(), viewed(), task]))
    assert staged_rows(staged, "user_id") == [("115",), ("115",), (None,)]


def test_without_a_course_the_sentence_may_name_it(stage: Stage, tmp_path: Path) -> None:
    named = viewed(
        component="System",
        event="Course viewed",
        description="The user with id '115' viewed the course with id '7'.",
    )
    staged = stage(write_report(tmp_path / "r.csv", [named, viewed()]))
    assert staged_rows(staged, "course_id") == [("7",), (None,)]
    assert any("1 of 2 rows count for no course" in note for note in staged.notes)


def test_no_name_is_stored(stage: Stage, tmp_path: Path) -> None:
    rows = [viewed(), viewed(description="The user with id '2' praised Ada Lovelace.")]
    rows[0][3] = "User: Ada Lovelace"
    rows[0][6] = "The user with id '115' viewed the profile for the user with id '115'."
    staged = stage(write_report(tmp_path / "r.csv", rows))
    assert b"Lovelace" not in staged.path.read_bytes()
    assert "Lovelace" not in str(staged_rows(staged))
    assert json.loads(str(staged_rows(staged, "other")[0][0]))["description"] == rows[0][6]


def test_identical_rows_of_one_file_are_different_events_and_the_same_in_the_next_file(
    stage: Stage, tmp_path: Path
) -> None:
    """Also where the next file begins or ends in the middle of them, or a person was renamed."""
    rows = [viewed("22/11/26, 07:01:12"), *[viewed()] * 3, viewed("22/11/26, 07:01:10")]
    whole = {r[0] for r in staged_rows(stage(write_report(tmp_path / "1.csv", rows)), "event_id")}
    assert len(whole) == 5
    part = [[*row[:1], "Ada King", *row[2:]] for row in rows[:3]]
    cut = {r[0] for r in staged_rows(stage(write_report(tmp_path / "2.csv", part)), "event_id")}
    assert len(cut) == 3
    assert cut < whole


def test_a_courses_report_and_the_sites_report_have_ids_of_their_own(
    stage: Stage, tmp_path: Path
) -> None:
    path = write_report(tmp_path / "r.csv", [viewed()])
    ((of_site,),) = staged_rows(stage(path), "event_id")
    ((of_course,),) = staged_rows(stage(path, course="6"), "event_id")
    assert of_course == f"{of_site}@6"


@pytest.mark.parametrize("newest_first", [True, False])
def test_the_order_of_the_file_decides_the_repeated_hour(
    stage: Stage, tmp_path: Path, newest_first: bool
) -> None:
    """London, 25 October 2026: 01:00 to 02:00 comes twice; the clock falling back tells which."""
    clock = ["00:59:59", "01:10:00", "01:50:00", "01:05:00", "01:10:00", "02:00:00"]
    rows = [viewed(f"25/10/26, {at}") for at in clock]
    staged = stage(write_report(tmp_path / "r.csv", rows[::-1] if newest_first else rows))
    found = staged_rows(staged, "occurred_at")
    assert [row[0] for row in (found[::-1] if newest_first else found)] == [
        utc(2026, 10, 24, 23, 59, 59),
        utc(2026, 10, 25, 0, 10),
        utc(2026, 10, 25, 0, 50),
        utc(2026, 10, 25, 1, 5),
        utc(2026, 10, 25, 1, 10),
        utc(2026, 10, 25, 2, 0),
    ]
    assert len(set(staged_rows(staged, "event_id"))) == 6


def test_a_repeated_hour_that_nothing_decides_is_mentioned(stage: Stage, tmp_path: Path) -> None:
    rows = [viewed("25/10/26, 02:30:00"), viewed("25/10/26, 01:30:00")]
    staged = stage(write_report(tmp_path / "r.csv", rows))
    assert staged_rows(staged, "occurred_at")[1] == (utc(2026, 10, 25, 0, 30),)
    assert any(note.startswith("1 rows lie in the hour") for note in staged.notes)


def test_a_time_that_clocks_skipped_is_refused(stage: Stage, tmp_path: Path) -> None:
    """London, 29 March 2026: there is no 01:30."""
    rows = [
        viewed("29/03/26, 02:10:00"),
        viewed("29/03/26, 01:30:00"),
        viewed("29/03/26, 00:50:00"),
    ]
    staged = stage(write_report(tmp_path / "r.csv", rows))
    assert staged.rows == 2
    assert rejects(staged) == [
        (3, "time does not exist: clocks went forward over it", "29/03/26, 01:30:00")
    ]


def test_a_time_that_cannot_be_read_is_refused_with_its_line(stage: Stage, tmp_path: Path) -> None:
    rows = [viewed(), viewed("yesterday"), viewed("")]
    staged = stage(write_report(tmp_path / "r.csv", rows))
    assert staged.rows == 1
    assert rejects(staged) == [
        (3, "time cannot be read", "yesterday"),
        (4, "time cannot be read", None),
    ]


@pytest.mark.parametrize(
    "times",
    [
        ("22/11/26, 07:01:11", "5/10/26, 07:01:11"),
        ("11/22/26, 07:01:11", "10/05/26, 07:01:11"),
        ("22/11/2026, 07:01:11", "05/10/2026, 07:01:11"),
        ("22.11.26, 07:01:11", "5.10.26, 07:01:11"),
        ("22 November 2026, 7:01:11 AM", "5 October 2026, 7:01:11 AM"),
        ("Sunday, 22 November 2026, 7:01:11 AM", "Monday, 5 October 2026, 7:01:11 AM"),
        ("2026-11-22 07:01:11", "2026-10-05 07:01:11"),
    ],
)
def test_dates_are_read_as_each_language_pack_writes_them(
    stage: Stage, tmp_path: Path, times: tuple[str, str]
) -> None:
    staged = stage(write_report(tmp_path / "r.csv", [viewed(at) for at in times]))
    assert staged_rows(staged, "occurred_at") == [
        (utc(2026, 11, 22, 7, 1, 11),),
        (utc(2026, 10, 5, 6, 1, 11),),
    ]


def test_day_and_month_are_told_apart_by_the_order_of_the_file(
    stage: Stage, tmp_path: Path
) -> None:
    """No day after the 12th: newest first, only days before months stay in order."""
    times = ["03/02/26, 10:00:00", "01/02/26, 10:00:00", "12/01/26, 10:00:00", "11/01/26, 10:00:00"]
    staged = stage(write_report(tmp_path / "r.csv", [viewed(at) for at in times]))
    assert staged_rows(staged, "occurred_at")[0] == (utc(2026, 2, 3, 10),)


def test_day_and_month_that_cannot_be_told_apart_are_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="day and month cannot be told apart"):
        stage(write_report(tmp_path / "r.csv", [viewed("03/02/26, 10:00:00")]))


def test_times_without_seconds_are_read_and_mentioned(stage: Stage, tmp_path: Path) -> None:
    staged = stage(write_report(tmp_path / "r.csv", [viewed("22/11/26, 07:01")]))
    assert staged_rows(staged, "occurred_at") == [(utc(2026, 11, 22, 7, 1),)]
    assert any("no seconds" in note for note in staged.notes)


def test_csv_xlsx_and_json_of_one_report_are_the_same_events(stage: Stage, tmp_path: Path) -> None:
    """Both shapes of JSON that Moodle's versions write, too."""
    rows = [viewed(), viewed(), viewed("21/11/26, 07:01:11", name='Robert "Bob", Jr')]
    book = openpyxl.Workbook()
    for row in (TITLES, *rows):
        book.active.append(row)
    book.save(tmp_path / "r.xlsx")
    objects = [[dict(zip(TITLES, row, strict=True)) for row in rows]]
    (tmp_path / "objects.json").write_text(json.dumps(objects))
    (tmp_path / "lists.json").write_text(json.dumps([rows]))
    (tmp_path / "flat.json").write_text(json.dumps(objects[0]))
    expected = staged_rows(stage(write_report(tmp_path / "r.csv", rows)))
    assert len(expected) == 3
    (tmp_path / "titled.json").write_text(json.dumps([[TITLES, *rows]]))
    for name in ("r.xlsx", "objects.json", "lists.json", "flat.json", "titled.json"):
        assert staged_rows(stage(tmp_path / name)) == expected, name


def test_the_module_comes_from_the_sentence_also_for_other_plugins(
    stage: Stage, tmp_path: Path
) -> None:
    row = viewed(component="Custom certificate")
    row[6] = "The user with id '115' viewed the 'customcert' activity with course module id '9'."
    staged = stage(write_report(tmp_path / "r.csv", [row]))
    assert staged_rows(staged, "event_name, component") == [
        (r"\mod_customcert\event\course_module_viewed", "mod_customcert")
    ]


def test_one_label_of_two_events_is_decided_by_its_context(stage: Stage, tmp_path: Path) -> None:
    rows = [viewed(component="Recycle bin", event="Item created", description="Item created")] * 2
    rows = [[*rows[0][:3], where, *rows[0][4:]] for where in ("Course: Biology", "Category: All")]
    staged = stage(write_report(tmp_path / "r.csv", rows))
    assert staged_rows(staged, "event_name") == [
        (r"\tool_recyclebin\event\course_bin_item_created",),
        (r"\tool_recyclebin\event\category_bin_item_created",),
    ]


def test_an_unknown_event_is_kept_under_its_label_and_mentioned(
    stage: Stage, tmp_path: Path
) -> None:
    row = viewed(component="Kiosk", event="Coin inserted", description="The user with id '5' paid.")
    staged = stage(write_report(tmp_path / "r.csv", [row, row, viewed()]))
    assert staged_rows(staged, "event_name, component, action")[0] == (
        "moodle-report:Kiosk/Coin inserted", None, None,
    )  # fmt: skip
    assert any("'Kiosk / Coin inserted' (2)" in note for note in staged.notes)


def test_a_report_in_another_language_is_read_by_the_order_of_its_columns(
    stage: Stage, tmp_path: Path
) -> None:
    """Descriptions are English in every Moodle, so persons and modules are still found."""
    titles = ["Zeit", "Vollständiger Name", "Betroffene/r Nutzer/in", "Ereigniskontext",
              "Komponente", "Ereignisname", "Beschreibung", "Herkunft", "IP-Adresse"]  # fmt: skip
    row = viewed(event="Kursmodul angezeigt")
    staged = stage(write_report(tmp_path / "r.csv", [row], titles))
    assert staged_rows(staged, "user_id, event_name") == [
        ("115", "moodle-report:Forum/Kursmodul angezeigt")
    ]
    assert any("language other than English" in note for note in staged.notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.csv", b"id,eventname,timecreated,userid,courseid\n", "moodle-logstore"),
        ("r.csv", b"a,b,c\n1,2,3\n", "no report from Moodle's Logs page"),
        ("r.csv", b"<!DOCTYPE html>", "login page"),
        ("r.csv", b"", "empty"),
        ("r.csv", ",".join(TITLES).encode() + b"\n", "no row"),
        ("r.json", b'[[{"Time":"22/11/26, 07:01:11"', "damaged or cut off"),
        ("r.json", b"[1, 2]", "no rows of a report"),
        ("r.xlsx", b"PK\x03\x04damaged", "Excel file cannot be read"),
    ],
)
def test_a_file_that_is_no_report_is_refused_with_what_it_is(
    stage: Stage, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        stage(tmp_path / name)


def test_a_course_that_is_no_id_is_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no course id"):
        stage(write_report(tmp_path / "r.csv", [viewed()]), course="BIO101")


def test_a_report_of_other_courses_is_refused_for_the_given_one(
    stage: Stage, tmp_path: Path
) -> None:
    """A whole site's report taken for one course's would put every row into it."""
    rows = [
        viewed(description=f"The user with id '115' viewed the course with id '{n}'.")
        for n in (6, 6, 6, 7, 8)
    ]
    path = write_report(tmp_path / "r.csv", rows)
    with pytest.raises(InputError, match="not the report of course 6 alone"):
        stage(path, course="6")
    assert stage(path).rows == 5


@pytest.mark.real_data
def test_the_real_sites_report_is_not_taken_for_one_courses(
    stage: Stage, moodle_data: Path
) -> None:
    with pytest.raises(InputError, match="leave --course out"):
        stage(moodle_data / "report_log_site.csv", course="6")


def _unmatched(report: Staged, log: Staged) -> dict[str, int]:
    """Rows of the report that the log does not have, by event."""
    with duckdb.connect() as engine:
        rows = engine.execute(
            f"""
            SELECT event_name, count(*) FROM (
                SELECT {KEY} FROM read_parquet('{report.path}')
                EXCEPT ALL SELECT {KEY} FROM read_parquet('{log.path}')
            ) GROUP BY 1 ORDER BY 2 DESC
            """
        ).fetchall()
    return dict(rows)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "course", "rows", "unmatched"),
    [
        (
            "report_log_site.csv",
            None,
            5_790,
            {
                r"\core\event\webservice_function_called": 111,  # the sentence names no person
                r"\core\event\notification_sent": 104,  # sent by the system
                r"\core\event\url_blocked": 54,  # no person
                r"\core\event\user_login_failed": 11,  # nobody was logged in
                r"\mod_quiz\event\attempt_submitted": 7,  # overdue, closed by a task
                r"\core\event\course_reset_ended": 1,
                r"\tool_recyclebin\event\category_bin_item_created": 1,
                r"\tool_recyclebin\event\category_bin_item_deleted": 1,
                r"\tool_recyclebin\event\course_bin_item_created": 1,
                r"\tool_recyclebin\event\course_bin_item_deleted": 1,
            },
        ),
        (
            "report_log_course.csv",
            "6",
            3_367,
            {
                r"\mod_quiz\event\attempt_submitted": 7,
                r"\tool_recyclebin\event\course_bin_item_created": 1,
                r"\tool_recyclebin\event\course_bin_item_deleted": 1,
            },
        ),
    ],
)
def test_real_reports_agree_with_the_log_of_the_same_site(
    stage: Stage,
    tmp_path: Path,
    settings: Settings,
    moodle_data: Path,
    file: str,
    course: str | None,
    rows: int,
    unmatched: dict[str, int],
) -> None:
    """To the second across the clock change; what differs names no doer, and only that."""
    (tmp_path / "log").mkdir()
    log = stage_logstore(
        moodle_data / "logstore_standard_log_43.csv.gz", tmp_path / "log", settings
    )
    report = stage(moodle_data / file, course=course)
    assert (report.read, report.rows, report.rejected) == (rows, rows, 0)
    assert _unmatched(report, log) == unmatched
    with duckdb.connect() as engine:
        nameless = engine.execute(
            f"SELECT count(*) FROM read_parquet('{report.path}') WHERE user_id IS NULL"
        ).fetchone()
    assert nameless == (sum(unmatched.values()),)


@pytest.mark.real_data
def test_real_labels_give_component_action_and_target_of_the_log(
    stage: Stage, tmp_path: Path, settings: Settings, moodle_data: Path
) -> None:
    (tmp_path / "log").mkdir()
    log = stage_logstore(
        moodle_data / "logstore_standard_log_43.csv.gz", tmp_path / "log", settings
    )
    report = stage(moodle_data / "report_log_site.csv")
    parts = "event_name, component, action, target"
    with duckdb.connect() as engine:
        differ = engine.execute(
            f"SELECT DISTINCT {parts} FROM read_parquet('{report.path}') EXCEPT "
            f"SELECT {parts} FROM read_parquet('{log.path}')"
        ).fetchall()
    assert differ == []
