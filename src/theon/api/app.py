"""The HTTP service."""

import time
from typing import Literal

from fastapi import FastAPI, Response
from pydantic import BaseModel
from sqlalchemy import text

from theon import __version__
from theon.errors import TheonError
from theon.store.engine import Store
from theon.store.scope import Scope

State = Literal["ok", "fail"]


class Health(BaseModel):
    """What `/health` answers."""

    status: State
    version: str
    database: State
    database_ms: float | None = None
    refreshed_at: str | None = None
    what: str | None = None


def create_app(store: Store) -> FastAPI:
    """The service over an open store, without pages."""
    app = FastAPI(title="Theon", version=__version__, docs_url="/api/docs", redoc_url=None)

    @app.get("/health", response_model_exclude_none=True)
    def health(response: Response) -> Health:
        """Whether the service can do its work: 200 if so, 503 if not."""
        found = check_health(store)
        response.status_code = 200 if found.status == "ok" else 503
        response.headers["Cache-Control"] = "no-store"
        return found

    return app


def check_health(store: Store) -> Health:
    """Ask the database one question and say how long it took."""
    begun = time.perf_counter()
    try:
        with store.transaction(Scope.district()) as conn:
            at = conn.execute(text("SELECT max(refreshed_at) FROM theon.refresh_state"))
            refreshed_at = at.scalar_one()
    except TheonError as error:
        return Health(status="fail", version=__version__, database="fail", what=error.what)
    return Health(
        status="ok",
        version=__version__,
        database="ok",
        database_ms=round((time.perf_counter() - begun) * 1000, 1),
        refreshed_at=refreshed_at.isoformat() if refreshed_at else None,
    )
