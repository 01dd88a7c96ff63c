"""A district of two schools with an account for each role, and a service over its store."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text

from theon.access.accounts import add_account
from theon.access.principals import Principal
from theon.access.requests import Access
from theon.access.roles import Role
from theon.api.sign_in import add_sign_in, optional_principal, require
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope
from theon.web.sign_in import add_sign_in_pages

PASSWORD = "correct horse battery"  # noqa: S105 - of the accounts of these tests
ORIGIN = "http://testserver"

CAMPUSES = {
    Role.SYSTEM_ADMINISTRATOR: "district",
    Role.CAMPUS_ADMINISTRATOR: "oak",
    Role.TEACHER: "oak",
    Role.LEARNER: "oak",
    Role.SERVICE: "oak",
}


def plain_settings(settings: Settings, **changes: Any) -> Settings:
    bare = {"jwt_secret": None, "jwt_jwks_url": None, "jwt_audience": None, "jwt_issuer": None}
    return settings.model_copy(update={**bare, "session_hours": 12, **changes})


@pytest.fixture
def district(store: Store) -> Store:
    """Schools oak and elm; each has a person `u-<school>`."""
    for slug in ("oak", "elm"):
        campus = add_campus(store, slug, "UTC")
        with store.transaction(Scope(slug)) as conn:
            conn.execute(
                text("INSERT INTO theon.people (campus_id, user_id) VALUES (:c, :u)"),
                {"c": campus.id, "u": f"u-{slug}"},
            )
    return store


@pytest.fixture
def account(district: Store) -> Callable[[Role], str]:
    """Makes the account of a role, named after it; gives its name."""

    def make(role: Role) -> str:
        add_account(district, name=role.value, password=PASSWORD, role=role, campus=CAMPUSES[role])
        return role.value

    return make


@pytest.fixture
def app(district: Store, store_settings: Settings) -> FastAPI:
    return make_app(Access(district, plain_settings(store_settings)))


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, follow_redirects=False)


def make_app(access: Access) -> FastAPI:
    """The routes of signing in, and a few small ones that need them."""
    app = FastAPI()
    add_sign_in(app, access)
    add_sign_in_pages(app)

    @app.get("/people")
    def people(principal: Annotated[Principal, Depends(require("metrics.read"))]) -> list[str]:
        with access.store.transaction(principal.scope) as conn:
            return list(conn.execute(text("SELECT user_id FROM theon.people")).scalars())

    @app.post("/change")
    def change(principal: Annotated[Principal, Depends(require("metrics.read"))]) -> str:
        return principal.subject

    @app.get("/who")
    def who(principal: Annotated[Principal | None, Depends(optional_principal)]) -> str:
        return principal.name if principal else "nobody"

    return app


def sign_in(client: TestClient, name: str, password: str = PASSWORD) -> Any:
    """Sign in as a browser's page does; the answer's body, and CSRF token for what follows."""
    answer = client.post(
        "/api/v1/sign-in", json={"name": name, "password": password}, headers={"Origin": ORIGIN}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def proof(client: TestClient) -> dict[str, str]:
    """The headers that one of our own pages sends with a change."""
    return {"Origin": ORIGIN, "X-CSRF-Token": client.cookies["theon_csrf"]}
