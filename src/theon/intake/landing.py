"""Landing: accepted events go from the journal into the lake, many at a time, exactly once.

One transaction holds the campus's row in `landings`, so one process lands a campus at a time. The
lake's commit comes before PostgreSQL's. Between the two a crash leaves events that are in both;
the next landing has the same turn, finds it taken in the lake's log, and looks for every event.
"""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, text

from theon.intake.event_ids import EVENT_ID_DAYS
from theon.intake.journal import clear_journal, read_journal
from theon.intake.retracting import settle_landing
from theon.intake.staged import ROW_GROUP_ROWS
from theon.lake.table import EventLake
from theon.roster.campuses import Campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

# The register keeps an id this long at least, and an event may be a day ahead of our clock.
SURE_DAYS = EVENT_ID_DAYS - 2


@dataclass(frozen=True)
class Landed:
    """What a landing did.

    Attributes:
        entries: of the journal.
        new: events that are in the lake now and were not.
        known: events that another road had brought already.
        version: of the lake, which holds them.
    """

    entries: int
    new: int
    known: int
    version: int


def land(store: Store, lake: EventLake, settings: Settings, campus: Campus) -> Landed | None:
    """Move the oldest accepted events of a campus into the lake.

    Returns:
        What was done; None if there is nothing, or another process is at it. Call it again
        until then: one landing takes about `journal.LANDING_EVENTS`.

    Raises:
        ConflictError: other writers kept winning; the events stay in the journal.
        UnavailableError: lake or database cannot be reached; the same.
    """
    with store.transaction(Scope(campus.slug)) as conn:
        turn = _take_turn(conn, campus.id)
        if turn is None:
            return None
        entries, events = read_journal(conn, campus.id)
        # After the journal: who names an event that is not in it yet commits later than that one,
        # or finds it in the lake.
        retractions = settle_landing(conn, lake, settings, campus, events)
        events = pa.concat_tables([events, retractions])
        if not events.num_rows:
            return None
        folder = settings.home_dir / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="landing-", dir=folder) as workspace:
            staged = Path(workspace) / "events.parquet"
            pq.write_table(
                events.sort_by("occurred_at"),
                staged,
                row_group_size=ROW_GROUP_ROWS,
                compression="zstd",
            )
            fresh_after = datetime.now(UTC) - timedelta(days=SURE_DAYS)
            added = lake.land(staged, campus.slug, turn=turn + 1, fresh_after=fresh_after)
        clear_journal(conn, campus.id, entries)
        conn.execute(
            text(
                "UPDATE theon.landings SET turn = :turn, landed_at = clock_timestamp()"
                " WHERE campus_id = :campus"
            ),
            {"turn": turn + 1, "campus": campus.id},
        )
    return Landed(len(entries), added.new, added.known, added.version)


def campuses_to_land(conn: Connection) -> list[str]:
    """Slugs of the campuses in scope with events to land, or to look for in the lake."""
    found = conn.execute(
        text(
            "SELECT c.slug FROM theon.campuses c WHERE EXISTS (SELECT 1 FROM theon.event_journal j"
            " WHERE j.campus_id = c.id) OR EXISTS (SELECT 1 FROM theon.retractions r"
            " WHERE r.campus_id = c.id AND r.occurred_at IS NULL AND NOT r.sought) ORDER BY c.slug"
        )
    )
    return list(found.scalars())


def _take_turn(conn: Connection, campus_id: int) -> int | None:
    """The turn of the last landing, locked; None while somebody else has it."""
    row = conn.execute(
        text("SELECT turn FROM theon.landings WHERE campus_id = :campus FOR UPDATE SKIP LOCKED"),
        {"campus": campus_id},
    ).first()
    if row is not None:
        return int(row.turn)
    added = conn.execute(
        text(
            "INSERT INTO theon.landings (campus_id) VALUES (:campus) ON CONFLICT DO NOTHING"
            " RETURNING turn"
        ),
        {"campus": campus_id},
    ).scalar_one_or_none()
    return None if added is None else int(added)
