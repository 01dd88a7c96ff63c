"""Takes bad and repeated rows out of a staged logstore file, and says what they are."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from theon.intake.lines import Located, locate
from theon.intake.moodle_rows import numbers_sql, reason_sql
from theon.intake.staged import (
    MOST_LISTED,
    STAGED_COLUMNS,
    Staged,
    copy_to_parquet,
    rejects_table,
)
from theon.lake.engine import sql_text

REPEATED_ID = "id used twice with different content"

# What DuckDB's reader calls its errors, and what a person calls them.
_MALFORMED = {
    "MISSING COLUMNS": "too few columns",
    "TOO MANY COLUMNS": "too many columns",
    "UNQUOTED VALUE": "a quote that is not closed",
    "INVALID ENCODING": "not UTF-8",
    "LINE SIZE OVER MAXIMUM": "line too long",
}


@dataclass(frozen=True)
class Malformed:
    """A line that the CSV reader threw out: where it is in the unpacked file, and why."""

    position: int
    length: int
    reason: str
    detail: str


def malformed_lines(engine: duckdb.DuckDBPyConnection) -> list[Malformed]:
    """The lines that the last CSV read of `engine` threw out, in the order of the file."""
    # Positions count from 1. After CRLF they point at the LF, which the text begins with.
    rows = engine.execute(
        "SELECT line_byte_position - 1 + starts_with(any_value(csv_line), chr(10))::INT, "
        "octet_length(encode(ltrim(any_value(csv_line), chr(10)))), "
        "arg_min(error_type::VARCHAR, byte_position), arg_min(error_message, byte_position) "
        "FROM reject_errors GROUP BY line_byte_position ORDER BY line_byte_position"
    ).fetchall()
    for table in ("reject_errors", "reject_scans"):  # a clean read would leave them as they are
        engine.execute(f"TRUNCATE {table}")
    return [
        Malformed(position, length, _MALFORMED.get(kind, kind.lower()), message.strip())
        for position, length, kind, message in rows
    ]


@dataclass(frozen=True)
class Sifter:
    """Sorts the rows of one file.

    Attributes:
        engine: the connection that has just read the file with `store_rejects`.
        source: the file.
        quoted: whether double quotes enclose its fields.
        header: its first line.
        reader_sql: SQL that reads a file of the same dialect.
        events_sql: SQL that turns such a file into staged events; bad rows without event id.
        latest_s: the latest time that is believed, epoch seconds.
    """

    engine: duckdb.DuckDBPyConnection
    source: Path
    quoted: bool
    header: str
    reader_sql: Callable[[Path], str]
    events_sql: Callable[[Path], str]
    latest_s: int

    def sift(self, everything: Path, target: Path) -> Staged:
        """Write the good rows of `everything` to `target`, and remove `everything`.

        A bad row is one whose event id is null. Of rows that share an id the first is
        kept; a later one is known if it is equal, else a reject.
        """
        rows = f"read_parquet({sql_text(everything)}, file_row_number = true)"
        total, bad = self._counts(f"SELECT count(*), count(*) - count(event_id) FROM {rows}")
        malformed = malformed_lines(self.engine)
        repeated = not self._ids_are_unique(rows)
        if not bad and not malformed and not repeated:
            everything.rename(target)
            return Staged(target, read=total, rows=total)
        self.engine.execute(
            f"CREATE OR REPLACE TEMP TABLE dropped AS SELECT file_row_number AS record, "
            f"NULL::VARCHAR AS reason FROM {rows} WHERE event_id IS NULL"
        )
        if repeated:
            self._drop_repeated(rows)
        dropped, known = self._counts(
            "SELECT count(*), count(*) FILTER (reason = 'known') FROM dropped"
        )
        rejects, swallowed = self._explain(malformed)
        rescued = self._rescue(swallowed)
        columns = ", ".join(STAGED_COLUMNS)
        kept = copy_to_parquet(
            self.engine,
            f"SELECT {columns} FROM {rows} AS s "
            f"ANTI JOIN dropped ON dropped.record = s.file_row_number "
            f"UNION ALL SELECT {columns} FROM rescued WHERE event_id IS NOT NULL",
            target,
        )
        everything.unlink()
        return Staged(
            target,
            read=total + len(malformed) + rescued,
            rows=kept,
            known=known,
            rejected=dropped - known + len(malformed),
            rejects=rejects,
        )

    def _counts(self, query: str) -> tuple[int, ...]:
        found = self.engine.execute(query).fetchone()
        assert found is not None  # noqa: S101 - an aggregate without groups has one row
        return tuple(int(value) for value in found)

    def _ids_are_unique(self, rows: str) -> bool:
        """Whether no id is there twice; cheap where the file is in the order of its ids."""
        ids = f"SELECT substr(event_id, 8)::BIGINT AS id FROM {rows} WHERE event_id IS NOT NULL"
        (falls,) = self._counts(
            f"SELECT count(*) FROM (SELECT id, lag(id) OVER () AS before FROM ({ids})) "
            f"WHERE id <= before"
        )
        if falls == 0:
            return True
        (repeated,) = self._counts(
            f"SELECT count(*) FROM (SELECT id FROM ({ids}) GROUP BY id HAVING count(*) > 1)"
        )
        return repeated == 0

    def _drop_repeated(self, rows: str) -> None:
        content = f"row({', '.join(STAGED_COLUMNS)})"
        self.engine.execute(
            f"INSERT INTO dropped SELECT record, CASE WHEN content = first_content "
            f"THEN 'known' ELSE {sql_text(REPEATED_ID)} END FROM ("
            f"SELECT file_row_number AS record, {content} AS content, "
            f"first_value({content}) OVER same AS first_content, row_number() OVER same AS n "
            f"FROM {rows} WHERE event_id IN (SELECT event_id FROM {rows} "
            f"WHERE event_id IS NOT NULL GROUP BY event_id HAVING count(*) > 1) "
            f"WINDOW same AS (PARTITION BY event_id ORDER BY file_row_number)) WHERE n > 1"
        )

    def _explain(self, malformed: list[Malformed]) -> tuple[pa.Table, list[str]]:
        """The rejects in the order of the file, and the lines that open quotes swallowed."""
        dropped = self.engine.execute(
            "SELECT record, coalesce(reason, '') FROM dropped "
            f"WHERE reason IS DISTINCT FROM 'known' ORDER BY record LIMIT {MOST_LISTED}"
        ).fetchall()
        records = np.array([record for record, _ in dropped], dtype=np.int64)
        regions = [(m.position, m.length) for m in malformed[:MOST_LISTED]]
        found = list(locate(self.source, records, regions, quoted=self.quoted))
        given = dict(dropped)
        reasons = iter(malformed)
        again = self._read_again([one for one in found if one.record >= 0])
        rows: list[tuple[int | None, str, str | None, str | None]] = []
        swallowed: list[str] = []
        for one in found:
            if one.record < 0:
                why = next(reasons)
                others = [line.rstrip("\r") for line in one.text.split("\n")[1:]]
                swallowed += others
                more = f" It took {len(others)} lines more; whole rows among them were kept."
                detail = why.detail + more * bool(others)
                rows.append((one.line_number, why.reason, detail, one.text))
            else:
                fault, value = next(again, (None, None))
                reason = given[one.record] or fault or "the row cannot be read"
                rows.append((one.line_number, reason, value, one.text))
        return rejects_table(rows), swallowed

    def _rescue(self, swallowed: list[str]) -> int:
        """Make the table `rescued` of the rows that an open quote swallowed; return how many."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "swallowed.csv"
            file.write_text("\n".join([self.header, *swallowed]) + "\n", "utf-8")
            self.engine.execute(f"CREATE OR REPLACE TEMP TABLE rescued AS {self.events_sql(file)}")
        (rescued,) = self._counts("SELECT count(event_id) FROM rescued")
        return rescued

    def _read_again(self, bad: list[Located]) -> Iterator[tuple[str | None, str | None]]:
        """(reason, the value that does not fit) of each bad record."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "bad.csv"
            file.write_text("\n".join([self.header, *(b.text for b in bad)]) + "\n", "utf-8")
            rows = self.engine.execute(
                f"SELECT reason, CASE split_part(reason, ' ', 1) WHEN 'id' THEN id "
                f"WHEN 'timecreated' THEN timecreated WHEN 'userid' THEN userid "
                f"WHEN 'courseid' THEN courseid END "
                f"FROM (SELECT *, {reason_sql(self.latest_s)} AS reason "
                f"FROM ({numbers_sql(self.reader_sql(file))}))"
            ).fetchall()
        return iter(rows)
