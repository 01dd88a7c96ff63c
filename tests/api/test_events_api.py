"""POST /api/v1/events: durable before it is answered, each event accounted for, limits kept."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from tests.api.jobs_service import LIMIT_S, Service, served

from theon.access.keys import list_keys, revoke_key
from theon.access.roles import Role
from theon.api import events as events_api
from theon.api.events import EventsRoom, add_events_api
from theon.errors import UnavailableError
from theon.intake import bodies, group_commit
from theon.intake.pipeline import ingest
from theon.lake.table import EventLake
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

EVENTS = "/api/v1/events"
AT = (datetime.now(UTC) - timedelta(hours=2)).isoformat()


def event(number: int | str, **more: Any) -> dict[str, Any]:
    given = {"id": f"e{number}", "event_name": "page_viewed", "occurred_at": AT}
    return {**given, "user_id": "5", "course_id": "6", "action": "viewed", **more}


def lines(*events: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, events)).encode()


@pytest.fixture
def room(service: Service, store_settings: Settings) -> Iterator[EventsRoom]:
    with add_events_api(service.app, service.store, store_settings) as opened:
        yield opened


@pytest.fixture
def moodle(service: Service, room: EventsRoom) -> TestClient:
    """A service of oak that sends events."""
    return service.client(Role.SERVICE, "oak")


def journal(store: Store, campus: str = "oak") -> int:
    with store.transaction(Scope(campus)) as conn:
        found = conn.execute(text("SELECT coalesce(sum(events), 0) FROM theon.event_journal"))
        return int(found.scalar_one())


def test_accepted_events_are_durable_when_they_are_answered(
    moodle: TestClient, service: Service
) -> None:
    got = moodle.post(EVENTS, content=lines(event(1), event(2)))
    assert got.status_code == 202
    assert got.json() == {
        "received": 2, "accepted": 2, "duplicate": 0, "rejected": 0, "rejections": [],
    }  # fmt: skip
    assert journal(service.store) == 2


def test_the_same_again_is_known_however_it_is_sent(moodle: TestClient, service: Service) -> None:
    moodle.post(EVENTS, content=lines(event(1), event(2)))
    ways = [
        moodle.post(EVENTS, json=[event(1), event(2)]),
        moodle.post(EVENTS, content=b"\r\n".join([lines(event(1)), b"", lines(event(2))])),
        moodle.post(
            EVENTS,
            content=gzip.compress(lines(event(1), event(2))),
            headers={"Content-Encoding": "gzip"},
        ),
    ]
    for got in ways:
        assert (got.status_code, got.json()["duplicate"], got.json()["accepted"]) == (202, 2, 0)
    assert journal(service.store) == 2


def test_each_rejected_event_is_named_and_the_others_are_taken(
    moodle: TestClient, service: Service
) -> None:
    sent = [lines(event(1)), b"hello", lines({**event(2), "occurred_at": "yesterday"}), b'{"id":3}']
    got = moodle.post(EVENTS, content=b"\n".join([*sent, lines(event(1, user_id="7"))]))
    assert got.status_code == 202
    answer = got.json()
    assert (answer["received"], answer["accepted"], answer["rejected"]) == (5, 1, 4)
    assert [r["index"] for r in answer["rejections"]] == [1, 2, 3, 4]
    assert all(r["reason"] for r in answer["rejections"])
    with service.store.transaction(Scope("oak")) as conn:
        kept = conn.execute(text("SELECT original FROM theon.dead_letters ORDER BY id")).scalars()
        assert [bytes(original) for original in kept][:2] == sent[1:3]


def test_each_is_named_however_many_there_are(moodle: TestClient) -> None:
    wrong = [b'{"id":"%d"}' % number for number in range(12_000)]
    got = moodle.post(EVENTS, content=b"\n".join([*wrong, lines(event(1))]))
    assert (got.status_code, got.json()["accepted"]) == (202, 1)
    assert [r["index"] for r in got.json()["rejections"]] == list(range(12_000))


def test_a_body_of_which_nothing_can_be_taken_is_answered_422(moodle: TestClient) -> None:
    got = moodle.post(EVENTS, content=b"hello\nworld")
    assert (got.status_code, got.json()["rejected"]) == (422, 2)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b'[{"id":1},', {"Content-Type": "application/json"}, 400),
        (b"x", {"Content-Encoding": "br"}, 400),
        (b"x", {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b"{}"), {}, 400),
        (gzip.compress(bytes(11 << 20)), {"Content-Encoding": "gzip"}, 413),
        (b" " * ((10 << 20) + 1), {}, 413),
        (b"{}\n" * 100_001, {}, 413),
    ],
    ids=[
        "empty",
        "half an array",
        "brotli",
        "no gzip",
        "unnamed gzip",
        "a bomb",
        "too large",
        "too many",
    ],
)
def test_a_body_that_cannot_be_read_is_refused_whole(
    moodle: TestClient, service: Service, body: bytes, headers: dict[str, str], status: int
) -> None:
    got = moodle.post(EVENTS, content=body, headers=headers)
    assert got.status_code == status
    assert got.json()["error"]
    assert got.json()["next_step"]
    assert journal(service.store) == 0


def test_who_may_send(service: Service, room: EventsRoom) -> None:
    allowed = {Role.SYSTEM_ADMINISTRATOR, Role.CAMPUS_ADMINISTRATOR, Role.SERVICE}
    for role in Role:
        got = service.client(role).post(f"{EVENTS}?campus=oak", content=lines(event(role)))
        assert got.status_code == (202 if role in allowed else 403), role
    assert service.client(None).post(EVENTS, content=lines(event(1))).status_code == 401


def test_events_go_to_the_senders_campus_or_one_below_it(
    service: Service, room: EventsRoom, moodle: TestClient
) -> None:
    assert moodle.post(f"{EVENTS}?campus=elm", content=lines(event(1))).status_code == 400
    assert moodle.post(f"{EVENTS}?campus=nowhere", content=lines(event(1))).status_code == 400
    root = service.root
    assert root.post(EVENTS, content=lines(event(1))).status_code == 400
    assert root.post(f"{EVENTS}?campus=elm", content=lines(event(1))).status_code == 202
    assert (journal(service.store, "oak"), journal(service.store, "elm")) == (0, 1)


def test_a_revoked_key_is_believed_for_seconds_at_most(
    service: Service, room: EventsRoom, moodle: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert moodle.post(EVENTS, content=lines(event(1))).status_code == 202
    for key in list_keys(service.store):
        revoke_key(service.store, key.id)
    room.trusted.expire(time.monotonic() + events_api.TRUSTED_S + 0.1)
    assert moodle.post(EVENTS, content=lines(event(2))).status_code == 401


def test_a_client_that_sends_too_much_is_told_when_to_come_back(
    service: Service, store_settings: Settings
) -> None:
    # Twice eight of ten: what was sent just before a minute begins weighs a little less after it.
    few = store_settings.model_copy(update={"client_events_per_minute": 10})
    with add_events_api(service.app, service.store, few):
        first, other = service.client(Role.SERVICE, "oak"), service.client(Role.SERVICE, "elm")
        assert first.post(EVENTS, content=lines(*map(event, range(8)))).status_code == 202
        got = first.post(EVENTS, content=lines(*map(event, range(8, 16))))
        assert got.status_code == 429
        assert 1 <= int(got.headers["Retry-After"]) <= 120
        assert other.post(EVENTS, content=lines(event(1))).status_code == 202
    assert journal(service.store) == 8


def test_where_too_much_waits_senders_are_told_to_come_back(
    moodle: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "WAITING_BYTES", 10)
    got = moodle.post(EVENTS, content=lines(event(1)))
    assert (got.status_code, got.headers["Retry-After"]) == (429, "1")
    assert journal(service.store) == 0


def test_a_database_that_is_away_is_said_and_nothing_is_taken(
    moodle: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **more: object) -> None:
        raise UnavailableError("the database went away", next_step="Come back.")

    with monkeypatch.context() as patch:
        patch.setattr(group_commit, "accept", away)
        assert moodle.post(EVENTS, content=lines(event(1))).status_code == 503
    assert moodle.post(EVENTS, content=lines(event(1))).json()["accepted"] == 1


def test_what_a_file_has_brought_is_known_over_http(
    service: Service, store_settings: Settings, tmp_path: Path
) -> None:
    """The service looks beside the lake, where whoever reads files notes their ids."""
    own = store_settings.model_copy(update={"home": tmp_path / "home"})
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines(event(1), event(2)))
    lake = EventLake(own)
    ingest(service.store, lake, own, location=str(file), format="ndjson", campus="oak")
    sent = lines(event(1), event(3), event(2, user_id="9"))
    with add_events_api(service.app, service.store, own):
        told = service.client(Role.SERVICE, "oak").post(EVENTS, content=sent).json()
    assert (told["accepted"], told["duplicate"], told["rejected"]) == (1, 1, 1)
    assert [(one["index"], one["detail"]) for one in told["rejections"]] == [(2, "e2")]


def test_a_fault_of_ours_is_said_in_the_shape_of_all_refusals(
    moodle: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **more: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(group_commit, "accept", fails)
    got = moodle.post(EVENTS, content=lines(event(1)))
    assert got.status_code == 500
    assert "Nothing of this request was taken" in got.json()["next_step"]
    assert journal(service.store) == 0


def test_a_body_that_does_not_come_is_given_up_and_holds_no_memory(
    moodle: TestClient, service: Service, room: EventsRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a few senders whose line is dead would keep out all others for good."""
    monkeypatch.setattr(events_api, "READING_S", 0.3)
    head = f"POST {EVENTS} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n"
    head += f"Authorization: {moodle.headers['Authorization']}\r\n\r\n"
    with served(service.app) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(head.encode() + lines(event(1)))
            answer = line.makefile("rb").read()  # to its end, so the connection is closed
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not come" in answer
    assert room._reading == 0
    assert journal(service.store) == 0


def test_a_transaction_that_a_deadlock_ended_is_tried_again(
    moodle: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else holds what it wants, and wants what it holds."""
    ended = []
    accept = group_commit.accept

    def once_in_each_others_way(conn: Connection, *arguments: Any, **more: Any) -> Any:
        receipt = accept(conn, *arguments, **more)
        if not ended:
            ended.append(1)
            conn.execute(text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$"))
        return receipt

    monkeypatch.setattr(group_commit, "accept", once_in_each_others_way)
    assert moodle.post(EVENTS, content=lines(event(1))).json()["accepted"] == 1
    assert (ended, journal(service.store)) == ([1], 1)


def test_requests_at_the_same_time_share_commits_and_each_gets_its_own_answer(
    moodle: TestClient, service: Service
) -> None:
    """Eight senders of single events and of batches, some of them bad, some sent twice."""
    key = moodle.headers["Authorization"]
    failures: list[str] = []

    def sender(address: str, number: int) -> None:
        with httpx.Client(
            base_url=f"http://{address}", headers={"Authorization": key}, timeout=LIMIT_S,
            trust_env=False,
        ) as client:  # fmt: skip
            for turn in range(15):
                own = [event(f"{number}-{turn}-{n}") for n in range(number)]
                body = lines(*own, own[0]) if own else lines(event("shared"))
                got = client.post(EVENTS, content=body + b"\nbad").json()
                if own and (got["accepted"], got["duplicate"]) != (number, 1):
                    failures.append(str(got))
                last = len(body.splitlines())
                if [r["index"] for r in got["rejections"]] != [last]:
                    failures.append(str(got))

    with served(service.app) as address:
        threads = [threading.Thread(target=sender, args=(address, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert journal(service.store) == 15 * sum(range(8)) + 1
    with service.store.transaction(Scope("oak")) as conn:
        entries = conn.execute(text("SELECT count(*) FROM theon.event_journal")).scalar_one()
    assert entries < 15 * 7 + 1  # senders that bring events, and the shared one


def test_the_schema_of_an_event_is_published(moodle: TestClient) -> None:
    schema = moodle.get(f"{EVENTS}/schema").json()
    assert {"id", "event_name", "occurred_at"} == set(schema["required"])
    assert set(event(1)) <= set(schema["properties"])


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.text(max_size=100).map(lambda s: s.encode("utf-8", "surrogatepass")),
        st.lists(
            st.dictionaries(
                st.sampled_from(["id", "event_name", "occurred_at", "user_id", "other", "x"]),
                st.one_of(
                    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
                    st.just(AT), st.just("1970-01-01T00:00:00Z"), st.just("2999-01-01T00:00:00Z"),
                    st.just({"a": [{}]}),
                ),
            ),
            max_size=5,
        ).map(lambda events: json.dumps(events).encode()),
    ),
    kind=st.sampled_from(["application/json", "application/x-ndjson", "text/html", ""]),
)  # fmt: skip
def test_whatever_is_sent_is_answered_and_adds_up(
    moodle: TestClient, body: bytes, kind: str
) -> None:
    """No body makes the service fail, and what it says of a body adds up."""
    got = moodle.post(EVENTS, content=body, headers={"Content-Type": kind})
    assert got.status_code in (202, 400, 413, 422), got.text
    if got.status_code in (202, 422):
        answer = got.json()
        parts = answer["accepted"] + answer["duplicate"] + answer["rejected"]
        assert answer["received"] == parts > 0
        assert len(answer["rejections"]) == answer["rejected"]


def test_depth_bombs_and_giant_names_are_refused_by_name(moodle: TestClient) -> None:
    deep = '{"a":' * 200_000 + "1" + "}" * 200_000
    bombs = [
        lines(event(1))[:-1] + b', "other": ' + deep.encode() + b"}",
        lines(event(2, user_id="x" * 1_000_000)),
        lines(event(3, user_id="a\x00b")),
        lines(event(4)).replace(b'"5"', b'"\\ud800"'),
        lines(event("x" * 1_000_000)),
    ]
    assert all(len(bomb) < bodies.MOST_BYTES for bomb in bombs)
    got = moodle.post(EVENTS, content=b"\n".join(bombs))
    assert (got.status_code, got.json()["rejected"]) == (422, len(bombs))


def test_the_ledger_knows_how_long_before_its_arrival_an_event_happened(
    moodle: TestClient, service: Service
) -> None:
    """By its own account; what was known and what is refused tells nothing."""
    now = datetime.now(UTC)
    times = [now + timedelta(hours=3), now - timedelta(hours=1), now + timedelta(hours=30)]
    sent = [event(n, occurred_at=at.isoformat()) for n, at in enumerate(times)]
    assert moodle.post(EVENTS, json=sent).json()["rejected"] == 1
    assert moodle.post(EVENTS, json=sent).json()["duplicate"] == 2
    with service.store.transaction(Scope("oak")) as conn:
        timed, ahead, least_s = conn.execute(
            text("SELECT sum(timed), sum(ahead), min(least_lag_s) FROM theon.delivery_counts")
        ).one()
    assert (timed, ahead) == (2, 1)
    assert least_s == pytest.approx(-3 * 3600, abs=30)
