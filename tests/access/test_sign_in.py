"""Signing in by the API: wrong passwords, lock-out, sessions, and requests from elsewhere."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient
from sqlalchemy import text
from starlette.websockets import WebSocketDisconnect

from tests.access.conftest import ORIGIN, PASSWORD, proof, sign_in
from theon.access import sessions, sign_in_failures
from theon.access.accounts import set_password
from theon.access.errors import LockedError, SignInError
from theon.access.principals import Principal
from theon.access.roles import Role
from theon.access.sessions import digest
from theon.api.sign_in import require
from theon.errors import UnavailableError
from theon.store.engine import Store
from theon.store.scope import Scope

WRONG = "wrong"


def run(store: Store, statement: str, **values: object) -> None:
    with store.transaction(Scope.district()) as conn:
        assert conn.execute(text(statement), values).rowcount > 0


def attempt(client: TestClient, name: str, password: str = WRONG) -> int:
    given = {"name": name, "password": password}
    return client.post("/api/v1/sign-in", json=given).status_code


def test_signing_in_shows_who_one_is(client: TestClient, account: Callable[[Role], str]) -> None:
    body = sign_in(client, account(Role.CAMPUS_ADMINISTRATOR))
    me = client.get("/api/v1/me").json()
    assert me["name"] == "campus_administrator"
    assert (me["role"], me["campus"], me["via"]) == ("campus_administrator", "oak", "session")
    assert "jobs.control" in me["permissions"]
    assert me["csrf_token"] == body["csrf_token"] == client.cookies["theon_csrf"]


def test_nobody_is_signed_in_without_showing_anything(client: TestClient) -> None:
    """401 with what to do; an optional principal is simply none."""
    for path in ("/api/v1/me", "/people", "/api/v1/keys"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert set(answer.json()) == {"error", "next_step"}
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.get("/who").json() == "nobody"


def test_a_lack_of_permission_is_403_and_says_so(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    sign_in(client, account(Role.LEARNER))
    answer = client.get("/people")
    assert answer.status_code == 403
    assert "learner" in answer.json()["error"]
    assert answer.json()["next_step"]


def test_a_wrong_password_and_an_unknown_name_answer_alike(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    """Nobody finds out who has an account; nobody is signed in."""
    name = account(Role.TEACHER)
    answers = [
        client.post("/api/v1/sign-in", json={"name": who, "password": WRONG})
        for who in (name, "nobody-at-all")
    ]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()
    assert not client.cookies


def test_an_unknown_name_costs_the_same_work(
    district: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash of today's parameters is checked for it too, so the time tells nothing."""
    from theon.access import passwords

    checked: list[str] = []

    class Counting:
        def verify(self, known: str, password: str) -> bool:
            checked.append(known)
            return True

    passwords._decoy()
    monkeypatch.setattr(passwords, "HASHER", Counting())
    with pytest.raises(SignInError):
        sessions.sign_in(district, "nobody", PASSWORD, address="a", lasts_s=60)
    assert [known.split("$")[1] for known in checked] == ["argon2id"]


@pytest.mark.parametrize("name", ["teacher", "nobody-at-all"])
def test_ten_failures_lock_a_name_whether_or_not_it_exists(
    client: TestClient, district: Store, account: Callable[[Role], str], name: str
) -> None:
    """Then the right password waits as well, and the answer says how long; other names do not."""
    account(Role.TEACHER)
    other = account(Role.LEARNER)
    assert [attempt(client, name) for _ in range(10)] == [401] * 10
    answer = client.post("/api/v1/sign-in", json={"name": name, "password": PASSWORD})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= sign_in_failures.WINDOW_S
    assert "minutes" in answer.json()["next_step"]
    assert attempt(client, other, PASSWORD) == 200


def test_a_lock_ends_by_itself_or_by_a_new_password(
    client: TestClient, district: Store, account: Callable[[Role], str]
) -> None:
    """Attempts that were turned away do not lengthen it."""
    name = account(Role.TEACHER)
    for _ in range(15):
        attempt(client, name)
    set_password(district, name, "another long password")
    assert attempt(client, name, "another long password") == 200
    for _ in range(15):
        attempt(client, name)
    assert attempt(client, name, "another long password") == 429
    run(district, "UPDATE theon.sign_in_failures SET at = at - interval '15 minutes'")
    assert attempt(client, name, "another long password") == 200


def test_success_strikes_out_the_failures_of_a_name(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    """Somebody who mistypes now and then is never locked out."""
    name = account(Role.TEACHER)
    for _ in range(3):
        for _ in range(9):
            assert attempt(client, name) == 401
        assert attempt(client, name, PASSWORD) == 200


def test_an_address_that_tries_many_names_is_locked(district: Store) -> None:
    """Also one that walks through its own IPv6 network; another address is not."""
    for n in range(sign_in_failures.MOST_PER_ADDRESS):
        sign_in_failures.begin_attempt(district, f"name{n}", f"2001:db8::{n:x}")
    with pytest.raises(LockedError):
        sign_in_failures.begin_attempt(district, "one-more", "2001:db8::ffff")
    sign_in_failures.begin_attempt(district, "one-more", "2001:db8:0:1::1")


def test_guesses_at_the_same_moment_are_counted_one_by_one(district: Store) -> None:
    """Thirty at once get the ten attempts that thirty in a row would get."""

    def guess(_: int) -> bool:
        try:
            sign_in_failures.begin_attempt(district, "ann", "10.0.0.1")
        except LockedError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(guess, range(30))) == sign_in_failures.MOST_PER_NAME


def test_what_was_typed_as_a_name_is_not_kept(client: TestClient, district: Store) -> None:
    """People type passwords there; and after a day nothing is kept at all."""
    attempt(client, "my secret password")
    with district.transaction(Scope.district()) as conn:
        kept = conn.execute(text("SELECT subject FROM theon.sign_in_failures")).scalars().all()
    assert len(kept) == 2
    assert not any("secret" in subject for subject in kept)
    run(district, "UPDATE theon.sign_in_failures SET at = at - interval '25 hours'")
    attempt(client, "somebody")
    with district.transaction(Scope.district()) as conn:
        assert conn.execute(text("SELECT count(*) FROM theon.sign_in_failures")).scalar() == 2


def test_only_the_hash_of_a_session_is_stored(
    client: TestClient, district: Store, account: Callable[[Role], str]
) -> None:
    """A copy of the database lets nobody in."""
    sign_in(client, account(Role.TEACHER))
    token = client.cookies["theon_session"]
    with district.transaction(Scope.district()) as conn:
        row = conn.execute(text("SELECT s.*, s::text AS whole FROM theon.sessions AS s")).one()
    assert bytes(row.token_hash) == digest(token)
    assert token not in row.whole


def test_cookies_are_out_of_reach(app: FastAPI, account: Callable[[Role], str]) -> None:
    """HttpOnly and SameSite=Lax; over https Secure too, under a name no neighbour can set."""
    name = account(Role.TEACHER)
    given = {"name": name, "password": PASSWORD}
    plain = TestClient(app).post("/api/v1/sign-in", json=given)
    session, csrf = plain.headers.get_list("set-cookie")
    assert session.startswith("theon_session=")
    assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(session.split("; "))
    assert "HttpOnly" not in csrf
    assert "Secure" not in session + csrf
    secure = TestClient(app, base_url="https://testserver")
    answer = secure.post("/api/v1/sign-in", json=given)
    session, csrf = answer.headers.get_list("set-cookie")
    assert session.startswith("__Host-theon_session=")
    assert {"HttpOnly", "SameSite=lax", "Path=/", "Secure"} <= set(session.split("; "))
    assert "Secure" in csrf.split("; ")
    assert secure.get("/api/v1/me").status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE theon.sessions SET expires_at = clock_timestamp()",
        "UPDATE theon.sessions SET seen_at = clock_timestamp() - interval '2 hours'",
    ],
    ids=["too old", "not used for two hours"],
)
def test_a_session_ends(
    client: TestClient, district: Store, account: Callable[[Role], str], change: str
) -> None:
    sign_in(client, account(Role.TEACHER))
    assert client.get("/people").status_code == 200
    run(district, change)
    assert client.get("/people").status_code == 401
    assert client.get("/who").json() == "nobody"


def test_use_keeps_a_session_awake_but_not_beyond_its_end(
    client: TestClient, district: Store, account: Callable[[Role], str]
) -> None:
    sign_in(client, account(Role.TEACHER))
    for _ in range(3):
        run(district, "UPDATE theon.sessions SET seen_at = seen_at - interval '119 minutes'")
        assert client.get("/people").status_code == 200
    with district.transaction(Scope.district()) as conn:
        lasts = conn.execute(
            text(
                "SELECT expires_at - created_at < interval '12 hours 1 minute' FROM theon.sessions"
            )
        )
        assert lasts.scalar_one()


def test_signing_out_ends_the_session_itself(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    """A copy of the cookie is worth nothing afterwards."""
    sign_in(client, account(Role.TEACHER))
    token = client.cookies["theon_session"]
    assert client.post("/api/v1/sign-out", headers=proof(client)).status_code == 204
    assert "theon_session" not in client.cookies
    client.cookies.set("theon_session", token)
    assert client.get("/api/v1/me").status_code == 401


def test_signing_in_never_takes_up_a_token_from_before(
    client: TestClient, district: Store, account: Callable[[Role], str]
) -> None:
    """A planted cookie is no session, and a session from before ends with the new one."""
    teacher, learner = account(Role.TEACHER), account(Role.LEARNER)
    client.cookies.set("theon_session", "planted", domain="testserver.local")
    sign_in(client, teacher)
    first = client.cookies["theon_session"]
    assert first != "planted"
    assert sessions.read_session(district, "planted") is None
    sign_in(client, learner)
    assert client.cookies["theon_session"] != first
    assert sessions.read_session(district, first) is None


def test_a_change_needs_both_proofs(client: TestClient, account: Callable[[Role], str]) -> None:
    """The origin of our own pages and the session's token; reading needs neither."""
    sign_in(client, account(Role.TEACHER))
    good = proof(client)
    assert client.post("/change", headers=good).status_code == 200
    token = {"X-CSRF-Token": good["X-CSRF-Token"]}
    for bad in (
        {},
        {"Origin": ORIGIN},
        token,
        {**good, "X-CSRF-Token": ""},
        {**good, "X-CSRF-Token": b"\xc3\xa9"},
        {**good, "X-CSRF-Token": good["X-CSRF-Token"][:-1]},
        {**good, "Origin": "http://evil.example"},
        {**good, "Origin": "http://testserver.evil.example"},
        {**good, "Origin": "http://testserver:8080"},
        {**good, "Origin": "null"},
        {**token, "Referer": "http://evil.example/testserver"},
    ):
        answer = client.post("/change", headers=bad)
        assert answer.status_code == 403, bad
        assert set(answer.json()) == {"error", "next_step"}
    assert client.post("/change", headers={**token, "Referer": f"{ORIGIN}/x"}).status_code == 200
    assert client.get("/people", headers={"Origin": "http://evil.example"}).status_code == 200


def test_a_csrf_token_belongs_to_one_session(app: FastAPI, account: Callable[[Role], str]) -> None:
    """Who has an account of their own cannot use its token, or its cookie, on somebody else."""
    victim, attacker = TestClient(app), TestClient(app)
    sign_in(victim, account(Role.TEACHER))
    sign_in(attacker, account(Role.LEARNER))
    foreign = attacker.cookies["theon_csrf"]
    victim.cookies.delete("theon_csrf")
    victim.cookies.set("theon_csrf", foreign, domain="testserver.local")
    headers = {"Origin": ORIGIN, "X-CSRF-Token": foreign}
    assert victim.post("/change", headers=headers).status_code == 403


def test_a_form_carries_the_token_as_a_field(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    """So pages work without scripts; a body of another kind is not looked at."""
    sign_in(client, account(Role.TEACHER))
    token = client.cookies["theon_csrf"]
    headers = {"Origin": ORIGIN}
    assert client.post("/change", headers=headers, data={"csrf_token": token}).status_code == 200
    assert client.post("/change", headers=headers, data={"csrf_token": "x"}).status_code == 403
    assert client.post("/change", headers=headers, json={"csrf_token": token}).status_code == 403
    large = {"csrf_token": token, "more": "x" * 70_000}
    assert client.post("/change", headers=headers, data=large).status_code == 413


def test_another_site_cannot_sign_a_browser_in(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    """Or it could make people work in an account that it reads."""
    given = {"name": account(Role.TEACHER), "password": PASSWORD}
    headers = {"Origin": "http://evil.example"}
    assert client.post("/api/v1/sign-in", json=given, headers=headers).status_code == 403
    assert not client.cookies


def test_another_site_cannot_open_a_socket_on_a_cookie(
    app: FastAPI, account: Callable[[Role], str]
) -> None:
    """Browsers send cookies with any WebSocket, so its origin has to be ours."""

    @app.websocket("/events")
    async def events(
        socket: WebSocket, principal: Annotated[Principal, Depends(require("metrics.read"))]
    ) -> None:
        await socket.accept()
        await socket.send_text(principal.name)
        await socket.close()

    client = TestClient(app)
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/events", headers={"Origin": ORIGIN}),
    ):
        pass
    name = sign_in(client, account(Role.TEACHER))["name"]
    for origin in ("http://evil.example", "null"):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/events", headers={"Origin": origin}),
        ):
            pass
    with client.websocket_connect("/events", headers={"Origin": ORIGIN}) as socket:
        assert socket.receive_text() == name


def test_nobody_reads_another_campuss_rows(
    app: FastAPI, district: Store, account: Callable[[Role], str]
) -> None:
    """The route names no campus: the principal's scope and the database decide."""
    seen = {}
    for role in (Role.SYSTEM_ADMINISTRATOR, Role.CAMPUS_ADMINISTRATOR, Role.TEACHER):
        client = TestClient(app)
        sign_in(client, account(role))
        seen[role] = sorted(client.get("/people").json())
    assert seen == {
        Role.SYSTEM_ADMINISTRATOR: ["u-elm", "u-oak"],
        Role.CAMPUS_ADMINISTRATOR: ["u-oak"],
        Role.TEACHER: ["u-oak"],
    }


def test_a_database_that_is_away_is_nobodys_fault(
    app: FastAPI, account: Callable[[Role], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 rather than 401, so that a browser keeps its cookie and a service its key."""
    client = TestClient(app)
    sign_in(client, account(Role.TEACHER))

    def gone(*_: object) -> None:
        raise UnavailableError("the database went away", next_step="Try again.")

    with monkeypatch.context() as then:
        then.setattr(Store, "transaction", gone)
        bearer = {"Authorization": "Bearer theon_abcdefgh_x"}
        answers = [client.get("/people"), client.get("/people", headers=bearer)]
        form = {"name": "teacher", "password": PASSWORD}
        answers.append(client.post("/sign-in", data=form, headers={"Origin": ORIGIN}))
    assert [answer.status_code for answer in answers] == [503] * 3
    assert answers[0].json() == {"error": "the database went away", "next_step": "Try again."}
    assert client.get("/people").status_code == 200


@pytest.mark.parametrize("typed", ["a\0b", "a\ud800b"])
def test_a_name_or_password_that_is_no_text_is_refused_like_a_wrong_one(
    district: Store, typed: str
) -> None:
    for name, password in ((typed, "x"), ("x", typed)):
        with pytest.raises(SignInError):
            sessions.sign_in(district, name, password, address="1.2.3.4", lasts_s=60)
