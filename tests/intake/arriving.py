"""Arrivals from short rows, for tests of the door and of what lies behind it."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from sqlalchemy import text

from theon.intake.arrivals import ARRIVAL_SCHEMA, Arrival
from theon.store.engine import Store
from theon.store.scope import Scope

DEFAULTS: dict[str, Any] = {
    "source": "http:test",
    "user_id": "5",
    "course_id": "6",
    "event_name": "\\core\\event\\course_viewed",
    "component": "core",
    "action": "viewed",
    "origin": "web",
}


def delivered(store: Store, scope: str) -> tuple[int, ...]:
    """Received, accepted, duplicate, rejected and dead-lettered of all sources in a scope."""
    with store.transaction(Scope(scope)) as conn:
        row = conn.execute(
            text(
                "SELECT sum(received), sum(accepted), sum(duplicate), sum(rejected),"
                " sum(dead_lettered) FROM theon.delivery_counts"
            )
        ).one()
    return tuple(int(value or 0) for value in row)


def arrival(rows: Sequence[dict[str, Any]]) -> Arrival:
    """Rows give `id`, `at` (epoch seconds) and what differs from `DEFAULTS`."""
    full = []
    for ordinal, given in enumerate(rows):
        row = {**dict.fromkeys(ARRIVAL_SCHEMA.names), **DEFAULTS, **given, "ordinal": ordinal}
        row["event_id"] = row.pop("id")
        row["occurred_at"] = datetime.fromtimestamp(row.pop("at"), UTC)
        full.append(row)
    originals = pa.array([json.dumps(row) for row in rows], pa.string())
    return Arrival("native", pa.Table.from_pylist(full, ARRIVAL_SCHEMA), originals)
