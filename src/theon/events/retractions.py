"""Retractions: events that say of another event that it holds no longer.

No event is ever changed, so what takes one back is an event itself. It has the time of the one that
it takes back, so it lies in the same hour, and whatever computes that hour reads both.

Some events of a source take another back by naming it, without its time: an xAPI statement that
voids another. What they name has to be found before its retraction can be made.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from theon.events.schema import EVENT_SCHEMA, PARTITION_COLUMNS, SOURCE_RETRACTION

EVENT_RETRACTED = "EventRetracted"
# What there is to know of an event to retract it.
_RETRACTED: "list[pa.Field[Any]]" = [
    EVENT_SCHEMA.field("event_id"),
    EVENT_SCHEMA.field("occurred_at"),
]
RETRACTED_SCHEMA = pa.schema(_RETRACTED)

_STORED = pa.schema([f for f in EVENT_SCHEMA if f.name not in PARTITION_COLUMNS])
# (source, event name) of events that name another one by their `object_id`; what its id begins with
NAMING = {("xapi", "StatementVoided"): "xapi:"}
NAMING_EVENTS = tuple(sorted({name for _, name in NAMING}))


def no_retracted() -> pa.Table:
    """An empty table of `RETRACTED_SCHEMA`."""
    return RETRACTED_SCHEMA.empty_table()


def retraction_events(retracted: pa.Table) -> pa.Table:
    """The retractions of some events, as the lake stores them.

    The same event has the same retraction, whoever takes it back and however often.

    Args:
        retracted: `RETRACTED_SCHEMA`.
    """
    count = retracted.num_rows
    ids: Any = retracted[
        "event_id"
    ].combine_chunks()  # pyarrow's stubs know scalars alone or arrays
    said: dict[str, Any] = {
        "event_id": pc.binary_join_element_wise("retraction", ids, ":"),
        "source": pa.repeat(SOURCE_RETRACTION, count),
        "occurred_at": retracted["occurred_at"],
        "event_name": pa.repeat(EVENT_RETRACTED, count),
        "object_id": ids,
        "origin": pa.repeat("system", count),
    }
    columns = [said[f.name] if f.name in said else pa.nulls(count, f.type) for f in _STORED]
    return pa.table(columns, schema=_STORED)


def named_ids(events: pa.Table) -> list[str]:
    """The ids of the events that some of `events` take back by name."""
    names = events["event_name"]
    naming = events.filter(pc.is_in(names, pa.array(NAMING_EVENTS, names.type)))
    if not naming.num_rows:
        return []
    found = set()
    for row in naming.select(["source", "event_name", "object_id"]).to_pylist():  # they are rare
        prefix = NAMING.get((row["source"], row["event_name"]))
        if prefix is not None and row["object_id"] is not None:
            found.add(prefix + row["object_id"].lower())
    return sorted(found)


def named_ids_sql(events: str) -> str:
    """SQL of `event_id`: what the events of a relation take back, by retractions and by name."""
    parts = [f"SELECT object_id AS event_id FROM {events} WHERE source = '{SOURCE_RETRACTION}'"]
    parts += [
        f"SELECT '{prefix}' || lower(object_id) FROM {events} WHERE source = '{source}' "
        f"AND event_name = '{name}' AND object_id IS NOT NULL"
        for (source, name), prefix in NAMING.items()
    ]
    return " UNION ".join(parts)
