"""Road c, outcomes: rows of Moodle's database that say what the log does not, such as scores.

Quiz attempts, submissions, completions, enrolments and grades are read by the time of their last
change, and become native events. A row that changed again is another event, with its own id: the
facts of both are about the same thing, and about the same as those of the log (the course module,
the attempt's row), so nothing counts twice. What is gone from a table only the log tells.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
from sqlalchemy import text

from theon.events.schema import SOURCE_MOODLE_DATABASE
from theon.intake.moodle_sources import MoodleSource, Since
from theon.intake.staged import STAGED_COLUMNS, Staged, copy_to_parquet
from theon.lake.engine import open_engine, sql_text
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.outcomes.views import course_structures
from theon.roster.campuses import Campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

# A transaction of Moodle's may end this long after the time it wrote into its rows.
REREAD_S = 3_600
# Neither 'web' nor 'ws': these rows are no activity.
ORIGIN = "db"

# Read whole: what the others refer to.
_REFERRED = {
    "modules": ("id", "name"),
    "course_modules": ("id", "course", "module", "instance", "completion", "deletioninprogress"),
    "quiz": ("id", "sumgrades"),
    "enrol": ("id", "courseid"),
    "grade_items": ("id", "courseid", "grademax"),
}


# What is said of an event, as text: the row and its state, the time in epoch seconds …
_EVENT = ("id", "event_name", "second", "user_id", "course_id", "cmid", "other")


@dataclass(frozen=True)
class _Table:
    """A table that is read by the time of its last change.

    Attributes:
        columns: those that are needed.
        changed: the column with the time, epoch seconds.
        events: SELECTs of `_EVENT` from `rows_`, which is the table's changed rows, and the tables
            that are referred to.
    """

    columns: tuple[str, ...]
    changed: str
    events: tuple[str, ...]


def _module_sql(name: str) -> str:
    """SQL: course modules of a kind: cmid, course and instance."""
    return (
        "(SELECT c.id AS cmid, c.course, c.instance FROM course_modules c "
        f"JOIN modules m ON m.id = c.module WHERE m.name = '{name}')"
    )


_ATTEMPTS = f"rows_ r JOIN {_module_sql('quiz')} c ON c.instance = r.quiz"
_TABLES = {
    "quiz_attempts": _Table(
        ("id", "quiz", "userid", "state", "preview", "timestart", "timemodified", "sumgrades"),
        "timemodified",
        (
            "SELECT r.id || ':started', 'AssessmentStarted', r.timestart, r.userid, c.course, "
            "c.cmid, json_object('assessment_id', c.cmid, 'attempt', r.id) "
            f"FROM {_ATTEMPTS} WHERE r.preview = '0'",
            "SELECT concat_ws(':', r.id, r.timemodified, r.state, r.sumgrades, q.sumgrades), "
            "CASE r.state WHEN 'finished' THEN 'AssessmentCompleted' "
            "ELSE 'AssessmentAbandoned' END, r.timemodified, r.userid, c.course, c.cmid, "
            "json_object('assessment_id', c.cmid, 'attempt', r.id, "
            "'score', r.sumgrades::DOUBLE, 'max_score', q.sumgrades::DOUBLE) "
            f"FROM {_ATTEMPTS} JOIN quiz q ON q.id = r.quiz "
            "WHERE r.preview = '0' AND r.state IN ('finished', 'abandoned')",
        ),
    ),
    "assign_submission": _Table(
        ("id", "assignment", "userid", "status", "timemodified"),
        "timemodified",
        (
            # Of a group's submission Moodle writes a row without a user, and one of each member.
            "SELECT concat_ws(':', r.id, r.timemodified, r.status), "
            "CASE r.status WHEN 'submitted' THEN 'SubmissionCreated' "
            "ELSE 'SubmissionReverted' END, r.timemodified, r.userid, c.course, c.cmid, "
            "json_object('assignment_id', c.cmid, 'attempt', r.id) "
            f"FROM rows_ r JOIN {_module_sql('assign')} c ON c.instance = r.assignment "
            "WHERE r.userid <> '0'",
        ),
    ),
    "course_modules_completion": _Table(
        ("id", "coursemoduleid", "userid", "completionstate", "timemodified"),
        "timemodified",
        (
            "SELECT concat_ws(':', r.id, r.timemodified, r.completionstate), "
            "CASE WHEN r.completionstate IN ('1', '2') THEN 'ActivityCompleted' "
            "ELSE 'ActivityUncompleted' END, r.timemodified, r.userid, c.course, c.id, "
            "json_object('activity_id', c.id) "
            "FROM rows_ r JOIN course_modules c ON c.id = r.coursemoduleid",
        ),
    ),
    "user_enrolments": _Table(
        ("id", "enrolid", "userid", "status", "timemodified"),
        "timemodified",
        (
            "SELECT concat_ws(':', r.id, r.timemodified, r.status), "
            "CASE r.status WHEN '0' THEN 'UserEnrolled' ELSE 'EnrolmentSuspended' END, "
            "r.timemodified, r.userid, e.courseid, NULL::VARCHAR, "
            "json_object('enrolment_id', r.id) "
            "FROM rows_ r JOIN enrol e ON e.id = r.enrolid",
        ),
    ),
    "grade_grades": _Table(
        ("id", "itemid", "userid", "finalgrade", "timemodified"),
        "timemodified",
        (
            "SELECT concat_ws(':', r.id, r.timemodified, r.finalgrade), 'GradeGiven', "
            "r.timemodified, r.userid, i.courseid, NULL::VARCHAR, "
            "json_object('grade_item_id', i.id, 'score', r.finalgrade::DOUBLE, "
            "'max_score', i.grademax::DOUBLE) "
            "FROM rows_ r JOIN grade_items i ON i.id = r.itemid WHERE r.finalgrade IS NOT NULL",
        ),
    ),
    "course_completions": _Table(
        ("id", "userid", "course", "timecompleted"),
        "timecompleted",
        (
            "SELECT concat_ws(':', r.id, r.timecompleted), 'UserCompletedCourse', "
            "r.timecompleted, r.userid, r.course, NULL::VARCHAR, json_object() FROM rows_ r",
        ),
    ),
}


def stage_outcomes(
    source: MoodleSource,
    prefix: str,
    workspace: Path,
    settings: Settings,
    store: Store,
    campus: Campus,
    *,
    progress: ProgressReporter | None = None,
) -> Iterator[Staged]:
    """Read what changed in the tables of outcomes, table by table.

    Each that is yielded must be in the lake, and observed, when the next is asked for: then the
    cursor of its table moves.

    Args:
        source: the open database.
        prefix: what its table names begin with.
        workspace: folder for staged files; the caller removes it.
        settings: engine.
        store: cursors, and the structures of courses that are known.
        campus: whose outcomes these are.
        progress: gets a step.

    Raises:
        InputError: no right to read.
        UnavailableError: the database went away.
    """
    reporter = progress or SilentProgress()
    with (
        open_engine(settings) as engine,
        reporter.step("Outcomes of Moodle", len(_TABLES) + 1, "tables") as step,
    ):
        closed = _closed_tables(source, prefix)
        for name, columns in _REFERRED.items():
            _load(engine, source, prefix, name, columns, workspace, None)
        structures = _structures(engine, store, campus)
        staged = _stage(engine, workspace, "course_structure", structures, 0)
        yield replace(staged, notes=closed)
        step.advance()
        for name, table in _TABLES.items():
            before = _read_cursor(store, campus, name)
            since = Since(table.changed, max(before - REREAD_S, 1))
            rows = _load(engine, source, prefix, name, table.columns, workspace, since)
            if rows:
                query = " UNION ALL ".join(table.events)
                yield _stage(engine, workspace, name, query, rows)
                [(last,)] = engine.sql(f"SELECT max({table.changed}::BIGINT) FROM rows_").fetchall()
                # A row from the future must not hide those that come before it.
                _move_cursor(store, campus, name, min(int(last or 0), int(time.time())))
            step.advance()


def _closed_tables(source: MoodleSource, prefix: str) -> tuple[str, ...]:
    """A sentence about tables that this user may not read, if there are any."""
    wanted = {**_REFERRED, **{name: table.columns for name, table in _TABLES.items()}}
    closed = [
        f"{prefix}{name}"
        for name, columns in wanted.items()
        if not set(columns) <= set(source.columns(f"{prefix}{name}"))
    ]
    if not closed:
        return ()
    return (
        f"Outcomes are incomplete: {', '.join(closed)} cannot be read, or lack a column; "
        "docs/guides/moodle.md lists what to grant.",
    )


def _load(
    engine: duckdb.DuckDBPyConnection,
    source: MoodleSource,
    prefix: str,
    name: str,
    columns: tuple[str, ...],
    workspace: Path,
    since: Since | None,
) -> int:
    """Load a table, or its changed rows as `rows_`, as text; return how many rows."""
    there = set(source.columns(f"{prefix}{name}"))
    target = name if since is None else "rows_"
    upto = source.chunk_end(f"{prefix}{name}", 0, 1 << 40) if set(columns) <= there else None
    if upto is None:
        nothing = ", ".join(f"NULL::VARCHAR AS {c}" for c in columns)
        engine.execute(
            f"CREATE OR REPLACE TEMP TABLE {target} AS SELECT {nothing} WHERE false"
        ).fetchall()
        return 0
    file = workspace / f"{name}.csv"
    source.copy(f"{prefix}{name}", columns, 0, upto, file, since)
    engine.execute(
        f"CREATE OR REPLACE TEMP TABLE {target} AS SELECT * FROM read_csv({sql_text(file)}, "
        "header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"', "
        "auto_detect = false, columns = {"
        + ", ".join(f"'{c}': 'VARCHAR'" for c in columns)
        + "}, nullstr = '')"
    ).fetchall()
    file.unlink()
    [(rows,)] = engine.sql(f"SELECT count(*) FROM {target}").fetchall()
    return int(rows)


def _stage(
    engine: duckdb.DuckDBPyConnection, workspace: Path, name: str, query: str, rows: int
) -> Staged:
    """Write the events of a table to a staged file."""
    given = {
        "event_id": f"'moodle:{name}:' || id",
        "source": f"'{SOURCE_MOODLE_DATABASE}'",
        "occurred_at": "make_timestamptz(second::BIGINT * 1000000)",
        "user_id": "user_id",
        "course_id": "course_id",
        "event_name": "event_name",
        "object_table": f"'{name}'",
        "object_id": "split_part(id, ':', 1)",
        "context_instance_id": "cmid::BIGINT",
        "origin": f"'{ORIGIN}'",
        "other": "other::VARCHAR",
        "edulevel": "NULL::SMALLINT",
        "context_id": "NULL::BIGINT",
        "context_level": "NULL::INTEGER",
        "anonymous": "NULL::BOOLEAN",
    }
    columns = ", ".join(f"{given.get(c, 'NULL::VARCHAR')} AS {c}" for c in STAGED_COLUMNS)
    path = workspace / f"{name}.parquet"
    named = f"({query}) AS e ({', '.join(_EVENT)})"
    written = copy_to_parquet(engine, f"SELECT {columns} FROM {named} ORDER BY occurred_at", path)
    return Staged(path, read=max(rows, written), rows=written)


def _structures(engine: duckdb.DuckDBPyConnection, store: Store, campus: Campus) -> str:
    """SQL of events for courses whose activities that can be completed are not those known.

    Moodle does not say since when; so they are as of now.
    """
    with store.transaction(Scope(campus.slug)) as conn:
        known = course_structures(conn, campus.id)
    engine.register(
        "known_",
        pa.table(
            {
                "course_id": pa.array(list(known), pa.string()),
                "items": pa.array(list(known.values()), pa.string()),
            }
        ),
    )
    now_s = int(time.time())
    return f"""
    SELECT course || ':{now_s}', 'CourseStructure', '{now_s}', NULL::VARCHAR, course, NULL::VARCHAR,
        json_object('completable', len(ids), 'activities', ids)
    FROM (
        SELECT course, coalesce(list(id ORDER BY id::BIGINT) FILTER (
            WHERE completion <> '0' AND deletioninprogress = '0'), []) AS ids
        FROM course_modules GROUP BY course
    ) LEFT JOIN known_ ON known_.course_id = course
    WHERE array_to_string(ids, chr(31)) IS DISTINCT FROM items
        AND (len(ids) > 0 OR known_.course_id IS NOT NULL)"""


def _read_cursor(store: Store, campus: Campus, table: str) -> int:
    with store.transaction(Scope(campus.slug)) as conn:
        found = conn.execute(
            text(
                "SELECT last_id FROM theon.intake_cursors"
                " WHERE campus_id = :campus AND source = :source"
            ),
            {"campus": campus.id, "source": f"{SOURCE_MOODLE_DATABASE}:{table}"},
        ).scalar_one_or_none()
    return int(found or 0)


def _move_cursor(store: Store, campus: Campus, table: str, second: int) -> None:
    with store.transaction(Scope(campus.slug)) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.intake_cursors AS known (campus_id, source, last_id)"
                " VALUES (:campus, :source, :second) ON CONFLICT (campus_id, source)"
                " DO UPDATE SET updated_at = now(),"
                " last_id = greatest(known.last_id, excluded.last_id)"
            ),
            {
                "campus": campus.id,
                "source": f"{SOURCE_MOODLE_DATABASE}:{table}",
                "second": second,
            },
        )
