"""Gaps: events that should have come and did not, on record until they are explained.

Whoever notices one calls `notice`; the same gap again is the same row. A gap ends when it is
repaired, or when a person accepts it. A clock that is off is no gap, but a finding of the same
kind: noticed, kept, ended and accepted likewise, so it is in the same table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from theon.errors import ConflictError, InputError, MissingError

MOODLE_IDS, KAFKA_OFFSETS, SILENCE, CLOCK = "moodle_ids", "kafka_offsets", "silence", "clock"
KINDS = (MOODLE_IDS, KAFKA_OFFSETS, SILENCE, CLOCK)
STATES = ("open", "repaired", "accepted")
THEON = "Theon"  # by whom a gap is ended that no person ends


@dataclass(frozen=True)
class Gap:
    """A gap as whoever notices it describes it.

    Attributes:
        kind: one of `KINDS`.
        source: as in the delivery ledger.
        explanation: what is missing and how it shows, in a sentence.
        first_id, last_id: the Moodle log ids or Kafka offsets that are missing, both inclusive;
            None of a silence and a clock. Where nobody knows how far it goes, `last_id` is None.
        missing: how many of them; None where nobody knows.
        from_at, to_at: the last event before it and the first after it, as far as known. A silence
            is known by `from_at`. Of a clock the first hour in which it was off, and the first in
            which it was right again; until then it is the same finding.
        off_s: of a clock: by how many seconds it seems to be off; negative: behind.
    """

    kind: str
    source: str
    explanation: str
    first_id: int | None = None
    last_id: int | None = None
    missing: int | None = None
    from_at: datetime | None = None
    to_at: datetime | None = None
    off_s: int | None = None


@dataclass(frozen=True)
class KeptGap:
    """A gap on record; see `Gap`.

    Attributes:
        campus: slug.
        state: `open`, `repaired` or `accepted`.
        ended_by: who or what ended it.
    """

    id: int
    campus: str
    kind: str
    source: str
    first_id: int | None
    last_id: int | None
    missing: int | None
    from_at: datetime | None
    to_at: datetime | None
    noticed_at: datetime
    state: str
    explanation: str
    ended_at: datetime | None
    ended_by: str | None
    off_s: int | None = None


class NoSuchGapError(MissingError):
    """There is no gap of this number in the scope."""


def notice(conn: Connection, campus_id: int, gap: Gap) -> bool:
    """Put a gap on record, in the caller's transaction.

    Args:
        conn: a transaction whose scope holds the campus.
        campus_id: whose it is; gaps of what all campuses share, such as a topic, are the
            district's.
        gap: what is missing.

    Returns:
        Whether it is news: it was not known, or it had been repaired. What a person has accepted
        stays accepted.
    """
    found = conn.execute(
        text(
            "INSERT INTO theon.delivery_gaps AS g (campus_id, kind, source, first_id, last_id,"
            " missing, from_at, to_at, off_s, explanation) VALUES (:campus, :kind, :source,"
            " :first_id, :last_id, :missing, :from_at, :to_at, :off_s, :explanation)"
            f" ON CONFLICT {_SAME.get(gap.kind, _SAME_IDS)} DO UPDATE"
            " SET state = 'open', ended_at = NULL, ended_by = NULL,"
            " noticed_at = clock_timestamp(), explanation = excluded.explanation"
            " WHERE g.state = 'repaired' RETURNING id"
        ),
        {"campus": campus_id, **vars(gap)},
    ).first()
    return found is not None


# What makes a gap the same as one on record, as the unique indexes have it.
_SAME_IDS = "(campus_id, kind, source, first_id, last_id) WHERE first_id IS NOT NULL"
_SAME = {
    SILENCE: "(campus_id, source, from_at) WHERE kind = 'silence'",
    CLOCK: "(campus_id, source) WHERE kind = 'clock' AND to_at IS NULL",
}


def end_gaps(
    conn: Connection, ids: Sequence[int], state: str, actor: str, explanation: str | None = None
) -> int:
    """End open gaps as `repaired` or `accepted`; others are left alone. Returns how many."""
    done = conn.execute(
        text(
            "UPDATE theon.delivery_gaps SET state = :state, ended_at = clock_timestamp(),"
            " ended_by = :actor, explanation = coalesce(:explanation, explanation)"
            " WHERE id = ANY (:ids) AND state = 'open' RETURNING id"
        ),
        {"ids": list(ids), "state": state, "actor": actor, "explanation": explanation},
    )
    return len(done.all())


def accept_gap(conn: Connection, gap_id: int, actor: str, explanation: str) -> KeptGap:
    """A person says that a gap, or a clock, is as it should be, and why.

    Raises:
        NoSuchGapError: the scope has none of this number.
        ConflictError: it has ended already.
        InputError: no explanation is given.
    """
    if not explanation.strip():
        raise InputError(
            "a gap is accepted with a reason",
            where=f"gap {gap_id}",
            next_step="Say why it is as it should be, such as: the school was closed.",
        )
    gap = get_gap(conn, gap_id)
    if not end_gaps(conn, [gap_id], "accepted", actor, f"{gap.explanation} {explanation.strip()}"):
        raise ConflictError(
            f"the gap is {gap.state} already", where=f"gap {gap_id}", next_step="Look at it again."
        )
    return get_gap(conn, gap_id)


def get_gap(conn: Connection, gap_id: int) -> KeptGap:
    """A gap by its number.

    Raises:
        NoSuchGapError: the scope has none of this number.
    """
    row = conn.execute(text(_SELECT + " WHERE g.id = :id"), {"id": gap_id}).first()
    if row is None:
        raise NoSuchGapError(
            f"there is no gap {gap_id}",
            where="gap",
            next_step="`theon intake gaps` and /api/v1/delivery/gaps list them.",
        )
    return KeptGap(*row)


def list_gaps(
    conn: Connection,
    *,
    state: str | None = "open",
    kind: str | None = None,
    source: str | None = None,
    limit: int = 200,
    before: int | None = None,
) -> list[KeptGap]:
    """Gaps in scope, newest first.

    Args:
        conn: in the scope of who asks.
        state: only those in it; None is all.
        kind: only of it.
        source: only of it.
        limit: how many at most.
        before: only those with a smaller number: the last one's of the page before.
    """
    rows = conn.execute(
        text(
            _SELECT + " WHERE (CAST(:state AS text) IS NULL OR g.state = :state)"
            " AND (CAST(:kind AS text) IS NULL OR g.kind = :kind)"
            " AND (CAST(:source AS text) IS NULL OR g.source = :source)"
            " AND (CAST(:before AS bigint) IS NULL OR g.id < :before)"
            " ORDER BY g.id DESC LIMIT :limit"
        ),
        {"state": state, "kind": kind, "source": source, "before": before, "limit": limit},
    )
    return [KeptGap(*row) for row in rows]


_SELECT = (
    "SELECT g.id, c.slug, g.kind, g.source, g.first_id, g.last_id, g.missing, g.from_at, g.to_at,"
    " g.noticed_at, g.state, g.explanation, g.ended_at, g.ended_by, g.off_s"
    " FROM theon.delivery_gaps g JOIN theon.campuses c ON c.id = g.campus_id"
)
