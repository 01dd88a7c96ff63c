"""Which events are new: the register of accepted ids.

An id is kept as its MD5, the event's content as another, so that a row has one size whatever the
source writes. The primary key makes two transactions that bring the same id wait for each other;
so of any number of deliveries of an event exactly one is new.

Ids older than `EVENT_ID_DAYS` are forgotten. The lake knows every id for ever, and a landing looks
there for events that are older (`theon.intake.landing`): nothing is stored twice, but the answer to
such a late repetition says accepted.
"""

import threading
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from theon.intake.arrivals import ARRIVAL_SCHEMA, EVENT_COLUMNS, ORDINAL
from theon.lake.engine import open_scratch

EVENT_ID_DAYS = 30

_OWN = threading.local()
# The same event may come by another road: where it came from is not what it says.
_CONTENT = [f for f in EVENT_COLUMNS if f.name not in ("event_id", "source")]
_KEPT = ["event_id", *(f.name for f in _CONTENT)]

_REGISTER = text(
    "WITH sent AS (SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:contents AS uuid[]),"
    " CAST(:ordinals AS int[])) AS s (id_hash, content_hash, ordinal)),"
    " added AS (INSERT INTO theon.event_ids (campus_id, id_hash, content_hash, batch)"
    # In one order everywhere, or two batches could wait for each other.
    " SELECT :campus, id_hash, content_hash, :batch FROM sent ORDER BY id_hash"
    " ON CONFLICT DO NOTHING RETURNING 1) SELECT count(*) FROM added"
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
        duplicates: known, with the same content.
        reused: known, with another content.
    """

    duplicates: list[int]
    reused: list[int]


def register(conn: Connection, campus_id: int, batch: int, events: pa.Table) -> Registered:
    """Enter the ids of `events`, and tell which were known.

    Args:
        conn: a transaction whose scope holds the campus.
        campus_id: whose events.
        batch: a number that no other call was given.
        events: `ARRIVAL_SCHEMA`.
    """
    hashed = _hashes(events)
    first = hashed.filter(hashed["first"])
    named = {"campus": campus_id, "batch": batch}
    added = conn.execute(_REGISTER, {**named, **_sent(first)}).scalar_one()
    # Of the same id twice in one batch the first decides, unless the id was known before.
    found: dict[Any, Any] = {}
    if first.num_rows < hashed.num_rows:
        later = hashed.filter(pc.invert(hashed["first"]))
        found = {row[ORDINAL]: row["same"] for row in later.to_pylist()}
    if added < first.num_rows:
        known = conn.execute(_KNOWN, {**named, **_sent(hashed)})
        found |= {row.ordinal: row.same for row in known}
    return Registered(
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
    said = tuple(f.name for f in _CONTENT if events[f.name].null_count < events.num_rows)
    hashed = _run(said, events)
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


def _run(said: tuple[str, ...], events: pa.Table) -> pa.Table:
    """(ordinal, id_hash, content_hash): by a statement that this thread has planned before."""
    engine, planned = _engine()
    if said not in planned:
        parts = [f"'{f.name}=' || {_as_text(f)} || chr(31)" for f in _CONTENT if f.name in said]
        engine.execute(
            f"PREPARE hashes_{len(planned)} AS SELECT {ORDINAL}, md5(event_id) AS id_hash,"
            f" md5(concat({', '.join(parts)})) AS content_hash FROM events_"
        )
        planned[said] = f"hashes_{len(planned)}"
    engine.register("given_", events.select([ORDINAL, *_KEPT]))
    try:
        engine.execute("INSERT INTO events_ BY NAME FROM given_")
        hashed: pa.Table = engine.sql(f"EXECUTE {planned[said]}").to_arrow_table()
    finally:
        engine.unregister("given_")
        engine.execute("TRUNCATE events_")
    return hashed


def _array(values: "pa.ChunkedArray[Any]") -> str:
    """PostgreSQL's text of an array of hashes or numbers; the driver takes far longer for it."""
    return "{" + ",".join(map(str, values.to_pylist())) + "}"


def _as_text(field: "pa.Field[Any]") -> str:
    if pa.types.is_timestamp(field.type):
        return f"epoch_us({field.name})::VARCHAR"
    return field.name if pa.types.is_string(field.type) else f"{field.name}::VARCHAR"


def _engine() -> tuple[duckdb.DuckDBPyConnection, dict[tuple[str, ...], str]]:
    """This thread's engine, and its statements: to make either takes longer than most batches."""
    if not hasattr(_OWN, "engine"):
        engine = open_scratch()
        engine.execute("SET threads = 1")
        none = ARRIVAL_SCHEMA.empty_table().select([ORDINAL, *_KEPT])
        engine.register("none_", none)
        # A table, not a view of what is given: where a view is made anew, all is planned anew.
        engine.execute("CREATE TABLE events_ AS FROM none_")
        engine.unregister("none_")
        _OWN.engine, _OWN.planned = engine, {}
    return _OWN.engine, _OWN.planned
