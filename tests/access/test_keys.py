"""API keys: shown once, stored as a hash, and worth no more than whoever made them."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from tests.access.conftest import proof, sign_in
from theon.access.errors import ForbiddenError
from theon.access.keys import list_keys, make_key, read_key, revoke_key
from theon.access.principals import Principal, Via
from theon.access.roles import Role
from theon.errors import InputError
from theon.store.engine import Store
from theon.store.scope import Scope

HEAD = Principal("account:9", "head", Role.CAMPUS_ADMINISTRATOR, "oak", Via.SESSION)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def make(client: TestClient, **changes: Any) -> Any:
    wanted = {"name": "Moodle of Oak", "campus": "oak", **changes}
    return client.post("/api/v1/keys", json=wanted, headers=proof(client))


@pytest.fixture
def head(client: TestClient, account: Callable[[Role], str]) -> TestClient:
    """A browser in which the campus administrator of oak is signed in."""
    sign_in(client, account(Role.CAMPUS_ADMINISTRATOR))
    return client


def test_a_key_is_shown_once_and_stored_as_a_hash(head: TestClient, district: Store) -> None:
    """The prefix stays readable; the list and the database have nothing that opens a door."""
    answer = make(head)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    key = answer.json()["key"]
    assert key.startswith(answer.json()["prefix"] + "_")
    listed = head.get("/api/v1/keys")
    assert [each["prefix"] for each in listed.json()["keys"]] == [answer.json()["prefix"]]
    secret = key.removeprefix(answer.json()["prefix"] + "_")
    assert len(secret) == 43
    assert secret not in listed.text
    with district.transaction(Scope.district()) as conn:
        row = conn.execute(text("SELECT k::text FROM theon.api_keys AS k")).scalar_one()
    assert secret not in row


def test_a_key_opens_what_its_role_and_campus_may_see(
    app: FastAPI, head: TestClient, district: Store
) -> None:
    """Without a cookie or a proof, for no browser sends it by itself; its last use is kept."""
    key = make(head).json()["key"]
    assert list_keys(district)[0].used_at is None
    service = TestClient(app, headers=bearer(key))
    assert service.get("/people").json() == ["u-oak"]
    assert service.post("/change").status_code == 200
    assert service.get("/api/v1/me").json()["via"] == "key"
    assert service.get("/api/v1/keys").status_code == 403
    assert list_keys(district)[0].used_at is not None


def test_a_service_of_the_district_sees_all_of_it(app: FastAPI, district: Store) -> None:
    _, key = make_key(district, name="LMS", role=Role.SERVICE, campus="district")
    assert sorted(TestClient(app, headers=bearer(key)).get("/people").json()) == ["u-elm", "u-oak"]


def test_a_revoked_key_is_refused_at_once(app: FastAPI, head: TestClient, district: Store) -> None:
    made = make(head).json()
    service = TestClient(app, headers=bearer(made["key"]))
    assert service.get("/people").status_code == 200
    gone = head.delete(f"/api/v1/keys/{made['id']}", headers=proof(head))
    assert gone.status_code == 204
    assert service.get("/people").status_code == 401
    revoked_at = list_keys(district)[0].revoked_at
    revoke_key(district, made["id"])
    assert list_keys(district)[0].revoked_at == revoked_at is not None


def test_a_key_expires(app: FastAPI, head: TestClient, district: Store) -> None:
    key = make(head, days=1).json()["key"]
    service = TestClient(app, headers=bearer(key))
    assert service.get("/people").status_code == 200
    with district.transaction(Scope.district()) as conn:
        conn.execute(text("UPDATE theon.api_keys SET expires_at = clock_timestamp()"))
    assert service.get("/people").status_code == 401
    assert make(head, days=0).status_code == 422
    with pytest.raises(InputError, match="0 days"):
        make_key(district, name="x", role=Role.SERVICE, campus="oak", days=0)


@pytest.mark.parametrize("change", ["x", "", "A"])
def test_a_key_that_is_nearly_right_is_wrong(app: FastAPI, head: TestClient, change: str) -> None:
    key = make(head).json()["key"]
    wrong = key[:-1] + change if change != "A" else key.upper()
    if wrong != key:
        assert TestClient(app, headers=bearer(wrong)).get("/people").status_code == 401


def test_a_bad_header_is_not_saved_by_a_good_cookie(head: TestClient) -> None:
    """Whoever sends credentials is judged by them alone."""
    assert head.get("/people").status_code == 200
    for header in ("Bearer theon_aaaaaaaa_x", "Basic YTpi", "Bearer", "", "Bearer a.b.c"):
        for path in ("/people", "/who"):
            answer = head.get(path, headers={"Authorization": header})
            assert answer.status_code == 401, header


def test_keys_of_another_campus_are_neither_made_seen_nor_revoked(
    head: TestClient, district: Store
) -> None:
    other, key = make_key(district, name="elm's", role=Role.SERVICE, campus="elm")
    for campus in ("elm", "district", "nowhere"):
        answer = make(head, campus=campus)
        assert answer.status_code == 400
        assert "no campus" in answer.json()["error"]
    assert head.get("/api/v1/keys").json() == {"keys": []}
    assert head.delete(f"/api/v1/keys/{other.id}", headers=proof(head)).status_code == 404
    assert read_key(district, key) is not None


def test_a_key_is_worth_no_more_than_its_maker(
    app: FastAPI, head: TestClient, district: Store
) -> None:
    """Nobody makes a stronger role; who may not manage keys makes none."""
    answer = make(head, role="system_administrator", campus="district")
    assert answer.status_code == 403
    assert make(head, role="campus_administrator").status_code == 201
    teacher = Principal("account:8", "ann", Role.TEACHER, "oak", Via.SESSION)
    with pytest.raises(ForbiddenError):
        make_key(district, name="x", role=Role.TEACHER, campus="oak", by=teacher)
    with pytest.raises(ForbiddenError):
        list_keys(district, by=teacher)
    with pytest.raises(ForbiddenError):
        revoke_key(district, 1, by=teacher)


def test_a_key_cannot_make_keys(app: FastAPI, district: Store) -> None:
    """It would live on in them after it was revoked."""
    _, key = make_key(district, name="x", role=Role.CAMPUS_ADMINISTRATOR, campus="oak", by=HEAD)
    service = TestClient(app, headers=bearer(key))
    assert service.get("/api/v1/keys").status_code == 200
    wanted = {"name": "y", "campus": "oak"}
    assert service.post("/api/v1/keys", json=wanted).status_code == 403


def test_making_and_revoking_by_cookie_needs_the_proof(head: TestClient) -> None:
    wanted = {"name": "x", "campus": "oak"}
    assert head.post("/api/v1/keys", json=wanted).status_code == 403
    made = make(head).json()
    assert head.delete(f"/api/v1/keys/{made['id']}").status_code == 403
    assert [key["revoked_at"] for key in head.get("/api/v1/keys").json()["keys"]] == [None]
