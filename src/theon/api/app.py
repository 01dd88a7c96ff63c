"""The HTTP service."""

import time
from typing import Literal

from fastapi import FastAPI, Response
from pydantic import BaseModel
from sqlalchemy import text

from theon import __version__
from theon.errors import TheonError
from theon.intake.kafka_status import ConsumerHealth, consumer_health
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

State = Literal["ok", "fail"]


class Health(BaseModel):
    """What `/health` answers.

    Attributes:
        gaps_open: gaps in deliveries and clocks that are off, which wait for a person; for whoever
            watches the service from outside.
    """

    status: State
    version: str
    database: State
    database_ms: float | None = None
    refreshed_at: str | None = None
    events_waiting: int | None = None
    oldest_waiting_s: float | None = None
    gaps_open: int | None = None
    consumer: str | None = None
    what: str | None = None


def create_app(store: Store, settings: Settings | None = None) -> FastAPI:
    """The service over an open store, without pages.

    Args:
        store: what it works with.
        settings: say whether Kafka is read, whose consumers then count for its health.
    """
    app = FastAPI(title="Theon", version=__version__, docs_url="/api/docs", redoc_url=None)

    @app.get("/health", response_model_exclude_none=True)
    def health(response: Response) -> Health:
        """Whether the service can do its work: 200 if so, 503 if not."""
        found = check_health(store, settings)
        response.status_code = 200 if found.status == "ok" else 503
        response.headers["Cache-Control"] = "no-store"
        return found

    return app


def check_health(store: Store, settings: Settings | None = None) -> Health:
    """Ask the database how it does, what waits for the lake, and who reads Kafka."""
    begun = time.perf_counter()
    try:
        with store.transaction(Scope.district()) as conn:
            at = conn.execute(text("SELECT max(refreshed_at) FROM theon.refresh_state"))
            refreshed_at = at.scalar_one()
            waiting = conn.execute(
                text(
                    "SELECT coalesce(sum(events), 0)::bigint, coalesce(extract(epoch FROM"
                    " clock_timestamp() - min(accepted_at)), 0)::float8 FROM theon.event_journal"
                )
            ).one()
            gaps_open = conn.execute(
                text("SELECT count(*) FROM theon.delivery_gaps WHERE state = 'open'")
            ).scalar_one()
    except TheonError as error:
        return Health(status="fail", version=__version__, database="fail", what=error.what)
    database_ms = round((time.perf_counter() - begun) * 1000, 1)
    consumer = ConsumerHealth("off") if settings is None else consumer_health(store, settings)
    return Health(
        status="fail" if consumer.status == "fail" else "ok",
        version=__version__,
        database="ok",
        database_ms=database_ms,
        refreshed_at=refreshed_at.isoformat() if refreshed_at else None,
        events_waiting=waiting[0],
        oldest_waiting_s=round(waiting[1], 1),
        gaps_open=gaps_open,
        consumer=None if consumer.status == "off" else consumer.status,
        what=consumer.what,
    )
