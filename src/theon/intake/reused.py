"""Takes events out of a staged file whose id stands for another event.

Ids of JSON events are the sender's. An id that comes again says the same, and is known; or it says
something else, and then one of the two was given a wrong id. The first one stays; the door does the
same for events that come one by one (`theon.intake.event_ids`). What came through the door and has
not landed yet was first as well.
"""

from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa

from theon.intake.arrivals import ARRIVAL_SCHEMA, ORDINAL, REFUSED_SCHEMA, REUSED_ID
from theon.intake.event_ids import CONTENT_SQL
from theon.intake.journal import pending
from theon.intake.origins import StagedLines, as_rejects, name_places
from theon.intake.staged import MOST_LISTED, STAGED_COLUMNS, copy_to_parquet
from theon.lake.engine import open_engine, sql_list, sql_text
from theon.lake.table import EventLake
from theon.roster.campuses import Campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

_CONTENT = f"md5({CONTENT_SQL})"


def without_reused(
    store: Store, lake: EventLake, settings: Settings, campus: Campus, staged: StagedLines
) -> StagedLines:
    """The same with each id once: repetitions are known, other events under it are rejects.

    Args:
        store: whose journal holds what came before and has not landed.
        lake: whose events came before; looked through whole, for an id says nothing of the time.
        settings: for the engine.
        campus: of all three.
        staged: a part of a file that is still there, so that lines can be read again.
    """
    with open_engine(settings) as engine:
        rows = f"read_parquet({sql_text(staged.path)}, file_row_number = true)"
        _find_pending(engine, store, campus, rows)
        # After the journal: what lands meanwhile was seen there.
        files = [file.path for file in lake.files(campus.slug)]
        if not _find_twice(engine, rows, files):
            return staged
        known, reused = _judge(engine, rows)
        if not known and not reused:
            return staged
        listed = _with_reused(engine, staged, rows, files) if reused else staged
        target = staged.path.with_suffix(".once.parquet")
        kept = copy_to_parquet(
            engine,
            f"SELECT {', '.join(STAGED_COLUMNS)} FROM {rows} s"
            " ANTI JOIN dropped_ ON dropped_.record = s.file_row_number",
            target,
        )
        target.replace(staged.path)
        return replace(
            listed,
            rows=kept,
            known=staged.known + known,
            rejected=staged.rejected + reused,
        )


def _find_pending(
    engine: duckdb.DuckDBPyConnection, store: Store, campus: Campus, rows: str
) -> None:
    """Make `pending_`: ids of the file that wait for a landing, and the content they stand for."""
    engine.execute("CREATE TEMP TABLE pending_ (event_id VARCHAR, content VARCHAR)")
    with store.transaction(Scope(campus.slug)) as conn:
        for events in pending(conn, campus.id):
            engine.register("waiting_", events)
            engine.execute(
                f"INSERT INTO pending_ SELECT event_id, {_CONTENT} FROM waiting_"
                f" WHERE event_id IN (SELECT event_id FROM {rows})"
            )
            engine.unregister("waiting_")


def _find_twice(engine: duckdb.DuckDBPyConnection, rows: str, files: list[str]) -> bool:
    """Make `twice_`: ids that are in the file twice, pending, or in the lake; whether any are."""
    engine.execute(
        f"CREATE TEMP TABLE twice_ AS SELECT event_id, NULL::VARCHAR AS file FROM {rows}"
        " GROUP BY event_id HAVING count(*) > 1 UNION SELECT event_id, NULL FROM pending_"
    )
    if files:
        lake = f"read_parquet({sql_list(files)}, hive_partitioning = false, filename = true)"
        engine.execute(
            f"INSERT INTO twice_ SELECT event_id, filename FROM {lake} l"
            f" SEMI JOIN {rows} s ON s.event_id = l.event_id"
        )
    return engine.execute("SELECT 1 FROM twice_ LIMIT 1").fetchone() is not None


def _judge(engine: duckdb.DuckDBPyConnection, rows: str) -> tuple[int, int]:
    """Make `dropped_`: rows to leave out, and why; how many are known, and how many are reused."""
    files = [
        str(path)
        for (path,) in engine.execute(
            "SELECT DISTINCT file FROM twice_ WHERE file IS NOT NULL"
        ).fetchall()
    ]
    held = "SELECT NULL::VARCHAR AS event_id, NULL::VARCHAR AS content WHERE false"
    if files:
        held = (
            f"SELECT event_id, min({_CONTENT}) AS content"
            f" FROM read_parquet({sql_list(files)}, hive_partitioning = false)"
            " WHERE event_id IN (SELECT event_id FROM twice_) GROUP BY event_id"
        )
    engine.execute(
        "CREATE TEMP TABLE dropped_ AS SELECT record, event_id, said = stands AS is_known FROM ("
        f"SELECT file_row_number AS record, event_id, {_CONTENT} AS said, row_number() OVER same"
        f" AS number, coalesce(held.content, pending_.content, first_value({_CONTENT}) OVER same)"
        " AS stands, pending_.content IS NOT NULL AS lands"
        f" FROM {rows} s LEFT JOIN ({held}) held USING (event_id) LEFT JOIN pending_"
        " USING (event_id) WHERE event_id IN (SELECT event_id FROM twice_)"
        " WINDOW same AS (PARTITION BY event_id ORDER BY file_row_number)"
        # What the lake holds already stays once: the lake counts it as known.
        ") WHERE number > 1 OR said <> stands OR lands"
    )
    found = engine.execute(
        "SELECT count(*) FILTER (is_known), count(*) FILTER (NOT is_known) FROM dropped_"
    ).fetchone()
    assert found is not None  # noqa: S101 - an aggregate without groups has one row
    return int(found[0]), int(found[1])


def _with_reused(
    engine: duckdb.DuckDBPyConnection, staged: StagedLines, rows: str, files: list[str]
) -> StagedLines:
    """The same with rows that are left out for their id among the rejects, line by line."""
    room = MOST_LISTED - staged.rejects.num_rows
    found = engine.execute(
        f"SELECT record, event_id FROM dropped_ WHERE NOT is_known ORDER BY record LIMIT {room}"
    ).fetchall()
    records = np.array([record for record, _ in found], np.int64)
    ids = [str(event_id) for _, event_id in found]
    origins, unread = staged.origins, staged.unread
    originals = origins.lines(records, ids) if ids else []
    refused = pa.table(
        {
            ORDINAL: pa.array(range(len(ids)), pa.int32()),
            "reason": pa.array([REUSED_ID] * len(ids), pa.string()),
            "detail": pa.array(ids, pa.string()),
            "original": pa.array([line or b"" for line in originals], pa.binary()),
            "place": pa.nulls(len(ids), pa.string()),
        },
        schema=REFUSED_SCHEMA,
    )
    numbers = origins.line_numbers[records]
    named = name_places(refused, origins.path, origins.shown, numbers)
    kept = named.filter(pa.array([line is not None for line in originals], pa.bool_()))
    return replace(
        staged,
        rejects=pa.concat_tables([staged.rejects, as_rejects(refused, origins.shown, numbers)]),
        unread=replace(
            unread,
            refused=pa.concat_tables([unread.refused, kept]),
            standing=_standing(engine, rows, files),
        ),
    )


def _standing(engine: duckdb.DuckDBPyConnection, rows: str, files: list[str]) -> pa.Table:
    """The events that stay, under the ids of those that are refused; `ARRIVAL_SCHEMA`."""
    columns = ", ".join(STAGED_COLUMNS)
    reused = (
        "event_id IN (SELECT event_id FROM dropped_ WHERE NOT is_known)"
        " AND event_id NOT IN (SELECT event_id FROM pending_)"  # the door knows these
    )
    parts = [f"SELECT {columns}, 1 AS later, file_row_number AS record FROM {rows} WHERE {reused}"]
    if files:
        lake = f"read_parquet({sql_list(files)}, hive_partitioning = false)"
        parts.append(f"SELECT {columns}, 0, 0 FROM {lake} WHERE {reused}")
    found = engine.sql(
        f"SELECT DISTINCT ON (event_id) {columns} FROM ({' UNION ALL '.join(parts)})"
        f" ORDER BY event_id, later, record LIMIT {MOST_LISTED}"
    ).to_arrow_table()
    ordinals = pa.array(range(found.num_rows), pa.int32())
    found = found.append_column(ORDINAL, ordinals).select(ARRIVAL_SCHEMA.names)
    standing: pa.Table = found.cast(ARRIVAL_SCHEMA)
    return standing
