"""Native events from short rows, for tests of several rooms."""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from theon.events.schema import EVENT_SCHEMA

AT = datetime(2026, 10, 21, 9, 0, tzinfo=UTC)
_STAGED = pa.schema([f for f in EVENT_SCHEMA if f.name != "campus"])


def native_events(event_name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Events as the lake holds them, without campus.

    Args:
        event_name: of rows that do not give their own.
        rows: `event_id`, and what differs from learner 5 in course 6 at `AT`; `other` is a dict.
    """
    defaults = {
        "source": "test",
        "event_name": event_name,
        "user_id": "5",
        "course_id": "6",
        "occurred_at": AT,
        "origin": "web",
    }
    full = []
    for row in rows:
        event = {**dict.fromkeys(_STAGED.names), **defaults, **row}
        if event["other"] is not None and not isinstance(event["other"], str):
            event["other"] = json.dumps(event["other"])
        full.append(event)
    return pa.Table.from_pylist(full, _STAGED)
