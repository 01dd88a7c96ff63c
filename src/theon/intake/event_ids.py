"""Which events are new: the register of accepted ids.

An id is kept as its MD5, the event's content as another, so that a row has one size whatever the
source writes. The primary key makes two transactions that bring the same id wait for each other;
so of any number of deliveries of an event exactly one is new.

A row for each id for ever would be too much. So what files of JSON brought is noted beside the lake
instead (`theon.lake.lake_ids`), and what is older than `EVENT_ID_DAYS` moves there.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from theon.intake.arrivals import EVENT_COLUMNS, ORDINAL
from theon.lake.lake_ids import Hashes, LakeIds
from theon.roster.campuses import Campus

EVENT_ID_DAYS = 30

_Column = Any  # a pyarrow array; its stubs know the functions below for some types only
# The same event may come by another road: where it came from is not what it says.
CONTENT_COLUMNS = [f.name for f in EVENT_COLUMNS if f.name not in ("event_id", "source")]


def _content_sql() -> str:
    """SQL of the text whose MD5 is an event's content; `_hashes` makes the same."""
    texts = {f.name: f"{f.name}::VARCHAR" for f in EVENT_COLUMNS}
    texts |= {f.name: f"epoch_us({f.name})" for f in EVENT_COLUMNS if pa.types.is_timestamp(f.type)}
    # What is null adds nothing, as `||` makes its part null and `concat` leaves that out.
    parts = [f"'{name}=' || {texts[name]} || chr(31)" for name in CONTENT_COLUMNS]
    return f"concat({', '.join(parts)})"


CONTENT_SQL = _content_sql()

_REGISTER = text(
    "WITH number AS MATERIALIZED (SELECT nextval('theon.event_batches') AS batch),"
    " sent AS (SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:contents AS uuid[]),"
    " CAST(:ordinals AS int[])) AS s (id_hash, content_hash, ordinal)),"
    " added AS (INSERT INTO theon.event_ids (campus_id, id_hash, content_hash, batch)"
    # In one order everywhere, or two batches could wait for each other.
    " SELECT :campus, id_hash, content_hash, batch FROM sent, number ORDER BY id_hash"
    " ON CONFLICT DO NOTHING RETURNING 1)"
    " SELECT batch, (SELECT count(*) FROM added) AS new FROM number"
)
# A statement does not see what it inserts itself; this one comes after it and does.
_KNOWN = text(
    "SELECT s.ordinal, e.content_hash = s.content_hash AS same"
    " FROM unnest(CAST(:ids AS uuid[]), CAST(:contents AS uuid[]),"
    " CAST(:ordinals AS int[])) AS s (id_hash, content_hash, ordinal)"
    " JOIN theon.event_ids e ON e.campus_id = :campus AND e.id_hash = s.id_hash"
    " WHERE e.batch <> :batch"
)
_MOVED = text(
    "DELETE FROM theon.event_ids WHERE ctid = ANY (ARRAY(SELECT ctid FROM theon.event_ids"
    " WHERE accepted_at < now() - make_interval(days => :days) LIMIT :rows))"
    " RETURNING (SELECT slug FROM theon.campuses c WHERE c.id = campus_id) AS slug,"
    " id_hash, content_hash"
)


@dataclass(frozen=True)
class Registered:
    """Which of some events are new, by ordinal.

    Attributes:
        batch: a number that no other call was given.
        duplicates: known, with the same content.
        reused: known, with another content.
    """

    batch: int
    duplicates: list[int]
    reused: list[int]


def register(
    conn: Connection, campus: Campus, events: pa.Table, lake_ids: LakeIds | None = None
) -> Registered:
    """Enter the ids of `events`, and tell which were known.

    Args:
        conn: a transaction whose scope holds the campus.
        campus: whose events.
        events: `ARRIVAL_SCHEMA`.
        lake_ids: ids noted beside the lake.
    """
    hashed = _hashes(events)
    found = _noted(lake_ids, campus.slug, hashed)
    if found:
        old = pa.array(list(found), pa.int32())
        hashed = hashed.filter(pc.invert(pc.is_in(hashed[ORDINAL], old)))
    first = hashed.filter(hashed["first"])
    added = conn.execute(_REGISTER, {"campus": campus.id, **_sent(first)}).one()
    # Of the same id twice in one batch the first decides, unless the id was known before.
    if first.num_rows < hashed.num_rows:
        later = hashed.filter(pc.invert(hashed["first"]))
        found |= {row[ORDINAL]: row["same"] for row in later.to_pylist()}
    if added.new < first.num_rows:
        known = conn.execute(_KNOWN, {"campus": campus.id, "batch": added.batch, **_sent(hashed)})
        found |= {row.ordinal: row.same for row in known}
    return Registered(
        added.batch,
        sorted(ordinal for ordinal, same in found.items() if same),
        sorted(ordinal for ordinal, same in found.items() if not same),
    )


def note_lake_ids(
    lake_ids: LakeIds, campus: Campus, engine: duckdb.DuckDBPyConnection, events: str
) -> None:
    """Note events that a file brought and the lake holds, so that the door knows them.

    Args:
        lake_ids: of that lake.
        campus: whose events.
        engine: in UTC, which keeps the order of rows.
        events: SQL behind FROM, with the columns of the lake's data files; each id once.
    """

    def hashes(sql: str) -> Hashes:
        found = engine.sql(f"SELECT md5_number_upper({sql}) AS hash FROM {events}")
        return np.asarray(found.to_arrow_table()["hash"], np.uint64)

    ids = hashes("event_id")
    # What each says takes twice as long; of a file that is read again it is not needed.
    if not lake_ids.find(campus.slug, ids).known.all():
        lake_ids.add(campus.slug, ids, hashes(CONTENT_SQL))


def move_old(conn: Connection, lake_ids: LakeIds, rows: int) -> int:
    """Move ids that were accepted more than `EVENT_ID_DAYS` ago from the register to the lake's.

    Where it is cut off they are in both, which is no harm.

    Args:
        conn: a transaction whose scope holds their campuses.
        lake_ids: where they go.
        rows: how many at most.

    Returns:
        How many.
    """
    moved = conn.execute(_MOVED, {"days": EVENT_ID_DAYS, "rows": rows}).all()
    of_campus: dict[str | None, list[tuple[str, str]]] = defaultdict(list)
    for row in moved:
        of_campus[row.slug].append((row.id_hash.hex, row.content_hash.hex))
    for slug, hashes in of_campus.items():
        if slug is not None:  # of a campus that is gone nothing need be known
            ids, contents = zip(*hashes, strict=True)
            lake_ids.add(slug, _numbers(ids), _numbers(contents))
    return len(moved)


def _noted(lake_ids: LakeIds | None, campus: str, hashed: pa.Table) -> dict[Any, Any]:
    """By ordinal, whether what is noted under the same id is the same."""
    if lake_ids is None:
        return {}
    found = lake_ids.find(campus, _numbers(hashed["id_hash"].to_pylist()))
    if not found.known.any():
        return {}
    same = found.contents == _numbers(hashed["content_hash"].to_pylist())
    ordinals = hashed.filter(pa.array(found.known))[ORDINAL].to_pylist()
    return dict(zip(ordinals, same[found.known].tolist(), strict=True))


def _numbers(hashes: Sequence[Any]) -> Hashes:
    """The first 8 bytes of each, as `md5_number_upper` reads them."""
    heads = bytes.fromhex("".join(one[:16] for one in hashes))
    return np.frombuffer(heads, "<u8").astype(np.uint64)


def _sent(hashed: pa.Table) -> dict[str, str]:
    return {
        "ids": _array(hashed["id_hash"]),
        "contents": _array(hashed["content_hash"]),
        "ordinals": _array(hashed[ORDINAL]),
    }


def _hashes(events: pa.Table) -> pa.Table:
    """(ordinal, id_hash, content_hash, first: of this id in the batch, same: as that one)."""
    # A column that is null throughout adds nothing, so what it says does not depend on the batch.
    said = [name for name in CONTENT_COLUMNS if events[name].null_count < events.num_rows]
    parts = [
        pc.binary_join_element_wise(f"{name}=", _as_text(events[name]), "\x1f", "") for name in said
    ]
    contents = pc.binary_join_element_wise(*parts, "", null_handling="skip")
    hashed = pa.table(
        {
            ORDINAL: events[ORDINAL],
            "id_hash": _md5(events["event_id"]),
            "content_hash": _md5(contents),
        }
    )
    if len(hashed["id_hash"].unique()) == hashed.num_rows:
        yes = pa.repeat(True, hashed.num_rows)
        return hashed.append_column("first", yes).append_column("same", yes)
    firsts: dict[str, tuple[int, str]] = {}
    rows = hashed.sort_by(ORDINAL)
    for row in rows.to_pylist():  # repetitions are rare, and their batches small
        firsts.setdefault(row["id_hash"], (row[ORDINAL], row["content_hash"]))
    found = [firsts[row["id_hash"]] for row in rows.to_pylist()]
    first = pc.equal(rows[ORDINAL], pa.array([ordinal for ordinal, _ in found], pa.int32()))
    same = pc.equal(rows["content_hash"], pa.array([content for _, content in found]))
    return rows.append_column("first", first).append_column("same", same)


def _md5(texts: _Column) -> _Column:
    """Of each text, in hexadecimal; one by one: no slower than by the engine, and no start."""
    return pa.array(
        [
            hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            for text in texts.to_pylist()
        ],
        pa.string(),
    )


def _as_text(column: _Column) -> _Column:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.int64()).cast(pa.string())
    return column.cast(pa.string())


def _array(values: "pa.ChunkedArray[Any]") -> str:
    """PostgreSQL's text of an array of hashes or numbers; the driver takes far longer for it."""
    return "{" + ",".join(map(str, values.to_pylist())) + "}"
