"""Lines of JSON as canonical events, by a mapping."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from theon.intake.arrivals import ARRIVAL_SCHEMA, ORDINAL, REFUSED_SCHEMA, Arrival, no_refused
from theon.intake.mapping import load_mapping
from theon.intake.mapping_checks import AHEAD_S, LINES
from theon.lake.engine import Given, open_single, run_to_arrow

_OWN = threading.local()
_LINE, _DEFAULT_ID, _LATEST = "line", "default_id", "latest"


@dataclass(frozen=True)
class Mapped:
    """Lines that were read.

    Attributes:
        events: `ARRIVAL_SCHEMA`, by ordinal.
        refused: `REFUSED_SCHEMA`, by ordinal: lines that cannot be events.
    """

    events: pa.Table
    refused: pa.Table


def map_lines(lines: pa.Table, mapping: str, *, latest_s: float | None = None) -> Mapped:
    """Read lines as events, in an engine of this thread's own.

    No line makes it fail: one that does not fit is refused.

    Args:
        lines: `ordinal` (int32) and `line` (text or bytes; UTF-8, or it is refused), and if wished
            `default_id` (text): the id of an event that names none.
        mapping: `native`, `messages`, `xapi` or `edx`.
        latest_s: the latest time that is believed, epoch seconds; a day from now unless given.

    Returns:
        The events, and what was refused; together as many as there are lines.

    Raises:
        InputError: there is no such mapping.
    """
    rules = load_mapping(mapping)
    latest_us = int((time.time() + AHEAD_S if latest_s is None else latest_s) * 1_000_000)
    engine = _engine()
    originals = lines[_LINE]
    texts = _as_text(originals, engine)
    ids = lines[_DEFAULT_ID] if _DEFAULT_ID in lines.column_names else None
    given = pa.table(
        {
            ORDINAL: lines[ORDINAL],
            _LINE: texts,
            _DEFAULT_ID: ids or pa.nulls(lines.num_rows, pa.string()),
            _LATEST: pa.repeat(latest_us, lines.num_rows),
        }
    )
    found = _run(engine, given, f"{mapping}_quick", rules.quick_sql)
    fits = found["fits"].combine_chunks()
    if pc.all(fits).as_py():
        return Mapped(_events(found), no_refused())
    suspects = given.filter(pc.invert(fits))
    found = found.filter(fits)
    looked = _run(engine, suspects, f"{mapping}_thorough", rules.thorough_sql)
    bad = pc.is_valid(looked["reason"])
    events = pa.concat_tables([_events(found), _events(looked.filter(pc.invert(bad)))])
    refused = looked.filter(bad)
    where = pc.index_in(refused[ORDINAL], given[ORDINAL])
    return Mapped(
        events.sort_by(ORDINAL),
        pa.table(
            [
                refused[ORDINAL],
                refused["reason"],
                refused["detail"],
                originals.take(where).cast(pa.binary()),
                pa.nulls(refused.num_rows, pa.string()),
            ],
            schema=REFUSED_SCHEMA,
        ),
    )


def _run(engine: duckdb.DuckDBPyConnection, lines: pa.Table, name: str, sql: str) -> pa.Table:
    """The rows of `sql`, which the connection keeps as the prepared statement `name`.

    To plan it takes longer than to run it over a few lines.
    """
    given: Given = _OWN.lines
    with given.holding(lines):
        if name not in _OWN.prepared:
            engine.execute(f"PREPARE {name} AS {sql}")
            _OWN.prepared.add(name)
        return run_to_arrow(engine, f"EXECUTE {name}")


def _events(found: pa.Table) -> pa.Table:
    events: pa.Table = found.select(ARRIVAL_SCHEMA.names).cast(ARRIVAL_SCHEMA)
    return events


def read_arrival(
    originals: "pa.Array[Any] | pa.ChunkedArray[Any]",
    mapping: str,
    *,
    default_ids: "pa.Array[Any] | None" = None,
    places: "pa.Array[Any] | None" = None,
    came_s: float | None = None,
    waited: "pa.Array[Any] | None" = None,
) -> Arrival:
    """What was sent, as an arrival for the door.

    Args:
        originals: texts or bytes, one event each; an ordinal is an index into it.
        mapping: as for `map_lines`.
        default_ids: ids of events that name none.
        places: where each stood, for people.
        came_s: see `Arrival`.
        waited: see `Arrival`.
    """
    columns: dict[str, Any] = {
        ORDINAL: pa.array(range(len(originals)), pa.int32()),
        _LINE: originals,
    }
    if default_ids is not None:
        columns[_DEFAULT_ID] = default_ids
    mapped = map_lines(pa.table(columns), mapping)
    refused = mapped.refused
    if places is not None and refused.num_rows:
        at = refused.schema.get_field_index("place")
        stood = places.take(refused[ORDINAL].combine_chunks())
        refused = refused.set_column(at, REFUSED_SCHEMA.field("place"), stood)
    return Arrival(mapping, mapped.events, originals, refused, places, came_s, waited)


def _as_text(lines: "pa.ChunkedArray[Any] | pa.Array[Any]", engine: Any) -> Any:
    """The lines as text; null where one is not UTF-8."""
    raw = lines.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        engine.register("raw_", pa.table({_LINE: raw}))
        try:
            decoded = engine.sql(f"SELECT try(decode({_LINE})) AS {_LINE} FROM raw_")
            return decoded.to_arrow_table()[_LINE]
        finally:
            engine.unregister("raw_")


def _engine() -> duckdb.DuckDBPyConnection:
    """This thread's engine: to open one takes longer than most batches."""
    if not hasattr(_OWN, "engine"):
        _OWN.engine = open_single()
        # The expressions are written as they are to be run; to plan them anew for every batch, as
        # optimized statements are, takes ten times as long as to map a few lines.
        _OWN.engine.execute("PRAGMA disable_optimizer")
        _OWN.lines = Given(_OWN.engine, "lines_", LINES)
        _OWN.prepared = set[str]()
    engine: duckdb.DuckDBPyConnection = _OWN.engine
    return engine
