"""Road c: Moodle's own database, read by log id in chunks, from where the last run stopped.

A chunk is written by the server as CSV and then goes the way of a log file, so that both
roads give the same events. The cursor moves when the chunk is in the lake; a crash between
the two reads the chunk once more and finds it known.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
from sqlalchemy import text

from theon.errors import InputError
from theon.intake.moodle_logstore import stage_logstore
from theon.intake.moodle_outcomes import stage_outcomes
from theon.intake.moodle_rows import NEEDED, OPTIONAL
from theon.intake.moodle_sources import LOG_TABLE, MoodleSource, open_source
from theon.intake.staged import REJECT_SCHEMA, Staged
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.roster.campuses import Campus
from theon.roster.people_and_courses import upsert_courses, upsert_people
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

SOURCE = "moodle-db"
CHUNK_ROWS = 200_000
FRONT_PAGE, GUEST = 1, 1  # Moodle's course and user of these ids are no course and nobody


@dataclass(frozen=True)
class _Cursor:
    """Where reading stopped: the last log id in the lake, and of which site."""

    last_id: int
    site: str | None


def stage_database(
    location: str,
    workspace: Path,
    settings: Settings,
    store: Store,
    campus: Campus,
    *,
    prefix: str | None = None,
    progress: ProgressReporter | None = None,
    chunk_rows: int = CHUNK_ROWS,
    only: Sequence[tuple[int, int]] | None = None,
) -> Iterator[Staged]:
    """Read what is new in a Moodle database, chunk by chunk.

    Courses and people's ids go to the roster first. Each chunk that is yielded must be in
    the lake when the next is asked for: then the cursor moves past it.

    Args:
        location: postgresql:// or mysql:// URL; a user that may only read is enough.
        workspace: folder for staged files; the caller removes it.
        settings: engine; `moodle_reread_ids` behind the cursor are read again.
        store: roster and cursors.
        campus: whose events these are.
        prefix: what the table names begin with; found out unless given.
        progress: gets a step per chunk.
        chunk_rows: log rows per chunk.
        only: read these ranges of log ids, first and last inclusive, and nothing else; the cursor
            stays where it is.

    Raises:
        InputError: no log table, another site than before, or no right to read.
        UnavailableError: the database went away; says after which id.
    """
    reporter = progress or SilentProgress()
    with open_source(location) as source:
        log = _log_table(source, prefix)
        start = log.removesuffix(LOG_TABLE)
        site = source.setting(f"{start}config", "siteidentifier")
        cursor = _read_cursor(store, campus)
        _refuse_other_site(campus, cursor, site)
        if only is None:
            with reporter.step("Courses and people of Moodle", unit="tables") as step:
                _bring_roster(source, start, workspace, store, campus)
                step.advance(2)
        ranges: Sequence[tuple[int, int | None]] = only or [
            (max(cursor.last_id - settings.moodle_reread_ids, 0) + 1, None)
        ]
        for first, last in ranges:
            for upto, file in _chunks(source, log, first - 1, last, chunk_rows, workspace):
                yield _stage_chunk(file, workspace, settings, reporter)
                file.unlink()
                if only is None:
                    _move_cursor(store, campus, _Cursor(max(upto, cursor.last_id), site))


def _chunks(
    source: MoodleSource, log: str, after: int, last: int | None, rows: int, workspace: Path
) -> Iterator[tuple[int, Path]]:
    """Log rows after an id as files, each with the last id it reaches to."""
    known = source.columns(log)
    columns = [name for name in (*NEEDED, *OPTIONAL) if name in known]
    while last is None or after < last:
        with _stopped_after(after):
            upto = source.chunk_end(log, after, rows)
            if upto is None:
                return
            upto = upto if last is None else min(upto, last)
            file = workspace / f"log rows {after + 1} to {upto}.csv"
            source.copy(log, columns, after, upto, file)
        yield upto, file
        after = upto


@dataclass(frozen=True)
class Site:
    """A Moodle site as a campus knows it.

    Attributes:
        log: name of its log table.
        last_id: up to this log id it was read; 0 where it was not.
    """

    log: str
    last_id: int


def find_site(source: MoodleSource, store: Store, campus: Campus, prefix: str | None) -> Site:
    """The log of the site that a campus was read from.

    Raises:
        InputError: no log table, or another site than before.
    """
    log = _log_table(source, prefix)
    cursor = _read_cursor(store, campus)
    site = source.setting(f"{log.removesuffix(LOG_TABLE)}config", "siteidentifier")
    _refuse_other_site(campus, cursor, site)
    return Site(log, cursor.last_id)


def stage_database_outcomes(
    location: str,
    workspace: Path,
    settings: Settings,
    store: Store,
    campus: Campus,
    *,
    prefix: str | None = None,
    progress: ProgressReporter | None = None,
) -> Iterator[Staged]:
    """Read what changed in Moodle's tables of outcomes; `stage_database` comes first.

    Arguments and errors are the same.
    """
    with open_source(location) as source:
        start = _log_table(source, prefix).removesuffix(LOG_TABLE)
        yield from stage_outcomes(
            source, start, workspace, settings, store, campus, progress=progress
        )


def _log_table(source: MoodleSource, prefix: str | None) -> str:
    tables = source.tables()
    if prefix is not None and f"{prefix}{LOG_TABLE}" in tables:
        return f"{prefix}{LOG_TABLE}"
    if prefix is None and len(tables) == 1:
        return tables[0]
    prefixes = ", ".join(repr(name.removesuffix(LOG_TABLE)) for name in tables)
    if not tables:
        raise InputError(
            f"this database has no table …{LOG_TABLE} that this user may read",
            where="location",
            next_step="Check the name of the database and the user's right to read; in Moodle, "
            "the standard log must be enabled (Plugins, Logging).",
        )
    raise InputError(
        f"there is no table {prefix}{LOG_TABLE}"
        if prefix is not None
        else "several Moodle sites share this database",
        where="--prefix",
        next_step=f"Give --prefix; here are logs with {prefixes}.",
    )


def _refuse_other_site(campus: Campus, cursor: _Cursor, site: str | None) -> None:
    if cursor.site is None or site is None or cursor.site == site:
        return
    raise InputError(
        f"campus {campus.slug!r} has been read from another Moodle site: there the site "
        f"identifier is {cursor.site!r}, here {site!r}",
        where=f"campus {campus.slug}",
        next_step="Read each Moodle site into a campus of its own (`theon campus add`): log ids "
        "of two sites would be taken for one another.",
    )


@contextmanager
def _stopped_after(last_id: int) -> Iterator[None]:
    """Say where reading stopped when the database goes away."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        error.add_note(f"stopped after log id {last_id}")
        raise


def _stage_chunk(
    file: Path, workspace: Path, settings: Settings, progress: ProgressReporter
) -> Staged:
    staged = stage_logstore(file, workspace, settings, progress)
    # The lines of a passing file say nothing; the original text begins with the log id.
    nowhere = pa.nulls(staged.rejects.num_rows, pa.int64())
    rejects = staged.rejects.set_column(0, REJECT_SCHEMA.field("line_number"), nowhere)
    return replace(staged, rejects=rejects)


def _bring_roster(
    source: MoodleSource, prefix: str, workspace: Path, store: Store, campus: Campus
) -> None:
    courses = _table(
        source, f"{prefix}course", ["id", "shortname", "fullname", "visible"], workspace
    )
    upsert_courses(
        store,
        campus,
        pa.table(
            {
                "course_id": courses["id"],
                "short_name": courses["shortname"],
                "full_name": courses["fullname"],
                "visible": _flag(courses["visible"]),
            }
        ),
    )
    people = _table(source, f"{prefix}user", ["id", "deleted"], workspace, above=GUEST)
    upsert_people(
        store, campus, pa.table({"user_id": people["id"], "deleted": _flag(people["deleted"])})
    )


def _flag(column: "pa.ChunkedArray[Any]") -> "pa.ChunkedArray[Any]":
    return column.cast(pa.int64()).cast(pa.bool_())


def _table(
    source: MoodleSource,
    table: str,
    columns: list[str],
    workspace: Path,
    *,
    above: int = FRONT_PAGE,
) -> pa.Table:
    """Columns of a small table of Moodle, as text."""
    end = source.chunk_end(table, above, 1 << 40)
    if end is None:
        return pa.table({name: pa.array([], pa.string()) for name in columns})
    file = workspace / f"{table}.csv"
    source.copy(table, columns, above, end, file)
    rows = pacsv.read_csv(
        file,
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True
        ),
    )
    file.unlink()
    return rows


def _read_cursor(store: Store, campus: Campus) -> _Cursor:
    with store.transaction(Scope(campus.slug)) as conn:
        row = conn.execute(
            text(
                "SELECT last_id, site FROM theon.intake_cursors "
                "WHERE campus_id = :campus AND source = :source"
            ),
            {"campus": campus.id, "source": SOURCE},
        ).first()
    return _Cursor(int(row[0]), row[1]) if row else _Cursor(0, None)


def _move_cursor(store: Store, campus: Campus, cursor: _Cursor) -> None:
    with store.transaction(Scope(campus.slug)) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.intake_cursors AS known (campus_id, source, last_id, site) "
                "VALUES (:campus, :source, :last_id, :site) "
                "ON CONFLICT (campus_id, source) DO UPDATE SET updated_at = now(), "
                "site = excluded.site, last_id = greatest(known.last_id, excluded.last_id)"
            ),
            {
                "campus": campus.id,
                "source": SOURCE,
                "last_id": cursor.last_id,
                "site": cursor.site,
            },
        )
