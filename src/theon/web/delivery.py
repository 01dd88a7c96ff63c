"""The page of the delivery ledger: what sources sent, reasons, gaps, clocks, dead letters."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import Connection

from theon.access.principals import Principal
from theon.access.roles import Permission
from theon.intake import gaps
from theon.intake.clocks import words_of_offset
from theon.intake.delivery_query import (
    Delivery,
    Figures,
    SourceFigures,
    SpanFigures,
    day_of,
    read_delivery,
    read_spans,
    total_of,
)
from theon.intake.gaps import KeptGap
from theon.intake.kafka_status import ConsumerHealth, consumer_health
from theon.intake.letters import LetterGroup, letter_groups
from theon.intake.replay import Reader, read_mapped
from theon.lake.lake_ids import LakeIds
from theon.settings import Settings
from theon.web import delivery_letters
from theon.web.jobs_base import actor_of, change, done, form_of, in_thread, page, read, site_of
from theon.web.jobs_charts import Columns, columns
from theon.web.sign_in import require_page

router = APIRouter(include_in_schema=False)

DAYS = 7
PART_HOURS = 4  # of one column of the chart of all sources
SPARK_HOURS = 24
GAPS_SHOWN = 50
GROUPS_SHOWN = 30
REASONS_SHOWN = 30

Reading = Annotated[Principal, Depends(require_page(Permission.DELIVERY_READ))]
Controlling = Annotated[Principal, Depends(require_page(Permission.DELIVERY_CONTROL))]


def add_delivery_pages(
    app: FastAPI,
    read_letters: Reader = read_mapped,
    settings: Settings | None = None,
    lake_ids: LakeIds | None = None,
) -> None:
    """Put the pages onto `app`, which has the pages about jobs already.

    Args:
        app: the application.
        read_letters: the mappings, for replays.
        lake_ids: ids noted beside the lake, for replays.
        settings: say whether Kafka is read; then the page says what keeps it from that.
    """
    app.state.delivery_settings = settings
    app.state.delivery_reader = read_letters
    app.state.delivery_lake_ids = lake_ids
    app.include_router(delivery_letters.router)
    app.include_router(router)


@dataclass(frozen=True)
class SourceRow:
    """A source on the page: its figures of today and of the last days, and its last hours."""

    today: Figures
    week: SourceFigures
    spark: Columns


@dataclass(frozen=True)
class DeliveryPage:
    """What the page shows.

    Attributes:
        today: figures of all sources today (UTC).
        week: the ledger of the last `DAYS` days, today included.
        rows: per source.
        chart: of all sources over the days.
        reasons: (campus, source, reason, events) over the days; most first.
        gaps: that are open, clocks too; `more_gaps` if there are others.
        groups: waiting dead letters.
    """

    today: Figures
    week: Delivery
    rows: tuple[SourceRow, ...]
    chart: Columns
    reasons: tuple[tuple[str, str, str, int], ...]
    gaps: tuple[KeptGap, ...]
    more_gaps: bool
    groups: tuple[LetterGroup, ...]

    @property
    def waiting(self) -> int:
        """Dead letters that wait."""
        return sum(row.week.waiting_letters for row in self.rows)


def read_page(conn: Connection, now: datetime) -> DeliveryPage:
    """What the page shows, in the scope of `conn`."""
    begin, end = day_of(now)
    since = end - timedelta(days=DAYS)
    week = read_delivery(conn, since, end)
    of_source: dict[tuple[str, str], list[SpanFigures]] = {}
    for span in read_spans(conn, since, end):
        of_source.setdefault((span.campus, span.source), []).append(span)
    spans = [span for of_one in of_source.values() for span in of_one]
    found = gaps.list_gaps(conn, limit=GAPS_SHOWN + 1)
    reasons = [
        (source.campus, source.source, reason, events)
        for source in week.sources
        for reason, events in source.reasons.items()
    ]
    hour = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    rows = []
    for source in week.sources:
        own = of_source.get((source.campus, source.source), [])
        today = total_of([span for span in own if span.at >= begin])
        rows.append(SourceRow(today, source, _spark(own, hour)))
    return DeliveryPage(
        total_of([row.today for row in rows]),
        week,
        tuple(rows),
        _chart(spans, since),
        tuple(sorted(reasons, key=lambda row: -row[3])[:REASONS_SHOWN]),
        tuple(found[:GAPS_SHOWN]),
        len(found) > GAPS_SHOWN,
        tuple(letter_groups(conn)),
    )


def _chart(spans: Sequence[SpanFigures], since: datetime) -> Columns:
    """Of all sources: what was good below, what was rejected above."""
    parts = [Figures()] * (DAYS * 24 // PART_HOURS)
    for span in spans:
        n = int((span.at - since) // timedelta(hours=PART_HOURS))
        parts[n] = _add(parts[n], span)
    return columns([_pair(part) for part in parts])


def _spark(spans: Sequence[SpanFigures], hour: datetime) -> Columns:
    """The last hours of a source, the present one last."""
    first = hour - timedelta(hours=SPARK_HOURS - 1)
    parts = [Figures()] * SPARK_HOURS
    for span in spans:
        if span.at >= first:
            n = int((span.at - first) // timedelta(hours=1))
            if n < SPARK_HOURS:
                parts[n] = _add(parts[n], span)
    return columns([_pair(part) for part in parts])


def _pair(figures: Figures) -> tuple[int, int]:
    return figures.received - figures.rejected, figures.rejected


def _add(one: Figures, other: Figures) -> Figures:
    return Figures(received=one.received + other.received, rejected=one.rejected + other.rejected)


# -- the page ------------------------------------------------------------------------------


@router.get("/delivery")
async def delivery_page(request: Request, principal: Reading) -> HTMLResponse:
    """What every source sent today and in the last days, and what needs a person."""
    found = await read(request, principal, lambda conn: read_page(conn, datetime.now(UTC)))
    settings: Settings | None = request.app.state.delivery_settings
    kafka = ConsumerHealth("off")
    if settings is not None:
        store = site_of(request).store
        kafka = await in_thread(lambda: consumer_health(store, settings))
    return page(
        request,
        principal,
        "delivery.html",
        title="Delivery",
        here="delivery",
        found=found,
        kafka=kafka,
        days=DAYS,
        part_hours=PART_HOURS,
        spark_hours=SPARK_HOURS,
        groups_shown=GROUPS_SHOWN,
        off=words_of_offset,
        several=len({row.week.campus for row in found.rows}) > 1,
    )


@router.post("/delivery/gaps/accept")
async def take_accept(request: Request, principal: Controlling) -> Response:
    """A person says why a gap, or a clock, is as it should be."""
    form = await form_of(request)
    number, words = str(form.get("gap", "")), str(form.get("explanation", ""))
    gap_id = delivery_letters.number_of(number, "gap")
    gap = await change(
        request,
        principal,
        lambda conn: gaps.accept_gap(conn, gap_id, actor_of(principal), words[:500]),
    )
    return done(request, "/delivery", f"Gap {gap.id} of {gap.source} is accepted.")
