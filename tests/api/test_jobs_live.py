"""Jobs as they change, from a really running server: one by WebSocket, many by SSE."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from tests.access.conftest import PASSWORD
from tests.api.jobs_service import DISTRICT, JOBS, KINDS, LIMIT_S, Service, served, until
from tests.api.jobs_streams import receive, streaming, watching
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from theon.access.accounts import add_account
from theon.access.keys import list_keys, revoke_key
from theon.access.requests import Access
from theon.access.roles import Role
from theon.api import jobs_live, jobs_watcher, streams
from theon.api.jobs_watcher import Batch, Listener, Told, Watcher, tell_of
from theon.errors import UnavailableError
from theon.jobs import changes
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.store.engine import Store


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with served(service.app) as address:
        yield address
    watcher = service.app.state.theon_jobs.watcher
    until(lambda: not watcher._running, "nobody listens any more")


# -- one job -------------------------------------------------------------------------------


def test_a_socket_tells_a_job_from_now_to_its_end(service: Service, address: str) -> None:
    """Its present state at once, every change, percentage, operation and a range of seconds."""
    job_id = service.one()
    with watching(service, address, job_id) as socket:
        first = receive(socket)
        assert (first["id"], first["state"], first["percent"]) == (job_id, "queued", None)
        (message,) = service.begin(job_id)
        found = receive(socket)
        while found["state"] != "running":
            found = receive(socket)
        service.progress(message, 1, 4, "counting")
        found = receive(socket)
        assert (found["percent"], found["operation"]) == (25.0, "counting")
        assert found["remaining"]["basis"] == "progress"
        assert 0 <= found["remaining"]["low_s"] <= found["remaining"]["high_s"]
        service.progress(message, 3, 4)
        assert receive(socket)["percent"] == 75.0
        service.end([message], "failed", error="it broke", error_kind="KeyError")
        found = receive(socket)
        assert (found["state"], found["error"], found["error_kind"]) == (
            "failed", "it broke", "KeyError",
        )  # fmt: skip
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_a_job_that_has_ended_is_told_once(service: Service, address: str) -> None:
    with watching(service, address, service.failed()) as socket:
        assert receive(socket)["state"] == "failed"
        with pytest.raises(ConnectionClosed):
            socket.recv(LIMIT_S)


def test_asking_a_running_job_to_end_is_told(service: Service, address: str) -> None:
    """Its state does not change by that, and yet who watches sees it."""
    job_id = service.one()
    service.begin(job_id)
    with watching(service, address, job_id) as socket:
        assert receive(socket)["cancel_asked"] is False
        assert service.oak.post(f"{JOBS}/{job_id}/cancel").status_code == 200
        found = receive(socket)
        assert (found["state"], found["cancel_asked"]) == ("running", True)


def test_a_socket_is_refused_like_any_route(service: Service, address: str) -> None:
    """401 for who shows nothing, 403 for who may not, 404 for what the scope does not see."""
    elm = service.one(campus="elm")
    for job_id in (elm, 999_999):
        with (
            pytest.raises(InvalidStatus) as refused,
            watching(service, address, job_id, Role.CAMPUS_ADMINISTRATOR),
        ):
            pass
        assert refused.value.response.status_code == 404
    with (
        pytest.raises(InvalidStatus) as refused,
        watching(service, address, service.one(), Role.TEACHER),
    ):
        pass
    assert refused.value.response.status_code == 403
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"ws://{address}{JOBS}/{elm}/events", proxy=None, open_timeout=LIMIT_S),
    ):
        pass
    answer = refused.value.response
    assert answer.status_code == 401
    assert json.loads(answer.body).keys() == {"error", "next_step"}


@pytest.mark.parametrize("role", list(Role), ids=[role.value for role in Role])
def test_who_may_read_jobs_may_watch_them(service: Service, address: str, role: Role) -> None:
    """The others are refused, by both ways."""
    campus = "district" if role is Role.SYSTEM_ADMINISTRATOR else "oak"
    job_id = service.one()
    if role in (Role.TEACHER, Role.LEARNER):
        with pytest.raises(InvalidStatus), watching(service, address, job_id, role):
            pass
        assert service.client(role).get(f"{JOBS}/events").status_code == 403
        return
    with watching(service, address, job_id, role, campus) as socket:
        assert receive(socket)["id"] == job_id
    with streaming(service, address, "", None, role, campus) as events:
        assert events.next()[0] == "ready"


def test_many_sockets_of_one_job_are_all_told(service: Service, address: str) -> None:
    """The ledger is read once for all of them."""
    job_id = service.one()
    with (
        watching(service, address, job_id) as first,
        watching(service, address, job_id) as second,
        watching(service, address, job_id, Role.SYSTEM_ADMINISTRATOR, "district") as third,
    ):
        sockets = (first, second, third)
        assert [receive(socket)["state"] for socket in sockets] == ["queued"] * 3
        assert service.oak.post(f"{JOBS}/{job_id}/cancel").status_code == 200
        assert [receive(socket)["state"] for socket in sockets] == ["cancelled"] * 3


# -- the end of access ---------------------------------------------------------------------


@pytest.fixture
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert streams.CHECK_S + streams.GRACE_S < 30
    monkeypatch.setattr(streams, "CHECK_S", 0.1)


@pytest.mark.usefixtures("looked_at_often")
def test_a_revoked_key_ends_its_streams(service: Service, address: str) -> None:
    """The socket with 1008, the events with an `end`; others go on."""
    job_id = service.one()
    with (
        watching(service, address, job_id) as socket,
        streaming(service, address) as events,
        watching(service, address, job_id, Role.CAMPUS_ADMINISTRATOR) as other,
    ):
        assert receive(socket)["state"] == receive(other)["state"] == "queued"
        assert events.next()[0] == "ready"
        (key,) = [k for k in list_keys(service.store) if k.role is Role.SERVICE]
        revoke_key(service.store, key.id)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert "ended" in closed.value.rcvd.reason
        assert events.next()[0] == "end"
        with pytest.raises(AssertionError, match="has ended"):
            events.next()
        service.begin(job_id)
        assert receive(other)["state"] in ("dispatched", "running")


@pytest.mark.usefixtures("looked_at_often")
def test_signing_out_ends_the_streams_of_a_session(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is opened by the cookie from our own pages only, and keeps no session awake."""
    looks: list[bool] = []
    identify = Access.identify

    async def counted(self: Access, conn: Any, *, is_use: bool = True) -> Any:
        found = await identify(self, conn, is_use=is_use)
        looks.append(is_use)
        return found

    monkeypatch.setattr(Access, "identify", counted)
    add_account(
        service.store, name="ada", password=PASSWORD, role=Role.CAMPUS_ADMINISTRATOR, campus="oak"
    )
    origin = f"http://{address}"
    with httpx.Client(
        trust_env=False, base_url=origin, headers={"Origin": origin}, timeout=LIMIT_S
    ) as client:
        given = {"name": "ada", "password": PASSWORD}
        csrf = client.post("/api/v1/sign-in", json=given).json()["csrf_token"]
        cookie = {"Cookie": f"theon_session={client.cookies['theon_session']}"}
        url = f"ws://{address}{JOBS}/{service.one()}/events"
        how: Any = {"additional_headers": cookie, "proxy": None, "open_timeout": LIMIT_S}
        with (
            pytest.raises(InvalidStatus),
            connect(url, origin="http://evil.example", **how),
        ):
            pass
        with connect(url, origin=origin, **how) as socket:
            assert receive(socket)["state"] == "queued"
            long_ago = (
                "UPDATE theon.sessions SET seen_at = seen_at - interval '5 minutes'"
                " RETURNING seen_at"
            )
            with service.store.transaction(DISTRICT) as conn:
                before = conn.execute(text(long_ago)).scalar_one()
            looks.clear()
            until(lambda: len(looks) > 1, "it was looked at whether the session holds")
            with service.store.transaction(DISTRICT) as conn:
                now = conn.execute(text("SELECT seen_at FROM theon.sessions")).scalar_one()
            assert now == before
            client.post("/api/v1/sign-out", headers={"X-CSRF-Token": csrf})
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(LIMIT_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008


# -- many jobs -----------------------------------------------------------------------------


def test_events_tell_the_jobs_of_the_scope_that_match(service: Service, address: str) -> None:
    """Of another campus nothing, whatever the filter; the district's stream has all."""
    with (
        streaming(service, address) as oak,
        streaming(service, address, "?kind=import") as imports,
        streaming(service, address, "", None, Role.SYSTEM_ADMINISTRATOR, "district") as all_,
    ):
        assert {stream.next()[0] for stream in (oak, imports, all_)} == {"ready"}
        elm = service.one(campus="elm")
        mine = service.one(campus="oak")
        imported = service.one("import.rows", campus="oak")
        assert {all_.job()["id"] for _ in range(3)} == {elm, mine, imported}
        assert {oak.job()["id"] for _ in range(2)} == {mine, imported}
        assert imports.job()["id"] == imported
        service.oak.post(f"{JOBS}/{imported}/cancel")
        assert (imports.job()["state"], oak.job()["state"]) == ("cancelled", "cancelled")


def test_a_job_that_leaves_the_states_of_the_filter_is_told(service: Service, address: str) -> None:
    """Or a list of running jobs would show it for ever."""
    with streaming(service, address, "?state=running") as events:
        assert events.next()[0] == "ready"
        waiting, job_id = service.one(), service.one()
        (message,) = service.begin(job_id)
        found = events.job()
        while found["state"] != "running":
            found = events.job()
        assert found["id"] == job_id
        service.end([message])
        found = events.job()
        while found["state"] == "running":
            found = events.job()
        assert (found["id"], found["state"]) == (job_id, "completed")
        assert service.state(waiting) == "queued"


def test_who_comes_back_is_told_what_they_missed(service: Service, address: str) -> None:
    """By the id of the last event; what does not match their filter or scope is left out."""
    with streaming(service, address, "?queue=rooms") as events:
        assert events.next()[0] == "ready"
        first = service.one()
        assert events.job()["id"] == first
        assert events.id is not None
        last_id = events.id
    missed = service.one()
    service.one("import.rows")
    service.one(campus="elm")
    with streaming(service, address, "?queue=rooms", last_id) as events:
        assert events.job()["id"] == missed
        assert events.next()[0] == "ready"
        later = service.one()
        assert events.job()["id"] == later


@pytest.mark.parametrize(
    "last_id", ["x", "999999999", "-1", "9" * 30], ids=["words", "future", "negative", "huge"]
)
def test_who_comes_back_with_an_id_that_is_none_reads_the_list_again(
    service: Service, address: str, last_id: str
) -> None:
    service.one()
    with streaming(service, address, "", last_id) as events:
        assert events.next()[0] == "reset"


def test_who_missed_very_much_reads_the_list_again(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MISSED_AT_MOST", 3)
    with streaming(service, address) as events:
        events.next()
        assert events.id is not None
        last_id = events.id
    for _ in range(5):
        service.one()
    with streaming(service, address, "", last_id) as events:
        assert events.next()[0] == "reset"


def test_a_quiet_stream_says_that_it_lives(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By comments, which also carry the id of what others' jobs moved on meanwhile."""
    monkeypatch.setattr(jobs_live, "HEARTBEAT_S", 0.1)
    with streaming(service, address) as events:
        assert events.next()[0] == "ready"
        assert events.id is not None
        before = int(events.id)
        service.one(campus="elm")
        names = set()
        while int(events.id) == before:
            names.add(events.next()[0])
        assert names == {"heartbeat"}


def test_events_of_a_filter_that_means_nothing_are_refused(service: Service) -> None:
    """As an answer, not in a stream that has begun."""
    for query, status in (
        ("state=fialed", 400), ("campus=elm", 400), ("q=knd:x", 400), ("stat=failed", 422),
    ):  # fmt: skip
        answer = service.oak.get(f"{JOBS}/events?{query}")
        assert answer.status_code == status, answer.text
        assert set(answer.json()) == {"error", "next_step"}


def test_a_change_that_commits_late_is_told(service: Service, address: str) -> None:
    """Numbers of the history are given out before their transactions commit."""
    with streaming(service, address) as events:
        assert events.next()[0] == "ready"
        with service.store.transaction(DISTRICT) as conn:
            (late,) = enqueue_many(conn, KINDS, [NewJob("room.count", campus="oak")])
            early = service.one()
            assert events.job()["id"] == early
            held = events.id
        assert events.job()["id"] == late
        assert int(held or 0) < int(events.id or 0)


def test_who_does_not_read_holds_nobody_up(service: Service, address: str) -> None:
    """A mailbox keeps the latest of each job, and the other clients are told in time."""
    job_id = service.one()
    with streaming(service, address) as lazy, streaming(service, address) as busy:
        assert lazy.next()[0] == busy.next()[0] == "ready"
        (message,) = service.begin(job_id)
        for done in range(1, 6):
            service.progress(message, done, 6, "x" * 400)
            while busy.job()["done"] != done:
                pass
        service.end([message])
        while busy.job()["state"] != "completed":
            pass
        while lazy.job()["state"] != "completed":
            pass


def test_a_mailbox_keeps_the_latest_of_each_job_and_not_too_much(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes to it late reads one message per job; or that too much was thrown away."""
    monkeypatch.setattr(jobs_watcher, "MOST_PENDING", 3)
    ids = [service.one() for _ in range(4)]

    def tell() -> list[Told]:
        with service.store.transaction(DISTRICT) as conn:
            return list(tell_of(conn, ids).values())

    before = tell()
    service.begin(*ids)
    after = tell()

    async def read_late() -> tuple[Batch, Batch, Batch]:
        listener = Listener(DISTRICT)
        listener.tell(before[:2], 5)
        listener.tell(after[:1], 9)
        few = await listener.take(LIMIT_S)
        listener.tell(before, 10)
        many = await listener.take(LIMIT_S)
        return few, many, await listener.take(0)

    few, many, none = asyncio.run(read_late())
    assert (few.jobs, few.position, few.overflow) == ([before[1], after[0]], 9, False)
    assert (many.jobs, many.position, many.overflow) == ([], 10, True)
    assert (none.jobs, none.position, none.overflow) == ([], 10, False)


def test_nobody_reads_the_ledger_while_nobody_listens(service: Service) -> None:
    """The thread comes with the first listener and goes with the last; it comes again."""
    watcher: Watcher = service.app.state.theon_jobs.watcher
    with served(service.app) as address:
        for _ in range(2):
            assert not watcher._running
            with watching(service, address, service.one()) as socket:
                receive(socket)
                assert watcher._running
            until(lambda: not watcher._running, "nobody listens any more")


def test_a_service_that_stops_ends_its_streams(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, instead of cutting them off when its patience ends."""
    with ExitStack() as streams:
        with served(service.app) as address:
            socket = streams.enter_context(watching(service, address, service.one()))
            events = streams.enter_context(streaming(service, address))
            receive(socket)
            assert events.next()[0] == "ready"
        name, data = events.next()
        assert (name, data["why"].startswith("the service stops")) == ("end", True)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(LIMIT_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (1001, 1012)  # ours, or the server's own
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_database_that_was_away_is_read_again(
    service: Service, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams stay open, and tell what changed meanwhile."""
    monkeypatch.setattr(jobs_watcher, "AFTER_ERROR_S", 0.05)
    job_id = service.one()
    failed: list[int] = []
    real = Store.transaction

    def gone(self: Store, scope: Any, *settings: Any) -> Any:
        if threading.current_thread().name == "jobs-watcher" and len(failed) < 5:
            failed.append(1)
            raise UnavailableError("the database went away")
        return real(self, scope, *settings)

    with watching(service, address, job_id) as socket:
        receive(socket)
        monkeypatch.setattr(Store, "transaction", gone)
        service.begin(job_id)
        assert receive(socket)["state"] in ("dispatched", "running")
        assert len(failed) == 5
