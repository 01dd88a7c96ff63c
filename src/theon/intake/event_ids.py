"""Which events are new: the register of accepted ids.

An id is kept as its MD5, the event's content as another, so that a row has one size whatever the
source writes. The primary key makes two transactions that bring the same id wait for each other;
so of any number of deliveries of an event exactly one is new.

Ids older than `EVENT_ID_DAYS` are forgotten. The lake knows every id for ever, and a landing looks
there for events that are older (`theon.intake.landing`): nothing is stored twice, but the answer to
such a late repetition says accepted.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from theon.intake.arrivals import EVENT_COLUMNS, ORDINAL

EVENT_ID_DAYS = 30

_Column = Any  # a pyarrow array; its stubs know the functions below for some types only
# The same event may come by another road: where it came from is not what it says.
CONTENT_COLUMNS = [f.name for f in EVENT_COLUMNS if f.name not in ("event_id", "source")]

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


def register(conn: Connection, campus_id: int, events: pa.Table) -> Registered:
    """Enter the ids of `events`, and tell which were known.

    Args:
        conn: a transaction whose scope holds the campus.
        campus_id: whose events.
        events: `ARRIVAL_SCHEMA`.
    """
    hashed = _hashes(events)
    first = hashed.filter(hashed["first"])
    added = conn.execute(_REGISTER, {"campus": campus_id, **_sent(first)}).one()
    # Of the same id twice in one batch the first decides, unless the id was known before.
    found: dict[Any, Any] = {}
    if first.num_rows < hashed.num_rows:
        later = hashed.filter(pc.invert(hashed["first"]))
        found = {row[ORDINAL]: row["same"] for row in later.to_pylist()}
    if added.new < first.num_rows:
        known = conn.execute(_KNOWN, {"campus": campus_id, "batch": added.batch, **_sent(hashed)})
        found |= {row.ordinal: row.same for row in known}
    return Registered(
        added.batch,
        sorted(ordinal for ordinal, same in found.items() if same),
        sorted(ordinal for ordinal, same in found.items() if not same),
    )


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
