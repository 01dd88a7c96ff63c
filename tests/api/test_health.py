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
from theon.intake.gaps import MOODLE_IDS, Gap, accept_gap, list_gaps, notice
from theon.roster.campuses import add_campus
from theon.settings import Settings
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
        "events_waiting": 0,
        "oldest_waiting_s": 0.0,
        "gaps_open": 0,
    }


def test_health_tells_of_events_that_wait_for_the_lake(store: Store) -> None:
    campus = add_campus(store, "lincoln", "Europe/London")
    with store.transaction(Scope("lincoln")) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.event_journal (id, campus_id, source, events, first_at, last_at,"
                " rows, accepted_at) VALUES (1, :c, 's', 7, now(), now(), '',"
                " now() - interval '90 seconds')"
            ),
            {"c": campus.id},
        )
    body = _get_health(create_app(store)).json()
    assert (body["status"], body["events_waiting"]) == ("ok", 7)
    assert 90 <= body["oldest_waiting_s"] < 200


def test_health_counts_gaps_until_somebody_has_seen_to_them(store: Store) -> None:
    campus = add_campus(store, "lincoln", "Europe/London")
    with store.transaction(Scope("lincoln")) as conn:
        notice(conn, campus.id, Gap(MOODLE_IDS, "moodle", "ids are missing", 7, 9, 3))
    body = _get_health(create_app(store)).json()
    assert (body["status"], body["gaps_open"]) == ("ok", 1)
    with store.transaction(Scope("lincoln")) as conn:
        [gap] = list_gaps(conn)
        accept_gap(conn, gap.id, "ann", "the table was cleaned")
    assert _get_health(create_app(store)).json()["gaps_open"] == 0


def test_where_kafka_is_to_be_read_and_nobody_does_health_fails(store: Store) -> None:
    settings = Settings(kafka_brokers="127.0.0.1:1")
    answer = _get_health(create_app(store, settings))
    assert (answer.status_code, answer.json()["consumer"]) == (503, "fail")
    assert answer.json()["what"]


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
