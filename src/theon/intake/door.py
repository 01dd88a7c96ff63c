"""The door: the one way in for events that arrive while Theon runs.

Whatever the connector, it hands over an arrival, and the caller's transaction makes all of it
durable or nothing: the ids, the outcomes, the events, the delivery ledger, what was refused, and
what the connector itself adds, such as the offsets of a topic.
"""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection

from theon.events.outcome_news import OutcomeNews, announce_outcomes
from theon.events.retractions import retraction_events
from theon.intake.arrivals import (
    EVENT_COLUMNS,
    ORDINAL,
    REFUSED_SCHEMA,
    REUSED_ID,
    Arrival,
    Receipt,
)
from theon.intake.clocks import measure
from theon.intake.delivery import keep_letters, record_delivery
from theon.intake.event_ids import register
from theon.intake.journal import write_journal
from theon.lake.lake_ids import LakeIds
from theon.outcomes.columns import CHANNEL
from theon.outcomes.observer import STRUCTURE, Observed, observe
from theon.roster.campuses import Campus


def accept(
    conn: Connection,
    campus: Campus,
    source: str,
    arrival: Arrival,
    *,
    lake_ids: LakeIds | None = None,
    retracted: pa.Table | None = None,
    letters: bool = True,
) -> Receipt:
    """Take in what arrived, in the caller's transaction.

    Events in it that only name what they take back are seen to: their retractions are made when
    what they name is found. Whoever knows it already gives it as `retracted`.

    Args:
        conn: a transaction whose scope holds the campus; nothing counts before it commits.
        campus: whose events they are.
        source: their sender, by a name that people know and that does not change.
        arrival: what arrived.
        lake_ids: ids noted beside the lake; without them such events are found when they land.
        retracted: `RETRACTED_SCHEMA`: events that hold no longer, whether they came before, come
            now or never did.
        letters: whether what is refused becomes dead letters; not where it is one already.

    Returns:
        What became of each.
    """
    new, duplicates, reused = arrival.events, list[int](), list[int]()
    batch: int | None = None
    if new.num_rows:
        known = register(conn, campus, new, lake_ids)
        batch, duplicates, reused = known.batch, known.duplicates, known.reused
        if duplicates or reused:
            old = pa.array([*duplicates, *reused], pa.int32())
            new = new.filter(pc.invert(pc.is_in(new[ORDINAL], old)))
    refused = arrival.refused
    if reused:
        refused = pa.concat_tables([refused, _refused(arrival, reused)])
    if new.num_rows or retracted:
        events = new.select([field.name for field in EVENT_COLUMNS])
        observed = observe(conn, campus.id, campus.timezone, events, retracted=retracted)
        _tell_outcomes(conn, campus, observed)
        if observed.retracted.num_rows:
            events = pa.concat_tables([events, retraction_events(observed.retracted)])
        if events.num_rows:
            write_journal(conn, campus.id, campus.slug, source, batch, events)
    kept = 0
    if letters and refused.num_rows:
        kept = keep_letters(conn, campus.id, source, arrival.format, refused)
    record_delivery(
        conn,
        campus.id,
        source,
        received=arrival.received,
        accepted=new.num_rows,
        duplicate=len(duplicates),
        refused=Counter(row["reason"] for row in refused.select(["reason"]).to_pylist()),
        dead_lettered=kept,
        lags=measure(arrival, new),
    )
    return Receipt(arrival.received, new.num_rows, duplicates, refused)


def _tell_outcomes(conn: Connection, campus: Campus, observed: Observed) -> None:
    """Tell whoever watches what kinds of outcomes there are, in which courses."""
    news = [
        OutcomeNews(campus.slug, course or None, kind, count)
        for (kind, course), count in observed.kinds.items()
        if kind != STRUCTURE  # of a course, not of anybody in it
    ]
    announce_outcomes(conn, CHANNEL, news)


def _refused(arrival: Arrival, reused: list[int]) -> pa.Table:
    """What the door refuses: ids that stand for something else."""
    at = pa.array(reused, pa.int32())
    ids = {
        row[ORDINAL]: row["event_id"]
        for row in arrival.events.select([ORDINAL, "event_id"])
        .filter(pc.is_in(arrival.events[ORDINAL], at))
        .to_pylist()
    }
    places = pa.nulls(len(reused), pa.string())
    return pa.table(
        [
            at,
            pa.array([REUSED_ID] * len(reused), pa.string()),
            pa.array([ids[ordinal] for ordinal in reused], pa.string()),
            arrival.originals.take(at).cast(pa.binary()),
            places if arrival.places is None else arrival.places.take(at),
        ],
        schema=REFUSED_SCHEMA,
    )
