"""Retractions that only name an event: the event is found, and they are made.

Every event gets into the lake by a landing or by a file. So an event that comes after what names it
is seen by one of these. One that came before is found in the lake, which is looked through once, by
the first landing after it was named: what lies in the journal then passes through the same landing,
or through a later one. A file looks after it is in the lake. So whichever of two was first, the
other sees it.
"""

from pathlib import Path

import duckdb
import pyarrow as pa
from sqlalchemy import Connection

from theon.events.outcomes import SHORT_HEAD, short_id_sql
from theon.events.retractions import RETRACTED_SCHEMA, no_retracted, retraction_events
from theon.intake.journal import wake_lander, write_journal
from theon.lake.engine import open_engine, sql_list, sql_text
from theon.lake.table import EventLake
from theon.outcomes.retracting import locate_retracted, mark_sought, open_retractions
from theon.roster.campuses import Campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

SOURCE = "retractions"
LAST_CHARACTER = chr(0x10FFFF)


def settle_landing(
    conn: Connection, lake: EventLake, settings: Settings, campus: Campus, events: pa.Table
) -> pa.Table:
    """The retractions that can be made now, to land together with `events`.

    Args:
        conn: the landing's transaction; no other landing of the campus is under way.
        lake: as it is before this landing.
        settings: of the engine.
        campus: whose events.
        events: that land.

    Returns:
        Events as the lake stores them.
    """
    waiting = open_retractions(conn, campus.id)
    if not waiting:
        return retraction_events(no_retracted())
    unsought = sorted(event_id for event_id, sought in waiting.items() if not sought)
    with open_engine(settings) as engine:
        engine.register("landing_", events)
        found = _find(engine, "landing_", waiting)
        files = [file.path for file in lake.files(campus.slug)] if unsought else []
        if files:
            found = pa.concat_tables([found, _find(engine, _near(files, unsought), unsought)])
    located = locate_retracted(conn, campus.id, found)
    mark_sought(conn, campus.id, unsought)
    return retraction_events(located)


def settle_file(store: Store, settings: Settings, campus: Campus, staged: Path) -> None:
    """Make the retractions of events that a file has just brought into the lake.

    They go into the journal. What the file itself takes back is for the next landing.
    """
    with store.transaction(Scope(campus.slug)) as conn:
        waiting = open_retractions(conn, campus.id)
        if not waiting:
            return
        if not all(waiting.values()):
            wake_lander(conn, campus.slug)
        with open_engine(settings) as engine:
            found = _find(engine, f"read_parquet({sql_text(staged)})", waiting)
        made = retraction_events(locate_retracted(conn, campus.id, found))
        if made.num_rows:
            write_journal(conn, campus.id, campus.slug, SOURCE, None, made)


def _find(
    engine: duckdb.DuckDBPyConnection, events: str, wanted: "dict[str, bool] | list[str]"
) -> pa.Table:
    """Those of `events` whose short ids are wanted; `RETRACTED_SCHEMA`, each once."""
    engine.register("wanted_", pa.table({"event_id": pa.array(list(wanted), pa.string())}))
    try:
        found: pa.Table = engine.sql(
            f"SELECT DISTINCT event_id, occurred_at FROM {events} AS e"
            f" WHERE {short_id_sql('event_id')} IN (SELECT event_id FROM wanted_)"
        ).to_arrow_table()
    finally:
        engine.unregister("wanted_")
    return found.cast(RETRACTED_SCHEMA)


def _near(files: list[str], wanted: list[str]) -> str:
    """SQL of the events that any of `wanted` may be, by how ids begin.

    Those of a source begin alike, so the files' statistics leave out most of the lake.
    """
    heads = sorted(event_id[:SHORT_HEAD] for event_id in wanted)
    return (
        f"(SELECT event_id, occurred_at FROM read_parquet({sql_list(files)}, "
        f"hive_partitioning = false) WHERE event_id >= {sql_text(heads[0])} "
        f"AND event_id <= {sql_text(heads[-1] + LAST_CHARACTER)})"
    )
