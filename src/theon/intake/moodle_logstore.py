"""Road a: a CSV export of Moodle's table `mdl_logstore_standard_log`.

One pass of DuckDB's CSV reader turns the file into the staged Parquet file. A row that
does not fit gets a null event id there; only when such a row exists (or an id is there
twice) is the file looked at again, for the line numbers.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from theon.errors import InputError
from theon.intake.moodle_rows import AHEAD_S, NEEDED, OPTIONAL, canonical_sql
from theon.intake.sifting import Sifter
from theon.intake.sniff import (
    DATABASE_ROAD,
    GZIP_MAGIC,
    Head,
    first_record,
    guess_delimiter,
    read_head,
    unpack_what_is_there,
)
from theon.intake.staged import Staged, copy_to_parquet
from theon.lake.engine import open_engine, sql_text
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.settings import Settings

NULL_WORDS = "['', 'NULL', '\\N']"


@dataclass(frozen=True)
class Dialect:
    """How the file is written.

    Attributes:
        columns: names from the header, lower case, in the file's order.
        delimiter: `,`, `;` or tab.
        quoted: fields may be in double quotes; else the file is in the manner of
            `mysql --batch` and `COPY … TO`: no quotes, backslashes before special characters.
    """

    columns: tuple[str, ...]
    delimiter: str
    quoted: bool


def stage_logstore(
    path: Path,
    workspace: Path,
    settings: Settings,
    progress: ProgressReporter | None = None,
) -> Staged:
    """Read the logstore file `path` into `workspace`/events.parquet.

    Args:
        path: CSV, plain or packed with gzip; UTF-8.
        workspace: folder for the staged file; the caller removes it.
        settings: memory and threads of the engine.
        progress: gets one step, in per cent of the file.

    Returns:
        Good rows in the order of the file, event ids `moodle:<id>`; bad rows with line
        and reason. A packed file that was cut off gives the rows it still holds and says
        so in `incomplete`.

    Raises:
        InputError: the file is not a logstore export; says what it is instead.
    """
    dialect = read_dialect(read_head(path))
    reporter = progress or SilentProgress()
    try:
        staged = _stage(settings, path, dialect, workspace, reporter)
    except duckdb.IOException as error:
        if "GZIP" not in str(error):
            raise
        staged = _stage_the_rest(settings, path, dialect, workspace, reporter)
    if staged.read == 0:
        raise InputError(
            "the file has a header and no row",
            where=str(path),
            next_step="Export the table again; check the condition of the export.",
        )
    return staged


def read_dialect(head: Head) -> Dialect:
    """Find out how a logstore file is written, from its beginning.

    Raises:
        InputError: the first line is not the header of a logstore; says what it looks like.
    """
    delimiter = guess_delimiter(head.text)
    names = tuple(name.strip().lower() for name in first_record(head.text, delimiter))
    where = f"{head.path}, line 1"
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise _not_a_logstore(names, missing, where)
    doubled = sorted({n for n in (*NEEDED, *OPTIONAL) if names.count(n) > 1})
    if doubled:
        raise InputError(
            f"the header names a column twice: {', '.join(doubled)}",
            where=where,
            next_step="Export the table again with each column once.",
        )
    # `mysql --batch` and PostgreSQL's COPY in text format double the backslashes of
    # '\core\event\…' and quote nothing.
    bare = delimiter == "\t" and "\t\\\\" in head.text
    return Dialect(names, delimiter, quoted=not bare)


def _not_a_logstore(names: tuple[str, ...], missing: list[str], where: str) -> InputError:
    if {"event name", "description"} <= set(names):
        return InputError(
            "this is a report downloaded from Moodle's Logs page, not the log table",
            where=where,
            next_step="Use --format moodle-report.",
        )
    if names and names[0].lstrip("-").isdigit():
        return InputError(
            "the file has no header: its first line is a row",
            where=where,
            next_step="Export with the column names as first line (psql: CSV HEADER).",
        )
    shown = ", ".join(names)[:200]
    return InputError(
        f"this is no export of mdl_logstore_standard_log: there is no column "
        f"{', '.join(missing)}; the first line reads {shown!r}",
        where=where,
        next_step="docs/guides/moodle.md shows how to export the table.",
    )


def _stage(
    settings: Settings,
    path: Path,
    dialect: Dialect,
    workspace: Path,
    progress: ProgressReporter,
) -> Staged:
    latest_s = int(time.time()) + AHEAD_S

    def events_sql(file: Path) -> str:
        return canonical_sql(
            _reader_sql(file, dialect),
            set(dialect.columns),
            escaped=not dialect.quoted,
            latest_s=latest_s,
        )

    everything = workspace / "everything.parquet"
    with open_engine(settings) as engine:
        with progress.step(f"Reading {path.name}", unit="%") as step:
            copy_to_parquet(engine, events_sql(path), everything, step)
        sifter = Sifter(
            engine=engine,
            source=path,
            quoted=dialect.quoted,
            header=dialect.delimiter.join(dialect.columns),
            reader_sql=lambda file: _reader_sql(file, dialect),
            events_sql=events_sql,
            latest_s=latest_s,
        )
        staged = sifter.sift(everything, workspace / "events.parquet")
    if _ends_with_line_break(path):
        return staged
    return replace(
        staged,
        notes=(
            *staged.notes,
            "The last line has no line break at its end: if the export was cut off there, its "
            f"last row may be wrong and rows are missing; export it again, {DATABASE_ROAD}.",
        ),
    )


def _stage_the_rest(
    settings: Settings,
    path: Path,
    dialect: Dialect,
    workspace: Path,
    progress: ProgressReporter,
) -> Staged:
    """Stage what a cut or damaged packed file still holds."""
    unpacked = workspace / "unpacked.csv"
    tail = unpack_what_is_there(path, unpacked)
    staged = _stage(settings, unpacked, dialect, workspace, progress)
    unpacked.unlink()
    return staged.with_reject(
        tail.line_number,
        "cut off",
        "the packed file ends here, in the middle",
        tail.text,
        incomplete=f"{path.name} is cut off or damaged: the rows up to line "
        f"{tail.line_number - 1} were read, what followed is missing. Copy or export the file "
        f"again and run the same command; rows that are in already are recognised.",
    )


def _reader_sql(path: Path, dialect: Dialect) -> str:
    columns = ", ".join(
        f"{sql_text(name if name in NEEDED + OPTIONAL else f'unused_{i}')}: 'VARCHAR'"
        for i, name in enumerate(dialect.columns)
    )
    with path.open("rb") as stream:
        packed = stream.read(2) == GZIP_MAGIC
    quote = "'\"'" if dialect.quoted else "''"
    return (
        f"read_csv({sql_text(path)}, auto_detect = false, header = true, "
        f"columns = {{{columns}}}, delim = {sql_text(dialect.delimiter)}, quote = {quote}, "
        f"escape = {quote}, nullstr = {NULL_WORDS}, store_rejects = true, "
        f"compression = '{'gzip' if packed else 'none'}')"
    )


def _ends_with_line_break(path: Path) -> bool:
    """Whether a plain file ends with a line break; a packed one says itself if it was cut."""
    with path.open("rb") as stream:
        if stream.read(2) == GZIP_MAGIC:
            return True
        stream.seek(-1, 2)
        return stream.read(1) in b"\r\n"
