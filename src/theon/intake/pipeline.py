"""From a source to the lake, in five steps: stage, check, append, observe, record."""

import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from theon.errors import ConflictError, InputError, TheonError, UnavailableError
from theon.events import outcomes
from theon.events.activity import load_rules
from theon.events.retractions import NAMING_EVENTS
from theon.intake.event_ids import note_lake_ids
from theon.intake.intents import is_intended, settle_intents
from theon.intake.json_files import EDX, JSON_FORMATS, stage_json
from theon.intake.moodle_database import stage_database, stage_database_outcomes
from theon.intake.moodle_logstore import stage_logstore
from theon.intake.moodle_report import stage_report
from theon.intake.other_site import refuse_other_site
from theon.intake.retracting import settle_file
from theon.intake.reused import without_reused
from theon.intake.runs import IngestSummary, Run, delivery_source
from theon.intake.staged import Staged, copy_to_parquet
from theon.jobs.context import clean
from theon.lake.engine import open_engine, sql_list, sql_text
from theon.lake.lake_ids import LakeIds
from theon.lake.table import EventLake
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.outcomes.observer import observe
from theon.roster.campuses import Campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

LOGSTORE, REPORT, DATABASE = "moodle-logstore", "moodle-report", "moodle-db"
FORMATS = (LOGSTORE, REPORT, DATABASE, *JSON_FORMATS)
ACTIVITY = "activity"
SORTED_EVENTS = 250_000
OBSERVED_EVENTS = 20_000  # in a transaction, which keeps other observers of the campus waiting


def ingest(
    store: Store,
    lake: EventLake,
    settings: Settings,
    *,
    location: str,
    format: str,
    campus: str,
    course: str | None = None,
    prefix: str | None = None,
    progress: ProgressReporter | None = None,
    only: Sequence[tuple[int, int]] | None = None,
) -> IngestSummary:
    """Bring the events of a source into the lake; again, it counts nothing twice.

    Args:
        store: book of runs, roster, cursors.
        lake: where the events go.
        settings: engine, data folder.
        location: a file, a folder of JSON files, or the URL of a Moodle database.
        format: one of `FORMATS`.
        campus: slug of the campus the events belong to.
        course: of a report: the course it was downloaded for.
        prefix: of a database: what Moodle's table names begin with; found out unless given.
        progress: gets the steps.
        only: of a database: these ranges of log ids, first and last inclusive.

    Returns:
        The counts, notes and rejects of this run.

    Raises:
        InputError: the campus, the format or the source is not what it is said to be.
        UnavailableError: a database went away; what was appended stays, the message says
            where it stopped.
        ConflictError: another process is reading the same source into this campus.
    """
    _check_options(format, course)
    owner = get_campus(store, campus)
    reporter = progress or SilentProgress()
    shown = without_password(location)
    with (
        _only_reader(settings, f"{campus} {format} {shown}", shown),
        _opened(store, lake, settings, owner, format, shown) as run,
        _workspace(run.workspace) as workspace,
    ):
        for staged in _stages(
            run,
            lake,
            workspace,
            location,
            format,
            course=course,
            prefix=prefix,
            progress=reporter,
            only=only,
        ):
            reasons = count_reasons(staged, settings)
            added = lake.append(staged.path, owner.slug, reporter, name=run.intend(staged))
            _observe(store, settings, owner, staged, reporter)
            settle_file(store, settings, owner, staged.path)
            if format in JSON_FORMATS:
                _note_ids(settings, owner, staged)
            run.record(staged, added, reasons)
            staged.path.unlink(missing_ok=True)
        return run.finish()


def _observe(
    store: Store, settings: Settings, campus: Campus, staged: Staged, progress: ProgressReporter
) -> None:
    """Let the observers of outcomes see what is in the lake now.

    Also what was there before: a run that died between the two is made whole by the next.
    """
    told = staged.path.with_suffix(".told.parquet")
    with open_engine(settings) as engine:
        number = copy_to_parquet(engine, _told_sql(staged.path), told)
        if number:
            with progress.step("Outcomes", number, "events") as step:
                for batch in _by_learners(engine, told, number):
                    with store.transaction(Scope(campus.slug)) as conn:
                        observe(conn, campus.id, campus.timezone, pa.Table.from_batches([batch]))
                    step.advance(batch.num_rows)
    told.unlink()


def _told_sql(staged: Path) -> str:
    """SQL of the events that tell of outcomes, or of what is taken back."""
    names = ", ".join(map(sql_text, (*outcomes.load_rules().event_names, *NAMING_EVENTS)))
    return f"SELECT * FROM read_parquet({sql_text(staged)}) WHERE event_name IN ({names})"


def _by_learners(
    engine: duckdb.DuckDBPyConnection, told: Path, number: int
) -> Iterator[pa.RecordBatch]:
    """Events in batches, those of a learner in a course together.

    So what rests on them is computed once for each, and not for every batch of a file that is in
    the order of time. Many are sorted part by part: to sort all together takes memory.
    """
    parts = -(-number // SORTED_EVENTS)
    for part in range(parts):
        yield from engine.sql(
            f"SELECT * FROM read_parquet({sql_text(told)})"
            f" WHERE hash(course_id, user_id) % {parts} = {part} ORDER BY course_id, user_id"
        ).to_arrow_reader(OBSERVED_EVENTS)


def _note_ids(settings: Settings, campus: Campus, staged: Staged) -> None:
    """Let the door know what has come, and of what it refuses to take again the ids too.

    Last, as what it knows it does not look into: all else must have been done by then.
    """
    lake_ids = LakeIds(settings)
    with open_engine(settings) as engine:
        note_lake_ids(lake_ids, campus, engine, f"read_parquet({sql_text(staged.path)})")
        if staged.unread is not None and staged.unread.standing.num_rows:
            engine.register("standing_", staged.unread.standing)
            note_lake_ids(lake_ids, campus, engine, "standing_")


@dataclass(frozen=True)
class FileCompared:
    """A file beside the lake, in rows and events.

    Attributes:
        read: rows of the file.
        known: events that the lake holds, and rows that the file repeats.
        missing: events that the lake does not hold.
        rejected: rows that cannot be read.
        incomplete: why not all of it was compared ('' if it was).
    """

    read: int
    known: int
    missing: int
    rejected: int
    incomplete: str = ""


def compare_file(
    store: Store,
    lake: EventLake,
    settings: Settings,
    *,
    location: str,
    format: str,
    campus: str,
    course: str | None = None,
    progress: ProgressReporter | None = None,
) -> FileCompared:
    """Read a file as `ingest` does, and count what the lake lacks; nothing is changed.

    Raises:
        InputError: as `ingest`.
    """
    _check_options(format, course)
    owner = get_campus(store, campus)
    reporter = progress or SilentProgress()
    folder = settings.home_dir / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(store, settings, owner, format, without_password(location), id=0)  # of no book
    read = known = missing = rejected = 0
    incomplete: list[str] = []
    with tempfile.TemporaryDirectory(prefix="compare-", dir=folder) as workspace:
        for staged in _stages(
            run,
            lake,
            Path(workspace),
            location,
            format,
            course=course,
            prefix=None,
            progress=reporter,
        ):
            new = _count_new(lake, settings, owner.slug, staged)
            read += staged.read
            known += staged.known + staged.rows - new
            missing += new
            rejected += staged.rejected
            incomplete.append(staged.incomplete)
            staged.path.unlink(missing_ok=True)
    return FileCompared(read, known, missing, rejected, " ".join(filter(None, incomplete)))


def _count_new(lake: EventLake, settings: Settings, campus: str, staged: Staged) -> int:
    """How many staged events the lake does not hold; the same event has the same time."""
    source = f"read_parquet({sql_text(staged.path)})"
    with open_engine(settings) as engine:
        near = lake.files_near(engine, campus, staged.path)
        known = f"read_parquet({sql_list(near)}, hive_partitioning = false)"
        where = f"WHERE NOT EXISTS (FROM {known} k WHERE k.event_id = s.event_id)" if near else ""
        [(rows,)] = engine.sql(
            f"SELECT count(DISTINCT event_id) FROM {source} s {where}"
        ).fetchall()
    return int(rows)


def _check_options(source_format: str, course: str | None) -> None:
    if source_format not in FORMATS:
        raise InputError(
            f"there is no format {source_format!r}",
            where="--format",
            next_step=f"Use one of {', '.join(FORMATS)}; docs/guides/moodle.md and sources.md "
            "describe them.",
        )
    if course is not None and source_format != REPORT:
        raise InputError(
            f"a course belongs to a report; {source_format} says the course of each row itself",
            where="--course",
            next_step="Leave --course out.",
        )


def _stages(
    run: Run,
    lake: EventLake,
    workspace: Path,
    location: str,
    source_format: str,
    *,
    course: str | None,
    prefix: str | None,
    progress: ProgressReporter,
    only: Sequence[tuple[int, int]] | None = None,
) -> Iterator[Staged]:
    """The batches of a source; each is in the lake when the next one is asked for."""
    settings, campus = run.settings, run.campus
    if source_format == LOGSTORE:
        staged = stage_logstore(Path(location), workspace, settings, progress)
        yield refuse_other_site(lake, settings, campus, staged, location)
    elif source_format == REPORT:
        yield stage_report(
            Path(location),
            workspace,
            settings,
            timezone=campus.timezone,
            course=course,
            progress=progress,
        )
    elif source_format in JSON_FORMATS:
        for staged in stage_json(Path(location), source_format, workspace, progress):
            # The id of a tracking line is its content, and cannot stand for another one.
            given = source_format != EDX
            yield without_reused(run.store, lake, settings, campus, staged) if given else staged
    else:
        chunks = stage_database(
            location,
            workspace,
            settings,
            run.store,
            campus,
            prefix=prefix,
            progress=progress,
            only=only,
        )
        for number, staged in enumerate(chunks):
            # A database says which site it is; files that came before it did not.
            where = run.location
            yield staged if number else refuse_other_site(lake, settings, campus, staged, where)
        if only is None:  # of some ids of the log, the log alone is wanted
            yield from stage_database_outcomes(
                location, workspace, settings, run.store, campus, prefix=prefix, progress=progress
            )


def count_reasons(staged: Staged, settings: Settings) -> dict[str, int]:
    """Staged rows by why they do not count as activity; `activity` for those that do."""
    with open_engine(settings) as engine:
        rows = engine.execute(
            f"SELECT coalesce({load_rules().reason_sql()}, '{ACTIVITY}'), count(*) "
            f"FROM read_parquet({sql_text(staged.path)}) GROUP BY ALL ORDER BY 2 DESC, 1"
        ).fetchall()
    return {reason: int(count) for reason, count in rows}


@contextmanager
def _only_reader(settings: Settings, source: str, shown: str) -> Iterator[None]:
    """Hold the lock of a source; the system frees it when the process ends, however it does."""
    folder = settings.home_dir / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    with (folder / f"reading-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                "another process is reading this source into this campus",
                where=shown,
                next_step="Wait for it to end; then run the command again if there is more.",
            ) from error
        yield


@contextmanager
def _opened(
    store: Store,
    lake: EventLake,
    settings: Settings,
    campus: Campus,
    source_format: str,
    location: str,
) -> Iterator[Run]:
    """A run in the book; how it ends is written down also when it does not end well."""
    intents = (store, lake, settings, campus, delivery_source(source_format), location)
    settle_intents(*intents)
    run = Run.begin(store, settings, campus, source_format=source_format, location=location)
    try:
        try:
            yield run
        except BaseException:
            with suppress(Exception):  # else the next run of the source does it
                settle_intents(*intents)
            raise
    except TheonError as error:
        run.fail("failed", error.message)
        raise
    except OSError as error:
        run.fail("failed", str(error))
        raise _cannot_go_on(error, location) from error
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        run.fail(state, f"{type(error).__name__}: {error}")
        raise


def _cannot_go_on(error: OSError, location: str) -> UnavailableError:
    """What to say where the system fails in the middle: the disk is full, a share went away."""
    return UnavailableError(
        f"the system says {error.strerror or error}",
        where=clean(str(error.filename or location)),
        next_step="Mend that and run the same command again; what is in the lake already is "
        "recognised.",
    )


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A folder for staged files, gone when the run ends and what it brought is recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not is_intended(folder):
            shutil.rmtree(folder, ignore_errors=True)


def without_password(location: str) -> str:
    """A location that may be shown and stored: a URL loses its password and options."""
    if "://" not in location:
        return clean(str(Path(location).expanduser().resolve()))
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):
        return location.split("://", 1)[0] + "://…"
    return url.set(query={}).render_as_string(hide_password=True)
