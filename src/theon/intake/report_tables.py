"""A downloaded report as a table, whether it is CSV, XLSX or JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fastexcel
import numpy as np
import pyarrow as pa

from theon.errors import InputError
from theon.intake.lines import locate
from theon.intake.sifting import malformed_lines
from theon.intake.sniff import GZIP_MAGIC, Head, first_record, guess_delimiter, read_head
from theon.lake.engine import sql_text

# The columns of Moodle's Logs report, in its order. "Course" comes first in a report of all
# courses; a report in another language has the same columns under other names.
COLUMNS = {
    "time": "Time",
    "full_name": "User full name",
    "affected": "Affected user",
    "context": "Event context",
    "component": "Component",
    "event": "Event name",
    "description": "Description",
    "origin": "Origin",
    "ip": "IP address",
}
NEEDED = ("time", "component", "event", "description")
XLSX_MAGIC = b"PK\x03\x04"

Reject = tuple[int | None, str, str | None, str | None]


@dataclass(frozen=True)
class ReportTable:
    """What `load_report` found besides the rows.

    Attributes:
        kind: 'csv', 'xlsx' or 'json'.
        english: whether the column names are English.
        malformed: lines of a CSV file that are no rows.
    """

    path: Path
    kind: str
    english: bool
    malformed: tuple[Reject, ...] = ()
    regions: tuple[tuple[int, int], ...] = ()  # (byte position, bytes) of these lines

    def originals(self, engine: duckdb.DuckDBPyConnection, records: Sequence[int]) -> list[Reject]:
        """(line, '', None, original text) of rows of the table `report`, given by number."""
        wanted = np.array(records, dtype=np.int64)
        if self.kind == "csv":
            found = locate(self.path, wanted, list(self.regions), quoted=True)
            return [(f.line_number, "", None, f.text) for f in found if f.record >= 0]
        rows = engine.execute(
            f"SELECT record, to_json(struct_pack({', '.join(f'{c} := {c}' for c in COLUMNS)})) "
            f"FROM report WHERE record IN (SELECT unnest(?)) ORDER BY record",
            [list(records)],
        ).fetchall()
        # A sheet's row 1 is its header; JSON has no lines worth naming.
        return [(r + 2 if self.kind == "xlsx" else None, "", None, text) for r, text in rows]


def load_report(engine: duckdb.DuckDBPyConnection, path: Path) -> ReportTable:
    """Load the report `path` into the temporary table `report` of `engine`.

    The table has `record` (0 for the first row) and the columns of `COLUMNS`, as text;
    empty text is null.

    Raises:
        InputError: the file is no report; says what it is instead.
    """
    if not path.is_file():
        raise InputError(
            "there is no such file", where=str(path), next_step="Check the name and the folder."
        )
    with path.open("rb") as stream:
        beginning = stream.read(4096)
    if beginning.startswith(XLSX_MAGIC):
        table = _load_xlsx(engine, path)
    elif beginning.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        table = _load_json(engine, path)
    else:
        table = _load_csv(engine, path, read_head(path))
    found = engine.execute("SELECT count(*) FROM report").fetchone()
    if not found or (not found[0] and not table.malformed):
        raise InputError(
            "the report has no row",
            where=str(path),
            next_step="Download it again with less narrow filters.",
        )
    return table


def _positions(names: list[str], where: str) -> tuple[dict[str, int], bool]:
    """Which column is where, and whether the names are English."""
    plain = [name.strip().lower() for name in names]
    english = {key: title.lower() for key, title in COLUMNS.items()}
    if all(english[key] in plain for key in NEEDED):
        return {k: plain.index(t) for k, t in english.items() if t in plain}, True
    if {"eventname", "timecreated"} <= set(plain):
        raise InputError(
            "this is an export of the log table, not a report from the Logs page",
            where=where,
            next_step="Use --format moodle-logstore.",
        )
    if len(plain) in (len(COLUMNS), len(COLUMNS) + 1):
        first = len(plain) - len(COLUMNS)
        return {key: first + i for i, key in enumerate(COLUMNS)}, False
    raise InputError(
        f"this is no report from Moodle's Logs page; its columns are {', '.join(names)[:200]!r}",
        where=where,
        next_step="In the course or site: Reports, Logs, Get these logs, then download as CSV. "
        "docs/guides/moodle.md shows the way.",
    )


def _load_csv(engine: duckdb.DuckDBPyConnection, path: Path, head: Head) -> ReportTable:
    delimiter = guess_delimiter(head.text)
    names = first_record(head.text, delimiter)
    at, english = _positions(names, f"{path}, line 1")
    columns = ", ".join(f"'c{i}': 'VARCHAR'" for i in range(len(names)))
    with path.open("rb") as stream:
        packed = stream.read(2) == GZIP_MAGIC
    reader = (
        f"read_csv({sql_text(path)}, auto_detect = false, header = true, columns = {{{columns}}}, "
        f"delim = {sql_text(delimiter)}, quote = '\"', escape = '\"', store_rejects = true, "
        f"compression = '{'gzip' if packed else 'none'}')"
    )
    try:
        _fill(engine, f"SELECT row_number() OVER () - 1 AS record, * FROM {reader}", at)
    except duckdb.IOException as error:
        raise InputError(
            f"the file cannot be read to its end: {str(error).splitlines()[0]}",
            where=str(path),
            next_step="Download the report again.",
        ) from error
    malformed = malformed_lines(engine)
    regions = [(m.position, m.length) for m in malformed]
    located = locate(path, np.array([], dtype=np.int64), regions, quoted=True)
    rejects = tuple(
        (one.line_number, m.reason, m.detail, one.text)
        for m, one in zip(malformed, located, strict=True)
    )
    return ReportTable(path, "csv", english, rejects, tuple(regions))


def _load_xlsx(engine: duckdb.DuckDBPyConnection, path: Path) -> ReportTable:
    try:
        book = fastexcel.read_excel(path)
        sheet = book.load_sheet(0, dtypes="string")
        rows = pa.Table.from_batches([sheet.to_arrow()])
    except (fastexcel.FastExcelError, ValueError) as error:
        raise InputError(
            f"the Excel file cannot be read: {str(error).splitlines()[0]}",
            where=str(path),
            next_step="Download it again, or download the report as CSV.",
        ) from error
    at, english = _positions(rows.column_names, f"{path}, first sheet, row 1")
    rows = rows.rename_columns([f"c{i}" for i in range(rows.num_columns)])
    engine.register("sheet", rows)
    _fill(engine, "SELECT row_number() OVER () - 1 AS record, * FROM sheet", at)
    engine.unregister("sheet")
    return ReportTable(path, "xlsx", english)


def _load_json(engine: duckdb.DuckDBPyConnection, path: Path) -> ReportTable:
    where = str(path)
    try:
        sheets: Any = json.loads(path.read_text("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"the JSON is damaged or cut off: {error}",
            where=where,
            next_step="Download the report again, or download it as CSV.",
        ) from error
    # Moodle writes a list of sheets, each a list of rows; a flat list of rows is read as well.
    nested = (
        bool(sheets)
        and isinstance(sheets[0], list)
        and isinstance((sheets[0] or [None])[0], list | dict)
    )
    first = sheets[0][0] if nested else (sheets or [None])[0]
    path_to_rows = "$[*][*]" if nested else "$[*]"
    if isinstance(first, dict):
        names = list(first)
        at, english = _positions(names, where)
        # Moodle's own keys are the titles in lower case without blanks, or the titles.
        cells = {key: f"row_ ->> {sql_text(_pointer(names[i]))}" for key, i in at.items()}
    elif isinstance(first, list):
        at, english = _positions_of_row(first, where)
        cells = {key: f"row_ ->> '$[{i}]'" for key, i in at.items()}
    else:
        raise InputError(
            "this JSON holds no rows of a report", where=where, next_step="Download it as CSV."
        )
    _create(
        engine,
        f"SELECT row_number() OVER () - 1 AS record, row_ FROM (SELECT unnest(json_extract("
        f"ltrim(content, chr(65279)), '{path_to_rows}')) AS row_ FROM read_text({sql_text(path)}))",
        cells,
    )
    # Where the rows are plain lists the titles may stand in the first.
    titles = f"record = 0 AND time = {sql_text(COLUMNS['time'])}"
    if engine.execute(f"SELECT 1 FROM report WHERE {titles}").fetchone():
        engine.execute(f"DELETE FROM report WHERE {titles}")
        engine.execute("UPDATE report SET record = record - 1")
    return ReportTable(path, "json", english)


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _positions_of_row(first: list[Any], where: str) -> tuple[dict[str, int], bool]:
    if "Time" in first:
        return _positions([str(cell) for cell in first], where)
    # A row, not titles: the columns stand in Moodle's order. Its text is English or not by row.
    at, _ = _positions([str(cell) for cell in first], where)
    return at, True


def _fill(engine: duckdb.DuckDBPyConnection, rows: str, at: dict[str, int]) -> None:
    _create(engine, rows, {key: f"c{i}" for key, i in at.items()})


def _create(engine: duckdb.DuckDBPyConnection, rows: str, cells: dict[str, str]) -> None:
    selected = ", ".join(
        f"nullif(trim({cells.get(key, 'NULL::VARCHAR')}), '') AS {key}" for key in COLUMNS
    )
    engine.execute(
        f"CREATE OR REPLACE TEMP TABLE report AS SELECT record, {selected} FROM ({rows})"
    )
