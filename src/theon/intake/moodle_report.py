"""Road b: the report that an administrator downloads from Moodle's Logs page.

A report has no ids. The person, the course and the course module are read from Description,
whose sentences are English whatever the language of the site; the event from its labels,
by way of `moodle_event_labels.csv`. No name leaves this module.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import duckdb
import pyarrow as pa

from theon.errors import InputError
from theon.events.schema import SOURCE_MOODLE_REPORT
from theon.intake.report_tables import Reject, ReportTable, load_report
from theon.intake.report_times import ReportTimes, read_times
from theon.intake.staged import (
    MOST_LISTED,
    STAGED_COLUMNS,
    Staged,
    copy_to_parquet,
    rejects_table,
)
from theon.lake.engine import open_engine, sql_text
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.settings import Settings

LABELS_FILE = "moodle_event_labels.csv"
UNKNOWN_EVENT = "moodle-report:"
NOBODY = "-"  # how a report shows that there is no user
SHOWN_LABELS = 3
# A course's report may name another course now and then: the one it was copied from.
MOST_OTHER_COURSES = 0.2
DATABASE_ROAD = "the database itself tells it (--format moodle-db)"

# Sentences of Moodle's events. What begins otherwise ("A notification was sent by the
# system to the user with id …") names no doer.
PERSON = r"^The user (?:with )?(?:the )?id:? '?(-?\d+)'?"
COURSE = r"course with (?:the )?id:? '?(\d+)'?"
MODULE = r"course module (?:with )?(?:the )?id:?\s+'?(\d+)'?"


def stage_report(
    path: Path,
    workspace: Path,
    settings: Settings,
    *,
    timezone: str,
    course: str | None = None,
    progress: ProgressReporter | None = None,
) -> Staged:
    """Read the report `path` into `workspace`/events.parquet.

    Args:
        path: CSV (plain or gzip), XLSX or JSON as Moodle writes them.
        workspace: folder for the staged file; the caller removes it.
        settings: memory and threads of the engine.
        timezone: IANA zone of the times in the report: the campus's.
        course: id of the course whose report this is; None: a report of the whole site.
        progress: gets one step, in rows.

    Returns:
        Rows in the order of the file, event ids `report:<hash>:<n>`, with `@<course>` if a
        course is given: the n-th of rows that agree in what decides the event.

    Raises:
        InputError: the file is no report, its times cannot be read, `course` is no id, or the
            rows name other courses.
    """
    if course is not None and not (course.isascii() and course.isdigit()):
        raise InputError(
            f"{course!r} is no course id",
            where="--course",
            next_step="Give the number that stands behind id= in the address of the course page.",
        )
    reporter = progress or SilentProgress()
    with (
        open_engine(settings) as engine,
        reporter.step(f"Reading {path.name}", unit="rows") as step,
    ):
        table = load_report(engine, path)
        times = read_times(engine, str(path), timezone)
        step.total(len(times.local_s))
        _resolve(engine, times, course)
        if course is not None:
            _refuse_other_course(engine, path, course)
        target = workspace / "events.parquet"
        rows = copy_to_parquet(engine, _EVENTS, target)
        step.advance(rows)
        rejected, rejects = _rejects(engine, table, times)
        notes = tuple(_notes(engine, table, times, course))
    return Staged(
        target,
        read=len(times.local_s) + len(table.malformed),
        rows=rows,
        rejected=rejected,
        rejects=rejects,
        notes=notes,
    )


def _resolve(engine: duckdb.DuckDBPyConnection, times: ReportTimes, course: str | None) -> None:
    """Make the table `resolved`: each row with time, person, course and event."""
    engine.register(
        "times",
        pa.table({"local_s": times.local_s, "utc_s": times.utc_s, "n": range(len(times.utc_s))}),
    )
    engine.execute(_with_labels())
    given = sql_text(course) if course else "NULL::VARCHAR"
    engine.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE resolved AS
        WITH rows_ AS (
            SELECT r.*, t.local_s, t.utc_s,
                -- Only a person's own name may contain ' as '; that one also stands alone.
                contains(full_name, ' as ') AND full_name NOT IN (
                    SELECT DISTINCT affected FROM report WHERE affected IS NOT NULL
                ) AS by_other,
                nullif(regexp_extract(description, '{_sql(PERSON)}', 1), '') AS person_named,
                nullif(regexp_extract(description, '{_sql(COURSE)}', 1), '') AS course_named,
                nullif(regexp_extract(description, '{_sql(MODULE)}', 1), '') AS module_id
            FROM report AS r
            JOIN (SELECT local_s, utc_s, n FROM times) AS t ON t.n = r.record
        ),
        usual AS (
            SELECT person_named, mode(full_name) AS usual_name FROM rows_
            WHERE NOT coalesce(by_other, false) GROUP BY person_named
        ),
        hashed AS (
            SELECT *,
                -- A task that acts for somebody says their id, and its own name as the doer's.
                CASE WHEN by_other OR full_name = affected OR usual_name IS DISTINCT FROM affected
                    OR person_named[1] = '-' OR person_named = '0'
                THEN person_named END AS user_id,
                md5(concat_ws(chr(31), local_s, coalesce(component, ''),
                coalesce(event, ''), coalesce(description, ''), coalesce(origin, ''),
                coalesce(ip, ''), coalesce(by_other, false)::INT)) AS hash
            FROM rows_ LEFT JOIN usual USING (person_named) WHERE utc_s >= 0
        ),
        named AS (
            SELECT h.record, replace(l.event_name, '{{}}',
                coalesce(regexp_extract(h.description, l.description, 1), '')) AS event_name
            FROM hashed AS h JOIN labels AS l
            ON (l.event = h.event OR l.event IS NULL)
                AND (l.component = h.component OR l.component IS NULL)
            WHERE (l.description IS NULL OR regexp_matches(h.description, l.description))
                AND (l.context IS NULL OR regexp_matches(h.context, l.context))
            QUALIFY row_number() OVER (
                PARTITION BY h.record ORDER BY l.component IS NULL, l.event IS NULL, l.line) = 1
        )
        SELECT h.*, n.event_name,
            coalesce({given}, course_named) AS course_id,
            'report:' || hash || ':' || row_number() OVER (PARTITION BY hash ORDER BY h.record)
                || {sql_text(f"@{course}" if course else "")} AS event_id
        FROM hashed AS h LEFT JOIN named AS n USING (record)
        """
    )


def _refuse_other_course(engine: duckdb.DuckDBPyConnection, path: Path, course: str) -> None:
    """Refuse a report whose sentences speak of other courses: all rows would be misplaced."""
    named = engine.execute(
        "SELECT course_named, count(*) FROM resolved WHERE course_named IS NOT NULL "
        "GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    others = sum(count for name, count in named if name != course)
    if others <= MOST_OTHER_COURSES * sum(count for _, count in named):
        return
    shown = ", ".join(f"{name} ({count} rows)" for name, count in named[:SHOWN_LABELS])
    raise InputError(
        f"this is not the report of course {course} alone: its rows name course {shown}",
        where=str(path),
        next_step="Give the course it was downloaded for, or leave --course out for a report "
        "of the whole site.",
    )


def _sql(pattern: str) -> str:
    return pattern.replace("'", "''")


def _with_labels() -> str:
    file = resources.files("theon.intake").joinpath(LABELS_FILE)
    return (
        "CREATE OR REPLACE TEMP TABLE labels AS SELECT row_number() OVER () AS line, * FROM "
        f"read_csv({sql_text(str(file))}, header = true, all_varchar = true, delim = ',', "
        "quote = '\"', escape = '\"', nullstr = '')"
    )


_KNOWN = "event_name IS NOT NULL"
_LAST = "split_part(event_name, '\\', 4)"  # '\mod_forum\event\post_created' -> 'post_created'
_COLUMNS = {
    "event_id": "event_id",
    "source": f"'{SOURCE_MOODLE_REPORT}'",
    "occurred_at": "make_timestamptz(utc_s * 1000000)",
    "user_id": "user_id",
    "course_id": "course_id",
    "event_name": f"coalesce(event_name, '{UNKNOWN_EVENT}' || coalesce(component, '') || '/' || "
    "coalesce(event, ''))",
    "component": "nullif(split_part(event_name, '\\', 2), '')",
    # As Moodle itself takes a class name apart: the last word is the action.
    "action": f"CASE WHEN {_KNOWN} THEN regexp_extract({_LAST}, '_([a-z]+)$', 1) END",
    "target": f"CASE WHEN {_KNOWN} THEN regexp_replace({_LAST}, '_[a-z]+$', '') END",
    "context_level": "CASE WHEN module_id IS NOT NULL THEN 70 END",
    "context_instance_id": "try_cast(module_id AS BIGINT)",
    "real_user_id": "CASE WHEN by_other THEN '?' END",
    "origin": f"nullif(lower(origin), '{NOBODY}')",
    "ip": f"nullif(ip, '{NOBODY}')",
    # A context of a person is their name, and so may be part of any sentence.
    "other": "json_object("
    "'description', CASE WHEN NOT coalesce(contains(description, full_name), false) "
    "AND NOT coalesce(contains(description, affected), false) "
    "AND NOT starts_with(description, 'Login failed') THEN description END, "
    "'context', CASE WHEN module_id IS NOT NULL THEN context END)::VARCHAR",
}
_TYPES = {"edulevel": "SMALLINT", "context_id": "BIGINT", "anonymous": "BOOLEAN"}
_SELECTED = (
    (name, _COLUMNS.get(name) or f"NULL::{_TYPES.get(name, 'VARCHAR')}") for name in STAGED_COLUMNS
)
_EVENTS = (
    f"SELECT {', '.join(f'{sql} AS {name}' for name, sql in _SELECTED)} "
    "FROM resolved ORDER BY record"
)


def _rejects(
    engine: duckdb.DuckDBPyConnection, table: ReportTable, times: ReportTimes
) -> tuple[int, pa.Table]:
    bad = [int(record) for record in (times.reason != "").nonzero()[0]]
    listed = bad[:MOST_LISTED]
    rows: list[Reject] = list(table.malformed[:MOST_LISTED])
    if listed:
        values = dict(
            engine.execute(
                "SELECT record, time FROM report WHERE record IN (SELECT unnest(?))", [listed]
            ).fetchall()
        )
        rows += [
            (line, str(times.reason[record]), values.get(record), text)
            for record, (line, _, _, text) in zip(
                listed, table.originals(engine, listed), strict=True
            )
        ]
    rows.sort(key=lambda row: row[0] or 0)
    return len(bad) + len(table.malformed), rejects_table(rows)


def _notes(
    engine: duckdb.DuckDBPyConnection, table: ReportTable, times: ReportTimes, course: str | None
) -> Iterator[str]:
    """What this report could not tell, one sentence each, with counts."""
    at_screen = "user_id IS NOT NULL AND NOT by_other AND lower(origin) IN ('web', 'ws')"
    maybe_hidden = "split_part(event_name, '\\', 2)"
    row = engine.execute(
        f"""
        SELECT count(*), count(*) FILTER (user_id IS NULL),
            count(*) FILTER (course_id IS NULL AND module_id IS NOT NULL AND {at_screen}),
            count(*) FILTER ({at_screen} AND (starts_with({maybe_hidden}, 'assignsubmission_')
                OR {maybe_hidden} IN ('mod_assign', 'mod_feedback', 'mod_survey'))),
            count(*) FILTER (event_name IS NULL)
        FROM resolved
        """
    ).fetchone()
    total, nobody, no_course, maybe_anonymous, unknown = row or (0, 0, 0, 0, 0)
    if not table.english:
        yield (
            f"The report is in a language other than English: its {total} rows were taken by the "
            f"order of the columns, and event names that could not be read are kept as they "
            f"stand; {DATABASE_ROAD}."
        )
    if unknown:
        yield _unknown_labels(engine, unknown)
    if no_course and course is None:
        yield (
            f"A report of the whole site does not say the course of a module: {no_course} of "
            f"{total} rows count for no course; give --course with the report of one course, "
            f"or {DATABASE_ROAD}."
        )
    if maybe_anonymous:
        yield (
            f"A report does not say which rows are anonymous: {maybe_anonymous} rows of "
            f"assignments and feedback may be and were taken as not; {DATABASE_ROAD}."
        )
    if nobody:
        yield (
            f"{nobody} of {total} rows do not say in Description who did it and count for "
            f"nobody; {DATABASE_ROAD}."
        )
    if times.unsure:
        yield (
            f"{times.unsure} rows lie in the hour that clocks repeat and nothing in the file "
            f"tells which of the two; they were put into the first; {DATABASE_ROAD}."
        )
    if times.whole_minutes:
        yield (
            f"The times of the report have no seconds: time spent is rough in all {total} rows; "
            f"{DATABASE_ROAD}."
        )


def _unknown_labels(engine: duckdb.DuckDBPyConnection, unknown: int) -> str:
    kinds = engine.execute(
        "SELECT coalesce(component, '') || ' / ' || coalesce(event, ''), count(*) FROM resolved "
        "WHERE event_name IS NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    shown = ", ".join(f"{label!r} ({count})" for label, count in kinds[:SHOWN_LABELS])
    more = " and others" if len(kinds) > SHOWN_LABELS else ""
    return (
        f"{unknown} rows of {len(kinds)} kinds have an event that is not known by its label: "
        f"{shown}{more}; they are kept under that label and count as actions only; "
        f"{DATABASE_ROAD}."
    )
