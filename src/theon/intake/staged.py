"""What every road hands on: a Parquet file of canonical events, and what could not be read."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from theon.events.schema import EVENT_SCHEMA, PARTITION_COLUMNS
from theon.intake.arrivals import ARRIVAL_SCHEMA, no_refused
from theon.lake.engine import sql_text
from theon.observability.progress import Step

# Small row groups let a refresh of one hour skip the rest of a file by its statistics.
ROW_GROUP_ROWS = 61_440
POLL_S = 0.2
LONGEST_TEXT = 20_000
MOST_LISTED = 100_000  # rejects listed one by one; beyond that they are only counted

STAGED_COLUMNS = [name for name in EVENT_SCHEMA.names if name not in PARTITION_COLUMNS]

_REJECT: "list[pa.Field[Any]]" = [
    pa.field("line_number", pa.int64()),  # in the uncompressed file, from 1; null: not known
    pa.field("reason", pa.string(), nullable=False),  # one of a few short phrases
    pa.field("detail", pa.string()),  # the value that did not fit
    pa.field("original", pa.string()),  # the line as it stands in the source
]
REJECT_SCHEMA = pa.schema(_REJECT)


def no_rejects() -> pa.Table:
    """An empty table of `REJECT_SCHEMA`."""
    return REJECT_SCHEMA.empty_table()


def rejects_table(rows: Sequence[tuple[int | None, str, str | None, str | None]]) -> pa.Table:
    """A table of `REJECT_SCHEMA` of (line number, reason, detail, original) tuples.

    Texts are cut at `LONGEST_TEXT` characters; NUL, which PostgreSQL cannot hold, becomes
    visible.
    """
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    arrays = [pa.array(c, type=f.type) for c, f in zip(columns, REJECT_SCHEMA, strict=True)]
    return pa.table([arrays[0], *map(_storable, arrays[1:])], schema=REJECT_SCHEMA)


def _storable(texts: "pa.Array[Any]") -> "pa.Array[Any]":
    visible = pc.replace_substring(texts, "\x00", "\\x00")
    return pc.utf8_slice_codeunits(visible, 0, LONGEST_TEXT)


@dataclass(frozen=True)
class Unread:
    """Rejects of a source whose lines can be read again: its dead letters.

    Attributes:
        format: the mapping that reads them.
        refused: `REFUSED_SCHEMA`, with places.
        standing: `ARRIVAL_SCHEMA`: events that stand under the ids of those that were refused
            for their id.
    """

    format: str
    refused: pa.Table = field(default_factory=no_refused)
    standing: pa.Table = field(default_factory=ARRIVAL_SCHEMA.empty_table)


@dataclass(frozen=True)
class Staged:
    """A source, read and checked; nothing is committed yet.

    Attributes:
        path: Parquet file of `STAGED_COLUMNS`, in the order of the source.
        read: rows that the source holds, good and bad.
        rows: good rows in `path`.
        known: rows left out because the same source holds them twice, word for word.
        rejected: rows that could not be read.
        rejects: the first `MOST_LISTED` of these; `REJECT_SCHEMA`.
        notes: sentences for the person: what the source could not tell.
        incomplete: why the source ended early ('' when it did not).
        unread: rejects that can be read again, if the road has such.
    """

    path: Path
    read: int
    rows: int
    known: int = 0
    rejected: int = 0
    rejects: pa.Table = field(default_factory=no_rejects)
    notes: tuple[str, ...] = ()
    incomplete: str = ""
    unread: Unread | None = None

    def with_reject(
        self, line_number: int, reason: str, detail: str, original: str, *, incomplete: str
    ) -> "Staged":
        """The same with the cut last row of a source that ended early (none if empty)."""
        if not original:
            return replace(self, incomplete=incomplete)
        last = rejects_table([(line_number, reason, detail, original)])
        return replace(
            self,
            read=self.read + 1,
            rejected=self.rejected + 1,
            rejects=pa.concat_tables([self.rejects, last]),
            incomplete=incomplete,
        )


def copy_to_parquet(
    engine: duckdb.DuckDBPyConnection, query: str, path: Path, step: Step | None = None
) -> int:
    """Write the rows of `query` to `path`, in their order; return how many.

    `step`, if given, counts to 100 (per cent of the source read).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # As the lake stores its files: where nothing has to be left out, this one becomes one.
    sql = (
        f"COPY ({query}) TO {sql_text(path)} "
        f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
    )
    if step is None:
        found = engine.execute(sql).fetchone()
        return int(found[0]) if found else 0
    step.total(100)
    # query_progress answers only while the bar is on; its printing is not wanted.
    engine.execute("SET enable_progress_bar = true")
    engine.execute("SET enable_progress_bar_print = false")
    done = threading.Event()

    def follow() -> None:
        shown = 0
        while not done.wait(POLL_S):
            percent = int(max(engine.query_progress(), 0))
            step.advance(max(percent - shown, 0))
            shown = max(percent, shown)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        found = engine.execute(sql).fetchone()
    finally:
        done.set()
        follower.join()
        engine.execute("SET enable_progress_bar = false")
    return int(found[0]) if found else 0
