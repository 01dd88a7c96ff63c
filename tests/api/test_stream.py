"""Metrics and outcomes as they come, from a really running server."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from tests.api.jobs_service import LIMIT_S, Service, served, until
from tests.api.jobs_streams import Events
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from theon.access.keys import list_keys, revoke_key
from theon.access.roles import Role
from theon.api import live, streams
from theon.api.live import add_live_api
from theon.errors import UnavailableError
from theon.events.outcome_news import LARGEST_BYTES, OutcomeNews, announce_outcomes, pack, unpack
from theon.metrics import live as hubs
from theon.metrics.announce import CHANNEL, announce
from theon.metrics.catalog import load_catalog
from theon.metrics.live import Listener, LiveHub
from theon.metrics.tables import ensure_tables
from theon.store.scope import Scope

STREAM = "/api/v1/stream"


@pytest.fixture
def hub(service: Service, in_one_hour: None) -> LiveHub:
    hub = LiveHub(service.store)
    add_live_api(service.app, hub)
    ensure_tables(service.store, load_catalog())
    return hub


@pytest.fixture
def address(service: Service, hub: LiveHub) -> Iterator[str]:
    with served(service.app) as address:
        yield address
    until(lambda: not hub._running, "nobody listens any more")


def act(service: Service, campus: str, actions: int, user: str = "5") -> None:
    """A learner's actions of today are published, as a refresh does it."""
    with service.store.transaction(Scope(campus)) as conn:
        campus_id = conn.execute(
            text("SELECT id FROM theon.campuses WHERE slug = :slug"), {"slug": campus}
        ).scalar_one()
        for table, key, period in (
            ("user_day", ", user_id", "current_date"),
            ("campus_week", "", "date_trunc('week', now())::date"),
        ):
            metric = load_catalog()[table]
            given = ", :user" if key else ""
            conn.execute(
                text(
                    f"INSERT INTO {metric.table} AS t (campus_id, {metric.period_column}{key},"
                    f" {'learners, ' if not key else ''}total_actions, time_spent_s, forum_posts,"
                    f" last_access) VALUES (:campus, {period}{given},{' 1,' if not key else ''}"
                    " :actions, 60, 0, now())"
                    f" ON CONFLICT (campus_id, {metric.period_column}{key}) DO UPDATE SET"
                    " total_actions = t.total_actions + excluded.total_actions, last_access = now()"
                ),
                {"campus": campus_id, "actions": actions, "user": user},
            )
        announce(conn, campus)


def win(service: Service, campus: str, kind: str = "submission", course: str = "6") -> None:
    """An outcome is accepted."""
    with service.store.transaction(Scope(campus)) as conn:
        announce_outcomes(conn, CHANNEL, [OutcomeNews(campus, course, kind, 1)])


@contextmanager
def watching(
    service: Service, address: str, role: Role = Role.TEACHER, campus: str = "oak", query: str = ""
) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {service.key(role, campus)}"}
    url = f"ws://{address}{STREAM}{query}"
    with connect(url, additional_headers=headers, proxy=None, open_timeout=LIMIT_S) as socket:
        yield socket


@contextmanager
def streaming(
    service: Service,
    address: str,
    role: Role = Role.TEACHER,
    campus: str = "oak",
    query: str = "",
    last_id: str | None = None,
) -> Iterator[Events]:
    headers = {"Authorization": f"Bearer {service.key(role, campus)}"}
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    with (
        httpx.Client(trust_env=False, timeout=LIMIT_S) as client,
        client.stream("GET", f"http://{address}{STREAM}{query}", headers=headers) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        yield Events(answer)


def ask(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=LIMIT_S)


def message(source: ClientConnection | Events) -> dict[str, Any]:
    """The next message of a socket or of a stream of events."""
    if isinstance(source, Events):
        name, data = source.next()
        while name == "heartbeat":
            name, data = source.next()
        assert name == data["type"]
        return dict(data)
    return dict(json.loads(source.recv(LIMIT_S)))


def actions(source: ClientConnection | Events, wanted: int) -> dict[str, Any]:
    """The message in which today has so many actions; none before it has more."""
    while True:
        found = message(source)
        if found["type"] == "metrics":
            assert found["today"]["actions"] <= wanted
            if found["today"]["actions"] == wanted:
                return found


def read_on(socket: ClientConnection) -> None:
    """Read until it is closed."""
    while True:
        socket.recv(LIMIT_S)


def heard(hub: LiveHub) -> None:
    """Wait until the hub listens."""
    until(lambda: hub._told, "the hub listens")


def test_both_begin_with_the_present_state_and_tell_what_changes(
    service: Service, address: str, hub: LiveHub
) -> None:
    act(service, "oak", 3)
    with watching(service, address) as socket, streaming(service, address) as events:
        for source in (socket, events):
            first = message(source)
            assert (first["type"], first["campus"], first["changed"]) == ("metrics", "oak", [])
            assert first["today"] == {
                "learners": 1, "actions": 3, "seconds": 60, "forum_posts": 0,
            }  # fmt: skip
            assert first["week"]["actions"] == 3
        heard(hub)
        act(service, "oak", 4)
        for source in (socket, events):
            found = actions(source, 7)
            assert found["position"] > first["position"]
        win(service, "oak")
        for source in (socket, events):
            found = message(source)
            while found["type"] == "metrics":
                found = message(source)
            assert found == {
                "type": "outcome", "campus": "oak", "course_id": "6", "kind": "submission",
                "count": 1,
            }  # fmt: skip


def test_another_campus_is_never_heard(service: Service, address: str, hub: LiveHub) -> None:
    """Neither its metrics nor its outcomes; the district hears of both."""
    with (
        watching(service, address) as oak,
        watching(service, address, Role.SYSTEM_ADMINISTRATOR, "district") as district,
        watching(service, address, Role.SYSTEM_ADMINISTRATOR, "district", "?campus=elm") as elm,
    ):
        assert [message(s)["campus"] for s in (oak, district, elm)] == ["oak", "district", "elm"]
        until(lambda: len(hub._told) == 3, "the hub listens for all scopes")
        act(service, "elm", 5)
        win(service, "elm", "elm-outcome")
        assert actions(elm, 5)["changed"] in (["elm"], [])
        actions(district, 5)
        act(service, "oak", 2)
        win(service, "oak", "oak-outcome")
        assert actions(district, 7)
        kinds, seen = set(), []
        while "oak-outcome" not in kinds:
            found = message(oak)
            seen.append(found)
            kinds |= {found.get("kind")}
        assert "elm-outcome" not in kinds
        assert all(
            found["campus"] == "oak" and set(found.get("changed", [])) <= {"oak"}
            and found.get("today", {}).get("actions", 0) in (0, 2)
            for found in seen
        )  # fmt: skip


@pytest.mark.parametrize("query", ["?campus=elm", "?campus=nowhere", "?campus=district"])
def test_nobody_asks_for_more_than_their_scope(service: Service, address: str, query: str) -> None:
    key = service.key(Role.TEACHER, "oak")
    headers = {"Authorization": f"Bearer {key}"}
    found = ask(f"http://{address}{STREAM}{query}", headers)
    assert (found.status_code, "no campus" in found.json()["error"]) == (400, True)
    with pytest.raises(InvalidStatus) as refused, watching(service, address, query=query):
        pass
    assert refused.value.response.status_code == 400


def test_who_may_not_read_metrics_hears_nothing(service: Service, address: str) -> None:
    """A learner, and whoever does not sign in."""
    url = f"http://{address}{STREAM}"
    assert ask(url).status_code == 401
    key = {"Authorization": f"Bearer {service.key(Role.LEARNER, 'oak')}"}
    assert ask(url, key).status_code == 403
    with pytest.raises(InvalidStatus) as refused, watching(service, address, Role.LEARNER):
        pass
    assert refused.value.response.status_code == 403


def test_many_changes_are_told_together(service: Service, address: str, hub: LiveHub) -> None:
    """Four times a second at most, and the last message has everything."""
    with watching(service, address) as socket:
        message(socket)
        heard(hub)
        begun = time.monotonic()
        for _ in range(40):
            act(service, "oak", 1)
            win(service, "oak")
        told, outcomes = 0, 0
        done = 0
        while done < 40 or outcomes < 40:
            found = message(socket)
            if found["type"] == "outcome":
                outcomes += found["count"]
            else:
                told += 1
                done = found["today"]["actions"]
        took_s = time.monotonic() - begun
    assert (done, outcomes) == (40, 40)
    assert told <= took_s / hubs.TICK_S + 2


def all_lies_there(listener: Listener) -> bool:
    """Whether three actions and two outcomes were told."""
    lies = listener._batch
    told = lies.headline.today.actions if lies.headline else 0
    return told == 3 and sum(lies.outcomes.values()) == 2


def test_who_does_not_read_finds_the_newest_state_in_the_mailbox(
    service: Service, hub: LiveHub
) -> None:
    async def slow() -> Any:
        listener = Listener(Scope("oak"))
        hub.add(listener)
        try:
            await listener.take(LIMIT_S)
            for _ in range(3):
                await asyncio.to_thread(act, service, "oak", 1)
                await asyncio.sleep(2 * hubs.TICK_S)
            win(service, "oak")
            win(service, "oak")
            async with asyncio.timeout(LIMIT_S):
                while not all_lies_there(listener):
                    await asyncio.sleep(hubs.TICK_S)
            return await listener.take(LIMIT_S)
        finally:
            hub.remove(listener)

    batch = asyncio.run(slow())
    assert batch.headline.today.actions == 3
    assert batch.changed == {"oak"}
    assert [(news.kind, news.count) for news in batch.news] == [("submission", 2)]
    until(lambda: not hub._running, "nobody listens any more")


def test_who_comes_back_is_given_the_present_state(
    service: Service, address: str, hub: LiveHub
) -> None:
    with streaming(service, address) as events:
        message(events)
        last_id = events.id
    act(service, "oak", 9)
    with streaming(service, address, last_id=last_id) as events:
        found = message(events)
        assert found["today"]["actions"] == 9
        assert int(events.id or 0) > int(last_id or 0)


def test_a_database_that_comes_back_is_heard_again(
    service: Service, address: str, hub: LiveHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed meanwhile is told, although its notification was lost."""
    monkeypatch.setattr(hubs, "AFTER_ERROR_S", 0.2)
    monkeypatch.setattr(hubs, "LOOK_S", 1.0)
    read = hub.read
    with watching(service, address) as socket:
        message(socket)
        heard(hub)
        with monkeypatch.context() as patch:

            def away(scope: Scope) -> Any:
                raise UnavailableError("the database is away", where="test")

            patch.setattr(hub, "read", away)
            act(service, "oak", 1)
            until(lambda: not hub._told, "the hub has noticed")
        assert hub.read == read
        actions(socket, 1)
        with service.store.transaction(Scope.district()) as conn:
            # Whoever listens loses the connection, and with it what is said just now.
            ended = conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE query LIKE 'LISTEN%' AND usename = current_user"
                )
            ).all()
            assert len(ended) >= 1
        act(service, "oak", 1)
        actions(socket, 2)


@pytest.mark.usefixtures("address")
def test_a_client_without_a_database_is_told_to_come_back(
    service: Service, hub: LiveHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(scope: Scope) -> Any:
        raise UnavailableError("the database is away", where="test")

    monkeypatch.setattr(hub, "read", away)
    assert service.client(Role.TEACHER).get(STREAM).status_code == 503


def test_a_revoked_key_ends_its_streams(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CHECK_S", 0.1)
    with watching(service, address) as socket, streaming(service, address) as events:
        message(socket)
        message(events)
        (key,) = [k for k in list_keys(service.store) if k.role is Role.TEACHER]
        revoke_key(service.store, key.id)
        with pytest.raises(ConnectionClosed) as closed:
            read_on(socket)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        name, _ = events.next()
        while name in ("heartbeat", "metrics"):
            name, _ = events.next()
        assert name == "end"


def test_a_service_that_stops_ends_its_streams(service: Service, hub: LiveHub) -> None:
    with served(service.app) as address, watching(service, address) as socket:
        message(socket)
        hub.close("the service stops")
        with pytest.raises(ConnectionClosed) as closed:
            read_on(socket)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


def test_a_quiet_stream_shows_that_it_is_alive(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.1)
    with streaming(service, address) as events:
        while events.next()[0] != "heartbeat":
            pass


def test_news_of_many_courses_are_cut_to_what_a_channel_carries() -> None:
    """Nothing is lost by it, but a course whose id alone is longer than that."""
    news = [OutcomeNews("oak", f"course {n} é\u2028", "submission", n) for n in range(900)]
    told = pack([*news, OutcomeNews("oak", "x" * 9000, "submission", 1)])
    assert len(told) > 1
    assert all(len(one.encode()) <= LARGEST_BYTES for one in told)
    assert [found for one in told for found in unpack(one) or []] == news
    assert unpack("oak") is None
