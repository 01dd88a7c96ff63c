"""The outbox: what is to be told outside, written in the transaction that made it true.

Whoever publishes takes the rows in order and deletes them once they are delivered, so each is told
at least once, under an id of its own that receivers know repetitions by.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

CHANNEL = "theon_outbox"
ANALYTICS_UPDATED = "AnalyticsUpdated"
REPORT_GENERATED = "ReportGenerated"


@dataclass(frozen=True)
class Announcement:
    """One row of the outbox.

    Attributes:
        id: its place in the order.
        event_id: unique for ever.
        type: what happened.
        campus: slug of the campus where.
        at: when it was written.
        data: more about it.
    """

    id: int
    event_id: str
    type: str
    campus: str
    at: datetime
    data: dict[str, Any]


def announce(conn: Connection, campus_id: int, type_: str, data: Mapping[str, Any]) -> None:
    """Have something told once this transaction commits; for where there is a Kafka to tell it on.

    Args:
        conn: the transaction that makes it true; its scope holds the campus.
        campus_id: where it happened.
        type_: what happened, such as `ANALYTICS_UPDATED`.
        data: what JSON can say.
    """
    conn.execute(
        text(
            "INSERT INTO theon.outbox (campus_id, type, data)"
            " VALUES (:campus, :type, CAST(:data AS jsonb))"
        ),
        {"campus": campus_id, "type": type_, "data": json.dumps(data)},
    )
    conn.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})


def take(conn: Connection, limit: int) -> list[Announcement]:
    """The oldest announcements in scope, for this transaction alone; none while another has them.

    Args:
        conn: a transaction that deletes what was told (`told`).
        limit: how many at most.
    """
    turn = text("SELECT pg_try_advisory_xact_lock(hashtext('theon.outbox'))")
    if not conn.execute(turn).scalar_one():
        return []
    rows = conn.execute(
        text(
            "SELECT o.id, o.event_id::text, o.type, c.slug, o.at, o.data FROM theon.outbox o"
            " JOIN theon.campuses c ON c.id = o.campus_id ORDER BY o.id LIMIT :limit"
        ),
        {"limit": limit},
    )
    return [Announcement(*row) for row in rows]


def told(conn: Connection, announcements: list[Announcement]) -> None:
    """Take out what was delivered."""
    conn.execute(
        text("DELETE FROM theon.outbox WHERE id = ANY (:ids)"),
        {"ids": [announcement.id for announcement in announcements]},
    )


def waiting(conn: Connection) -> tuple[int, datetime | None]:
    """How many announcements in scope wait, and since when the oldest."""
    row = conn.execute(text("SELECT count(*), min(at) FROM theon.outbox")).one()
    return int(row[0]), row[1]
