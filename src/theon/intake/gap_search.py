"""Looking for gaps: ids that Moodle's log lacks, sources that fell silent; and at clocks."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, text

from theon.intake.clock_search import look_at_clocks
from theon.intake.gaps import (
    CLOCK,
    MOODLE_IDS,
    SILENCE,
    THEON,
    Gap,
    KeptGap,
    end_gaps,
    list_gaps,
    notice,
)
from theon.intake.moodle_ids import MOODLE, Run, find_holes
from theon.intake.rhythm import WEEKS, Silence, judge
from theon.lake.table import EventLake
from theon.roster.campuses import Campus, list_campuses
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

RECONCILE = "reconcile"
# A source that has not sent for longer is not waited for any more.
WAITED_DAYS = 28
MOST_OPEN = 100_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """What a search for gaps did.

    Attributes:
        noticed: gaps, and clocks that are off, that are news; each is logged as a warning.
        ended: gaps that are closed again.
        open: gaps that are open now.
    """

    noticed: int
    ended: int
    open: int


def look_for_gaps(
    store: Store, lake: EventLake, settings: Settings, scope: Scope, now: datetime | None = None
) -> Search:
    """Look through all campuses of a scope, and keep what is found.

    Args:
        store: ledger and gaps.
        lake: the events.
        settings: of the engine.
        scope: which campuses.
        now: the present.
    """
    at = now or datetime.now(UTC)
    noticed = ended = 0
    for campus in list_campuses(store, scope):
        with store.transaction(Scope(campus.slug)) as conn:
            ended += _end_silences(conn, campus)
            news = [gap for gap in _silences(conn, campus, at) if notice(conn, campus.id, gap)]
            clocks, right = look_at_clocks(conn, campus, at)
        more, filled = _look_for_holes(store, lake, settings, campus)
        ended += right + filled
        for gap in (*news, *clocks, *more):
            noticed += 1
            what = "clock of" if gap.kind == CLOCK else "gap in"
            _log.warning("%s %s of %s: %s", what, gap.source, campus.slug, gap.explanation)
    with store.transaction(scope) as conn:
        left = conn.execute(text("SELECT count(*) FROM theon.delivery_gaps WHERE state = 'open'"))
        return Search(noticed, ended, int(left.scalar_one()))


# -- silences ------------------------------------------------------------------------------


def _silences(conn: Connection, campus: Campus, now: datetime) -> list[Gap]:
    rows = conn.execute(
        text(
            "SELECT d.source, array_agg(d.hour) AS hours, max(d.last_at) AS last_at"
            " FROM theon.delivery_counts d WHERE d.campus_id = :campus AND d.received > 0"
            " AND d.hour > :since AND d.source NOT LIKE 'replay:%' GROUP BY d.source"
            " HAVING max(d.last_at) > :waited ORDER BY d.source"
        ),
        {
            "campus": campus.id,
            "since": now - timedelta(weeks=WEEKS, days=WAITED_DAYS),
            "waited": now - timedelta(days=WAITED_DAYS),
        },
    )
    found = []
    for source, hours, last_at in rows:
        silence = judge(hours, last_at, now, campus.timezone)
        if silence is not None:
            found.append(Gap(SILENCE, source, _words(silence), from_at=silence.since))
    return found


def _words(silence: Silence) -> str:
    before = f"{silence.usual_before:.1f}" if silence.usual_before >= 0.05 else "none"
    return (
        f"Nothing has come for {silence.length:.1f} of the hours in which it usually sends; of the "
        f"{WEEKS} weeks before, the second longest silence had {before} of them."
    )


def _end_silences(conn: Connection, campus: Campus) -> int:
    """Silences after which the source has sent again."""
    done = conn.execute(
        text(
            "UPDATE theon.delivery_gaps g SET state = 'repaired', ended_by = :actor,"
            " ended_at = clock_timestamp(), to_at = s.again FROM (SELECT g.id, min(greatest("
            "  d.hour, g.from_at)) AS again FROM theon.delivery_gaps g"
            "  JOIN theon.delivery_counts d ON d.campus_id = g.campus_id AND d.source = g.source"
            "   AND d.last_at > g.from_at AND d.received > 0"
            "  WHERE g.campus_id = :campus AND g.kind = 'silence' AND g.state = 'open'"
            "  GROUP BY g.id) AS s WHERE g.id = s.id RETURNING g.id"
        ),
        {"campus": campus.id, "actor": THEON},
    )
    return len(done.all())


# -- Moodle's ids --------------------------------------------------------------------------


def _look_for_holes(
    store: Store, lake: EventLake, settings: Settings, campus: Campus
) -> tuple[list[Gap], int]:
    """New gaps, and how many were filled since; nothing is read while the lake is the same."""
    position = _position([file.path for file in lake.files(campus.slug)])
    with store.transaction(Scope(campus.slug)) as conn:
        if _looked_upto(conn, campus, MOODLE_IDS) == position:
            return [], 0
        kept = own_gaps(conn, campus)
        reconciled = _looked_upto(conn, campus, RECONCILE) or 0
    told = [(gap.first_id or 0, gap.last_id or 0) for gap in kept if gap.state == "open"]
    holes = find_holes(lake, settings, campus.slug, told)
    explained = [gap for gap in kept if gap.state == "accepted" or gap.ended_by == RECONCILE]
    with store.transaction(Scope(campus.slug)) as conn:
        filled = set(holes.filled)
        came = [gap.id for gap in kept if (gap.first_id, gap.last_id) in filled]
        ended = end_gaps(conn, came, "repaired", THEON)
        news = [
            gap
            for run in holes.told
            if run.last > reconciled
            and not _is_explained(run, explained)
            and notice(conn, campus.id, gap := as_gap(run))
        ]
        _note_look(conn, campus, MOODLE_IDS, position)
    return news, ended


def note_reconciled(conn: Connection, campus: Campus, upto: int) -> None:
    """All log rows that the source has up to this id are in the lake, so other ids are holes."""
    _note_look(conn, campus, RECONCILE, upto)


def _looked_upto(conn: Connection, campus: Campus, kind: str) -> int | None:
    found = conn.execute(
        text(
            "SELECT position FROM theon.delivery_looks WHERE campus_id = :campus AND kind = :kind"
        ),
        {"campus": campus.id, "kind": kind},
    )
    return found.scalar_one_or_none()


def _note_look(conn: Connection, campus: Campus, kind: str, position: int) -> None:
    conn.execute(
        text(
            "INSERT INTO theon.delivery_looks AS l (campus_id, kind, position)"
            " VALUES (:campus, :kind, :position) ON CONFLICT (campus_id, kind) DO UPDATE"
            " SET position = excluded.position, looked_at = clock_timestamp()"
        ),
        {"campus": campus.id, "kind": kind, "position": position},
    )


def as_gap(run: Run, words: str | None = None) -> Gap:
    """Missing ids as a gap; `words` explain it, unless it is only a hole in the lake."""
    which = f"id {run.first}" if run.first == run.last else f"ids {run.first} to {run.last}"
    return Gap(
        MOODLE_IDS,
        MOODLE,
        words
        or f"Moodle's log has no {which} here; theon intake reconcile tells whether the site has.",
        first_id=run.first,
        last_id=run.last,
        missing=run.missing,
        from_at=run.from_at,
        to_at=run.to_at,
    )


def own_gaps(conn: Connection, campus: Campus) -> list[KeptGap]:
    """All gaps in Moodle's ids that were ever noticed of a campus itself."""
    gaps = list_gaps(conn, state=None, kind=MOODLE_IDS, limit=MOST_OPEN)
    return [gap for gap in gaps if gap.campus == campus.slug]


def _is_explained(run: Run, accepted: Sequence[KeptGap]) -> bool:
    """Whether a person, or a comparison with the source, has said that all is there."""
    return any(
        (gap.first_id or 0) <= run.first and run.last <= (gap.last_id or 0) for gap in accepted
    )


def _position(files: Sequence[str]) -> int:
    digest = hashlib.sha256("\n".join(sorted(files)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
