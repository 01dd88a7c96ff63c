"""Reading the delivery ledger: figures by source, hour and day, reasons, and what is on its way.

Everything here sees the campuses in the scope of its connection.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, text

from theon.errors import InputError

HOURS_AT_MOST = 24 * 400
REMEMBERED_DAYS = 35
FIGURES = ("received", "accepted", "duplicate", "rejected", "dead_lettered")
By = Literal["hour", "day"]


@dataclass(frozen=True)
class Figures:
    """What came of a source in a span, in events.

    Attributes:
        received: accepted, duplicate and rejected together.
        dead_lettered: those of the rejected whose bytes are kept.
    """

    received: int = 0
    accepted: int = 0
    duplicate: int = 0
    rejected: int = 0
    dead_lettered: int = 0


@dataclass(frozen=True)
class ClockFigures(Figures):
    """Figures of a source, and what its live events tell of its clock.

    Attributes:
        ahead: new events that came from the future, by more than two minutes.
        least_lag_s: the least that lay between an event and its arrival, seconds; negative: it came
            from the future. None where nothing came live, as of files.
    """

    ahead: int = 0
    least_lag_s: float | None = None


@dataclass(frozen=True)
class SpanFigures(ClockFigures):
    """Figures of a source in an hour or day (UTC) that begins at `at`."""

    campus: str = ""
    source: str = ""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class SourceFigures(ClockFigures):
    """Figures of a source over the whole span that was asked for.

    Attributes:
        last_at: when something last came, in the span or before; None if that is longer ago.
        reasons: why events were rejected, and how many; most first.
        waiting_letters: dead letters that wait for a person, whatever their age.
        clock_off_s: by how many seconds its clock seems to be off now, if that is on record and
            open; negative: behind.
    """

    campus: str = ""
    source: str = ""
    last_at: datetime | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    waiting_letters: int = 0
    clock_off_s: int | None = None


@dataclass(frozen=True)
class JournalState:
    """Accepted events of a campus that are not in the lake yet.

    Attributes:
        oldest_at: when the one that waits longest was accepted.
        landed_at: when the last landing was.
    """

    campus: str
    events: int
    oldest_at: datetime | None
    landed_at: datetime | None


@dataclass(frozen=True)
class Delivery:
    """The ledger over a span.

    Attributes:
        since, until: the span; hours that begin in it.
        total: of all sources.
        sources: each of a campus, by campus and name; also those that sent nothing in the span
            but in the last `REMEMBERED_DAYS`, or that have dead letters waiting.
        journal: per campus that has or had something to land.
    """

    since: datetime
    until: datetime
    total: Figures
    sources: tuple[SourceFigures, ...]
    journal: tuple[JournalState, ...]


def read_delivery(
    conn: Connection, since: datetime, until: datetime, *, source: str | None = None
) -> Delivery:
    """Figures per source over the hours that begin in [since, until).

    Raises:
        InputError: the span ends before it begins, or is longer than the ledger is kept.
    """
    span = _span(since, until, source)
    rows = conn.execute(text(_SOURCES), span).all()
    reasons: dict[tuple[str, str], dict[str, int]] = {}
    for campus, name, reason, events in conn.execute(text(_REASONS), span):
        reasons.setdefault((campus, name), {})[reason] = int(events)
    sources = tuple(
        SourceFigures(**row._mapping, reasons=reasons.get((row.campus, row.source), {}))
        for row in rows
    )
    return Delivery(since, until, total_of(sources), sources, read_journal_state(conn))


def read_spans(
    conn: Connection, since: datetime, until: datetime, by: By = "hour", source: str | None = None
) -> list[SpanFigures]:
    """Figures per source and hour or day (UTC) in [since, until); spans without any are left out.

    Raises:
        InputError: as `read_delivery`.
    """
    rows = conn.execute(text(_SPANS), {**_span(since, until, source), "by": by})
    return [SpanFigures(**row._mapping) for row in rows]


def read_journal_state(conn: Connection) -> tuple[JournalState, ...]:
    """What waits to land, campus by campus."""
    return tuple(JournalState(*row) for row in conn.execute(text(_JOURNAL)))


def total_of(parts: Sequence[Figures]) -> Figures:
    """The sum of figures."""
    return Figures(*(sum(getattr(part, name) for part in parts) for name in FIGURES))


def day_of(now: datetime) -> tuple[datetime, datetime]:
    """The present day, UTC, up to its end."""
    begin = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return begin, begin + timedelta(days=1)


def _span(since: datetime, until: datetime, source: str | None) -> dict[str, Any]:
    if since.tzinfo is None or until.tzinfo is None:
        raise InputError(
            "a moment has no time zone",
            where="since and until",
            next_step="Write them with an offset, such as 2026-11-26T00:00:00+00:00.",
        )
    if not since < until or until - since > timedelta(hours=HOURS_AT_MOST):
        raise InputError(
            f"from {since.isoformat()} to {until.isoformat()} is no span of the ledger",
            where="since and until",
            next_step=f"Ask for a span of up to {HOURS_AT_MOST // 24} days that ends after it "
            "begins.",
        )
    return {"since": since, "until": until, "source": source}


_SUMMED = (*FIGURES, "ahead")
_SUMS = ", ".join(
    f"coalesce(sum(d.{name}) FILTER (WHERE d.hour >= :since AND d.hour < :until), 0)::bigint"
    f" AS {name}"
    for name in _SUMMED
)
_PLAIN_SUMS = ", ".join(f"sum(d.{name})::bigint AS {name}" for name in _SUMMED)
_ONE = "(CAST(:source AS text) IS NULL OR d.source = :source)"

# Hours before the span are only looked at for when a source last sent.
_SOURCES = f"""
WITH counts AS (SELECT d.campus_id, d.source, max(d.last_at) AS last_at, {_SUMS},
    min(d.least_lag_s) FILTER (WHERE d.hour >= :since AND d.hour < :until) AS least_lag_s
    FROM theon.delivery_counts d
    WHERE {_ONE} AND d.hour >= least(:since, now() - make_interval(days => {REMEMBERED_DAYS}))
    GROUP BY d.campus_id, d.source),
letters AS (SELECT d.campus_id, d.source, count(*) AS waiting_letters FROM theon.dead_letters d
    WHERE {_ONE} AND d.state = 'waiting' GROUP BY d.campus_id, d.source),
clocks AS (SELECT d.campus_id, d.source, d.off_s AS clock_off_s FROM theon.delivery_gaps d
    WHERE {_ONE} AND d.kind = 'clock' AND d.state = 'open')
SELECT c.slug AS campus, source, last_at, coalesce(waiting_letters, 0) AS waiting_letters,
    {", ".join(f"coalesce({name}, 0) AS {name}" for name in _SUMMED)}, least_lag_s, clock_off_s
FROM counts FULL JOIN letters USING (campus_id, source)
    LEFT JOIN clocks USING (campus_id, source)
    JOIN theon.campuses c ON c.id = campus_id ORDER BY c.slug, source"""

_REASONS = f"""
SELECT c.slug, d.source, d.reason, sum(d.events)
FROM theon.delivery_reasons d JOIN theon.campuses c ON c.id = d.campus_id
WHERE {_ONE} AND d.hour >= :since AND d.hour < :until
GROUP BY c.slug, d.source, d.reason ORDER BY sum(d.events) DESC, d.reason"""

_SPANS = f"""
SELECT {_PLAIN_SUMS}, min(d.least_lag_s) AS least_lag_s, c.slug AS campus, d.source,
    date_trunc(:by, d.hour AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS at
FROM theon.delivery_counts d JOIN theon.campuses c ON c.id = d.campus_id
WHERE {_ONE} AND d.hour >= :since AND d.hour < :until
GROUP BY c.slug, d.source, at ORDER BY at, c.slug, d.source"""

_JOURNAL = """
SELECT c.slug, coalesce(sum(j.events), 0)::bigint, min(j.accepted_at), max(l.landed_at)
FROM theon.campuses c LEFT JOIN theon.event_journal j ON j.campus_id = c.id
    LEFT JOIN theon.landings l ON l.campus_id = c.id
GROUP BY c.slug HAVING count(j.id) > 0 OR max(l.landed_at) IS NOT NULL ORDER BY c.slug"""
