"""`/health` tells a supervisor whether the service can do its work."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from fastapi import FastAPI
from sqlalchemy import text

from theon import __version__
from theon.api.app import create_app
from theon.errors import UnavailableError
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope


def _get_health(app: FastAPI) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://theon") as client:
            return await client.get("/health")

    return asyncio.run(get())


def test_health_is_ok_while_the_database_answers(store: Store) -> None:
    campus = add_campus(store, "lincoln", "Europe/London")
    with store.transaction(Scope.district()) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.refresh_state (campus_id, refreshed_at)"
                " VALUES (:id, '2026-11-15 10:00:00+00')"
            ),
            {"id": campus.id},
        )
    answer = _get_health(create_app(store))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body.pop("database_ms") > 0
    assert body == {
        "status": "ok",
        "version": __version__,
        "database": "ok",
        "refreshed_at": "2026-11-15T10:00:00+00:00",
    }


def test_health_answers_503_and_why_when_the_database_is_gone() -> None:
    class GoneStore(Store):
        @contextmanager
        def transaction(self, scope: Scope) -> Iterator[None]:
            raise UnavailableError(f"no database for {scope.campus}")
            yield

    gone = GoneStore.__new__(GoneStore)
    answer = _get_health(create_app(gone))
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "fail",
        "version": __version__,
        "database": "fail",
        "what": "no database for district",
    }
