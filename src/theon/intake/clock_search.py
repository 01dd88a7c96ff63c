"""Looking for clocks that are off, and keeping what is found beside the gaps.

One row stands for one clock that is off, from the first hour that showed it (`from_at`) to the
first hour in which it was right again (`to_at`). While `to_at` is open it is the same finding; if
a person accepted it, it stays accepted as long as the clock is off by about as much.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from theon.intake.clocks import (
    LOOKED_DAYS,
    STEP_S,
    SendingHour,
    Verdict,
    is_like_a_zone,
    judge,
    words_of_offset,
)
from theon.intake.gaps import CLOCK, THEON, Gap, notice
from theon.roster.campuses import Campus

_GOING_ON = (
    "SELECT id, source, state, off_s FROM theon.delivery_gaps"
    " WHERE campus_id = :campus AND kind = 'clock' AND to_at IS NULL"
)


def look_at_clocks(conn: Connection, campus: Campus, now: datetime) -> tuple[list[Gap], int]:
    """Judge the clock of each source of a campus.

    Args:
        conn: a transaction whose scope holds the campus.
        campus: which.
        now: the present.

    Returns:
        What is news, and how many clocks that were on record as off are right again.
    """
    known = {row.source: row for row in conn.execute(text(_GOING_ON), {"campus": campus.id})}
    news, ended = [], 0
    for source, verdict in _verdicts(conn, campus, now).items():
        kept = known.get(source)
        if verdict.state == "unknown":
            continue
        if kept is not None:
            if verdict.state == "right":
                ended += _end(conn, kept, verdict)
                continue
            if _is_same(kept, verdict):
                _renew(conn, kept, verdict)
                continue
            ended += _end(conn, kept, verdict)
        if verdict.state != "right":
            gap = Gap(CLOCK, source, words_of(verdict), from_at=verdict.since, off_s=verdict.off_s)
            if notice(conn, campus.id, gap):
                news.append(gap)
    return news, ended


def _verdicts(conn: Connection, campus: Campus, now: datetime) -> dict[str, Verdict]:
    rows = conn.execute(
        text(
            "SELECT source, hour, timed, ahead, least_lag_s FROM theon.delivery_counts"
            " WHERE campus_id = :campus AND timed > 0 AND hour > :since AND hour <= :now"
            " ORDER BY source"
        ),
        {"campus": campus.id, "since": now - timedelta(days=LOOKED_DAYS), "now": now},
    )
    hours: dict[str, list[SendingHour]] = {}
    for source, *figures in rows:
        hours.setdefault(source, []).append(SendingHour(*figures))
    return {source: judge(of_source, now) for source, of_source in hours.items()}


def _is_same(kept: Any, verdict: Verdict) -> bool:
    """Whether it goes on as it was: on the same side, and what was accepted is about as much."""
    known_s: int = kept.off_s
    if (known_s > 0) != (verdict.off_s > 0):
        return False
    return kept.state == "open" or abs(known_s - verdict.off_s) < STEP_S


def _end(conn: Connection, kept: Any, verdict: Verdict) -> int:
    """It is right again, or off in another way; what a person accepted stays so."""
    conn.execute(
        text(
            "UPDATE theon.delivery_gaps SET to_at = greatest(:since, from_at), state = CASE state"
            " WHEN 'open' THEN 'repaired' ELSE state END,"
            " ended_at = coalesce(ended_at, clock_timestamp()),"
            " ended_by = coalesce(ended_by, :actor) WHERE id = :id"
        ),
        {"id": kept.id, "since": verdict.since, "actor": THEON},
    )
    return int(kept.state == "open")


def _renew(conn: Connection, kept: Any, verdict: Verdict) -> None:
    """What the last hours say, where nobody has ended it."""
    conn.execute(
        text(
            "UPDATE theon.delivery_gaps SET off_s = :off_s, explanation = :words"
            " WHERE id = :id AND state = 'open' AND explanation <> :words"
        ),
        {"id": kept.id, "off_s": verdict.off_s, "words": words_of(verdict)},
    )


def words_of(verdict: Verdict) -> str:
    """What is off and what to do, in sentences."""
    off = words_of_offset(verdict.off_s)
    if verdict.state == "ahead":
        zone = ", as if a time zone were written wrongly" if is_like_a_zone(verdict.off_s) else ""
        return (
            f"Its clock is at least {off}{zone}: of {verdict.timed:,} events in the last "
            f"{verdict.hours} hours in which it sent, {verdict.ahead:,} came from the future. "
            f"{_ADVICE}"
        )
    return (
        f"Its clock seems to be {off}, as if a time zone were written wrongly: in each of "
        f"the last {verdict.hours} hours in which it sent, the newest event was about so old when "
        f"it came. {_ADVICE} If it holds events back for so long on purpose, accept this."
    )


_ADVICE = (
    "Set the clock or the time zone at the source. Events that are here already keep their times."
)
