"""The pages: they work without scripts, lead back, and the welcome link works once."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from tests.access.conftest import ORIGIN, PASSWORD
from theon.access import welcome as access_welcome
from theon.access.accounts import list_accounts
from theon.access.errors import SignInError
from theon.access.passwords import hash_password
from theon.access.principals import Principal
from theon.access.roles import Role
from theon.access.welcome import first_link, is_loopback, link_holds, welcome
from theon.errors import InputError
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope
from theon.web.sign_in import require_page

HEADERS = {"Origin": ORIGIN}


def local(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"host": "127.0.0.1", "port": 3007, **changes})


@pytest.fixture
def token(district: Store, store_settings: Settings) -> str:
    link = first_link(district, local(store_settings))
    assert link is not None
    return link.partition("token=")[2]


def answers(token: str, **changes: str) -> dict[str, str]:
    return {"token": token, "name": "root", "password": PASSWORD, "again": PASSWORD} | changes


def test_the_welcome_link_makes_the_first_administrator_once(
    client: TestClient, district: Store, token: str
) -> None:
    """Looking spends nothing; the form signs in; afterwards the link is worth nothing."""
    for _ in range(2):
        page = client.get(f"/welcome?token={token}")
        assert page.status_code == 200
        assert f'value="{token}"' in page.text
    made = client.post("/welcome", data=answers(token), headers=HEADERS)
    assert (made.status_code, made.headers["location"]) == (303, "/")
    me = client.get("/api/v1/me").json()
    assert (me["role"], me["campus"]) == ("system_administrator", "district")
    stranger = TestClient(client.app)
    assert stranger.get(f"/welcome?token={token}").status_code == 401
    again = stranger.post("/welcome", data=answers(token, name="second"), headers=HEADERS)
    assert again.status_code == 401
    assert [account.name for account in list_accounts(district)] == ["root"]


def test_a_mistake_in_the_form_does_not_spend_the_link(client: TestClient, token: str) -> None:
    """It is shown again with what was wrong, and never with the password."""
    for wrong in (
        {"again": "something different"},
        {"password": "short", "again": "short"},
        {"name": "no spaces <b>please</b>"},
    ):
        page = client.post("/welcome", data=answers(token, **wrong), headers=HEADERS)
        assert page.status_code == 400
        assert 'role="alert"' in page.text
        assert PASSWORD not in page.text
        assert "<b>" not in page.text
    assert client.post("/welcome", data=answers(token), headers=HEADERS).status_code == 303


def test_a_wrong_or_old_link_is_refused(client: TestClient, district: Store, token: str) -> None:
    for wrong in ("", "wrong", token[:-1]):
        assert client.get(f"/welcome?token={wrong}").status_code == 401
        posted = client.post("/welcome", data=answers(wrong), headers=HEADERS)
        assert posted.status_code == 401
    with district.transaction(Scope.district()) as conn:
        age = "UPDATE theon.welcome_links SET expires_at = expires_at - interval '24 hours'"
        conn.execute(text(age))
    assert client.get(f"/welcome?token={token}").status_code == 401
    assert client.post("/welcome", data=answers(token), headers=HEADERS).status_code == 401
    assert list_accounts(district) == []


def test_only_the_hash_of_the_link_is_stored(district: Store, token: str) -> None:
    with district.transaction(Scope.district()) as conn:
        row = conn.execute(text("SELECT w::text FROM theon.welcome_links AS w")).scalar_one()
    assert token not in row


def test_of_many_who_come_first_at_once_one_does(
    district: Store, store_settings: Settings, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with two links, for a second server has printed its own; the others are told so."""
    together = Barrier(4)

    def hash_and_wait(password: str) -> str:
        hashed = hash_password(password)
        together.wait(60)
        return hashed

    monkeypatch.setattr(access_welcome, "hash_password", hash_and_wait)
    second = first_link(district, local(store_settings))
    assert second is not None
    links = [token, second.partition("token=")[2]]
    assert all(link_holds(district, link) for link in links)

    def come(n: int) -> bool:
        try:
            welcome(district, links[n % 2], f"root{n}", PASSWORD)
        except SignInError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(come, range(4))) == 1
    assert len(list_accounts(district)) == 1


def test_there_is_no_link_once_there_is_an_account(
    district: Store, store_settings: Settings, account: Callable[[Role], str], token: str
) -> None:
    """And one printed before is dead."""
    account(Role.TEACHER)
    assert first_link(district, local(store_settings)) is None
    assert not link_holds(district, token)
    with pytest.raises(SignInError):
        welcome(district, token, "root", PASSWORD)


def test_there_is_no_link_for_a_server_that_others_reach(
    district: Store, store_settings: Settings
) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.5", "theon.example", ""):  # noqa: S104
        assert first_link(district, local(store_settings, host=host)) is None
    assert not any(map(is_loopback, ("localhost.evil.example", "127.0.0.1.evil.example")))
    link = first_link(district, local(store_settings, host="::1", port=4000))
    assert link is not None
    assert re.fullmatch(r"http://\[::1\]:4000/welcome\?token=[\w-]{43}", link)


def test_the_form_signs_in_and_leads_back(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    name = account(Role.TEACHER)
    page = client.get("/sign-in?next=/jobs%3Fstate%3Dfailed")
    assert 'name="next" value="/jobs?state=failed"' in page.text
    given = {"name": name, "password": PASSWORD, "next": "/jobs?state=failed"}
    answer = client.post("/sign-in", data=given, headers=HEADERS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs?state=failed")
    assert client.get("/api/v1/me").json()["name"] == name
    assert client.get("/sign-in?next=/jobs").headers["location"] == "/jobs"


@pytest.mark.parametrize(
    "elsewhere",
    ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:x", "/\t/evil", ""],
)
def test_nobody_is_led_to_another_site(
    client: TestClient, account: Callable[[Role], str], elsewhere: str
) -> None:
    given = {"name": account(Role.TEACHER), "password": PASSWORD, "next": elsewhere}
    page = client.get("/sign-in", params={"next": elsewhere}).text
    assert "evil" not in re.sub(r'nonce="[^"]*"', "", page)  # which may spell any short word
    assert client.post("/sign-in", data=given, headers=HEADERS).headers["location"] == "/"
    assert client.get("/sign-in", params={"next": elsewhere}).headers["location"] == "/"


def test_a_wrong_password_is_said_in_the_form(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    """The name stays, escaped; the lock says how long it lasts."""
    given = {"name": '"><script>', "password": "wrong password"}
    page = client.post("/sign-in", data=given, headers=HEADERS)
    assert page.status_code == 401
    assert 'role="alert"' in page.text
    assert "<script>" not in page.text
    assert "&#34;&gt;&lt;script&gt;" in page.text
    assert "wrong password" not in page.text
    for _ in range(9):
        client.post("/sign-in", data=given, headers=HEADERS)
    locked = client.post("/sign-in", data=given, headers=HEADERS)
    assert locked.status_code == 429
    assert "minutes" in locked.text


@pytest.mark.parametrize("path", ["/sign-in", "/welcome"])
@pytest.mark.parametrize("headers", [{}, {"Origin": "http://evil.example"}, {"Origin": "null"}])
def test_a_form_of_another_site_is_refused(
    client: TestClient,
    district: Store,
    account: Callable[[Role], str],
    token: str,
    path: str,
    headers: dict[str, str],
) -> None:
    name = account(Role.TEACHER) if path == "/sign-in" else "root"
    answer = client.post(path, data=answers(token, name=name), headers=headers)
    assert answer.status_code == 403
    assert not client.cookies
    assert len(list_accounts(district)) == (path == "/sign-in")


def test_signing_out_is_a_button_with_the_proof(
    client: TestClient, account: Callable[[Role], str]
) -> None:
    """A link, which any page may hold, changes nothing."""
    given = {"name": account(Role.TEACHER), "password": PASSWORD}
    client.post("/sign-in", data=given, headers=HEADERS)
    page = client.get("/sign-out")
    assert client.get("/api/v1/me").status_code == 200
    assert client.post("/sign-out", headers=HEADERS).status_code == 403
    assert client.get("/api/v1/me").status_code == 200
    found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert found is not None
    out = client.post("/sign-out", data={"csrf_token": found[1]}, headers=HEADERS)
    assert (out.status_code, out.headers["location"]) == (303, "/sign-in")
    assert client.get("/api/v1/me").status_code == 401
    assert client.get("/sign-out").headers["location"] == "/sign-in"


def test_the_pages_allow_nothing_but_their_own_form(client: TestClient, token: str) -> None:
    """No script, no frame around them, nothing kept, and the link's token stays here."""
    for path in ("/sign-in", f"/welcome?token={token}", "/welcome"):
        page = client.get(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        assert "<script" not in page.text
        assert "width=device-width" in page.text
        nonce = re.search(r"'nonce-([^']+)'", policy)
        assert nonce is not None
        assert f'<style nonce="{nonce[1]}">' in page.text


def test_a_page_leads_to_the_form_and_back(app: FastAPI, account: Callable[[Role], str]) -> None:
    """Also a page of an app below, as NiceGUI's are; who may not see it reads why."""
    import nicegui

    @nicegui.app.get("/below")
    def below(who: Annotated[Principal, Depends(require_page("metrics.read"))]) -> str:
        return who.name

    app.mount("/", nicegui.app)
    client = TestClient(app, follow_redirects=False)
    sent = client.get("/below?week=1&x=2")
    assert sent.status_code == 303
    assert sent.headers["location"] == "/sign-in?next=/below%3Fweek%3D1%26x%3D2"
    given = {"name": account(Role.TEACHER), "password": PASSWORD, "next": "/below?week=1&x=2"}
    back = client.post("/sign-in", data=given, headers=HEADERS)
    assert client.get(back.headers["location"]).json() == "teacher"
    other = TestClient(app, follow_redirects=False)
    given = {"name": account(Role.LEARNER), "password": PASSWORD}
    other.post("/sign-in", data=given, headers=HEADERS)
    refused = other.get("/below")
    assert refused.status_code == 403
    assert "learner may not see this page" in refused.text
    bad = other.get("/below", headers={"Authorization": "Bearer x"})
    assert bad.status_code == 401


def test_a_password_that_names_its_account_is_refused_at_the_door(
    district: Store, token: str
) -> None:
    with pytest.raises(InputError, match="easy to guess"):
        welcome(district, token, "principal", "principal-of-theon")
    assert link_holds(district, token)
