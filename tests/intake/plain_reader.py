"""A mapping for tests of replays: lines of JSON with `id`, `at` and what else an event has."""

import json
from typing import Any

import pyarrow as pa
from tests.intake.arriving import DEFAULTS, arrival

from theon.errors import InputError
from theon.intake.arrivals import REFUSED_SCHEMA, Arrival

NO_JSON, NO_ID, NO_TIME = "not JSON", "no id", "no time"


def read(format: str, originals: "pa.Array[Any]", ids: "pa.Array[Any]") -> Arrival:
    """As a real mapping does: each line is an event or is refused."""
    if format != "native":
        raise InputError(f"there is no mapping {format!r}")
    rows: list[dict[str, Any]] = []
    at: list[int] = []
    refused: list[dict[str, Any]] = []
    for ordinal, line in enumerate(originals.cast(pa.binary()).to_pylist()):
        reason, row = _row(line, ids[ordinal].as_py())
        if reason:
            refused.append(
                {"ordinal": ordinal, "reason": reason, "detail": None, "original": line,
                 "place": None}
            )  # fmt: skip
        else:
            rows.append(row)
            at.append(ordinal)
    events = arrival(rows).events
    place = events.schema.get_field_index("ordinal")
    events = events.set_column(place, events.schema.field("ordinal"), pa.array(at, pa.int32()))
    return Arrival(format, events, originals, pa.Table.from_pylist(refused, REFUSED_SCHEMA))


def _row(line: bytes, default_id: str) -> tuple[str, dict[str, Any]]:
    try:
        found = json.loads(line)
    except ValueError:
        return NO_JSON, {}
    if not isinstance(found, dict):
        return NO_JSON, {}
    known = {"id", "at", *DEFAULTS}
    row = {name: value for name, value in found.items() if name in known}
    if "id" not in row:
        if not found.get("may_lack_id"):
            return NO_ID, {}
        row["id"] = default_id
    if not isinstance(row.get("at"), int):
        return NO_TIME, {}
    return "", row
