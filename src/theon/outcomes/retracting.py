"""Which events are retracted: kept for ever, so that it does not matter which comes first.

A retraction of which the event's time is known is made at once. One that only names an event is
open until that is found, by a landing: there every event passes, and there the lake is looked
through (`theon.intake.retracting`). What an event said of outcomes leaves at once in either case.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa
from sqlalchemy import Connection, text

from theon.events.outcomes import short_id
from theon.events.retractions import RETRACTED_SCHEMA, no_retracted

# In one order everywhere, or two transactions could wait for each other.
_NAME = text(
    "INSERT INTO theon.retractions (campus_id, event_id)"
    " SELECT :campus, i FROM unnest(CAST(:ids AS text[])) AS t (i) ORDER BY i"
    " ON CONFLICT DO NOTHING"
)
_LOCATE = text(
    "INSERT INTO theon.retractions AS r (campus_id, event_id, occurred_at, sought)"
    " SELECT :campus, i, a, true"
    " FROM unnest(CAST(:ids AS text[]), CAST(:times AS timestamptz[])) AS t (i, a) ORDER BY i"
    " ON CONFLICT (event_id, campus_id) DO UPDATE SET occurred_at = excluded.occurred_at,"
    " sought = true WHERE r.occurred_at IS NULL RETURNING r.event_id"
)
_SOUGHT = text(
    "UPDATE theon.retractions AS r SET sought = true FROM (SELECT event_id FROM theon.retractions"
    " WHERE campus_id = :campus AND event_id = ANY (:ids) ORDER BY event_id FOR UPDATE) AS l"
    " WHERE r.campus_id = :campus AND r.event_id = l.event_id AND NOT r.sought"
)
_WITHDRAW = text(
    "DELETE FROM theon.outcome_facts WHERE campus_id = :campus AND event_id = ANY (:ids)"
    " RETURNING kind, user_id, course_id"
)


def name_retracted(conn: Connection, campus_id: int, ids: Iterable[str]) -> None:
    """Note that events are taken back of which nothing is known but their ids."""
    found = sorted({short_id(event_id) for event_id in ids})
    if found:
        conn.execute(_NAME, {"campus": campus_id, "ids": found})


def locate_retracted(conn: Connection, campus_id: int, events: pa.Table) -> pa.Table:
    """Note that events are taken back, and when they happened.

    Args:
        conn: a transaction whose scope holds the campus.
        campus_id: whose events.
        events: `RETRACTED_SCHEMA`.

    Returns:
        Those of `events` whose time was not known before: their retractions are to be made.
    """
    rows = {short_id(row["event_id"]): row for row in events.to_pylist()}
    if not rows:
        return no_retracted()
    given = {"ids": list(rows), "times": [row["occurred_at"] for row in rows.values()]}
    found = conn.execute(_LOCATE, {"campus": campus_id, **given}).scalars()
    return pa.Table.from_pylist([rows[event_id] for event_id in sorted(found)], RETRACTED_SCHEMA)


def withdraw_facts(
    conn: Connection, campus_id: int, ids: Iterable[str]
) -> set[tuple[str, str, str]]:
    """Remove what retracted events said of outcomes; in a transaction with the campus's lock.

    Returns:
        Kind, learner and course of what was removed.
    """
    found = sorted({short_id(event_id) for event_id in ids})
    gone = conn.execute(_WITHDRAW, {"campus": campus_id, "ids": found})
    return {(row.kind, row.user_id, row.course_id) for row in gone}


def open_retractions(conn: Connection, campus_id: int) -> dict[str, bool]:
    """Ids of retracted events that were not found yet, in short form, and whether they were sought.

    Few as a rule: those that are named before they come, and those that never will.
    """
    rows = conn.execute(
        text(
            "SELECT event_id, sought FROM theon.retractions"
            " WHERE campus_id = :campus AND occurred_at IS NULL"
        ),
        {"campus": campus_id},
    )
    return {row.event_id: row.sought for row in rows}


def mark_sought(conn: Connection, campus_id: int, ids: Sequence[str]) -> None:
    """Note that the lake does not hold these events, by their short ids."""
    if ids:
        conn.execute(_SOUGHT, {"campus": campus_id, "ids": list(ids)})
