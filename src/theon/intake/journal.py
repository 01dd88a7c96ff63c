"""The journal: accepted events that are not in the lake yet, in PostgreSQL.

They are there in the transaction that accepts them, with whatever else it brings: outcomes, a
consumer's offsets, statements. A landing moves them into the lake, many at a time.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text

from theon.intake.arrivals import EVENT_COLUMNS

CHANNEL = "theon_arrivals"
LANDING_EVENTS = 250_000
ENTRIES_TOGETHER = 100
# What is shorter is not worth packing.
PACKED_EVENTS = 100


def write_journal(
    conn: Connection, campus_id: int, slug: str, source: str, batch: int | None, events: pa.Table
) -> None:
    """Put new events into the journal, and wake whoever lands them once it is committed.

    Args:
        conn: the transaction that accepts them.
        campus_id: whose they are.
        slug: of that campus.
        source: where they came from.
        batch: a number that no other call was given; a new one if None.
        events: one or more; the columns of the lake's data files.
    """
    times = pc.min_max(events["occurred_at"])
    conn.execute(
        text(
            "WITH written AS (INSERT INTO theon.event_journal (id, campus_id, source, events,"
            " first_at, last_at, rows) VALUES (coalesce(:id, nextval('theon.event_batches')),"
            " :campus, :source, :events, :first_at, :last_at, :rows))"
            " SELECT pg_notify(:channel, :slug)"
        ),
        {
            "id": batch,
            "campus": campus_id,
            "source": source,
            "events": events.num_rows,
            "first_at": times["min"].as_py(),
            "last_at": times["max"].as_py(),
            "rows": _packed(events),
            "channel": CHANNEL,
            "slug": slug,
        },
    )


def wake_lander(conn: Connection, slug: str) -> None:
    """Wake whoever lands events, once the transaction is committed: there is more to do."""
    conn.execute(text("SELECT pg_notify(:channel, :slug)"), {"channel": CHANNEL, "slug": slug})


def read_journal(conn: Connection, campus_id: int) -> tuple[list[int], pa.Table]:
    """The oldest entries of a campus, about `LANDING_EVENTS`: their numbers and their events."""
    entries = conn.execute(
        text(
            "SELECT j.id, j.rows FROM theon.event_journal j JOIN (SELECT id, sum(events) OVER"
            " (ORDER BY id) - events AS before FROM theon.event_journal"
            " WHERE campus_id = :campus) AS oldest ON oldest.id = j.id"
            " WHERE j.campus_id = :campus AND oldest.before < :events ORDER BY j.id"
        ),
        {"campus": campus_id, "events": LANDING_EVENTS},
    ).all()
    tables = [_unpacked(rows) for _, rows in entries]
    none = pa.schema(EVENT_COLUMNS).empty_table()
    return [entry for entry, _ in entries], pa.concat_tables(tables) if tables else none


def pending(conn: Connection, campus_id: int) -> Iterator[pa.Table]:
    """All that waits for a landing of a campus, in tables of about `LANDING_EVENTS`.

    Their columns are `EVENT_COLUMNS`; none is empty.
    """
    entries = conn.execute(
        text("SELECT rows FROM theon.event_journal WHERE campus_id = :campus ORDER BY id"),
        {"campus": campus_id},
        execution_options={"yield_per": ENTRIES_TOGETHER},
    )
    found: list[pa.Table] = []
    events = 0
    for (rows,) in entries:
        found.append(_unpacked(rows))
        events += found[-1].num_rows
        if events >= LANDING_EVENTS:
            yield pa.concat_tables(found)
            found, events = [], 0
    if found:
        yield pa.concat_tables(found)


def clear_journal(conn: Connection, campus_id: int, entries: list[int]) -> None:
    """Take out entries that are in the lake."""
    conn.execute(
        text("DELETE FROM theon.event_journal WHERE campus_id = :campus AND id = ANY (:ids)"),
        {"campus": campus_id, "ids": entries},
    )


def _packed(events: pa.Table) -> bytes:
    many = events.num_rows > PACKED_EVENTS
    options = pa.ipc.IpcWriteOptions(compression="zstd" if many else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, events.schema, options=options) as stream:
        stream.write_table(events)
    return sink.getvalue().to_pybytes()


def _unpacked(rows: bytes) -> pa.Table:
    with pa.ipc.open_stream(rows) as stream:
        return stream.read_all()
