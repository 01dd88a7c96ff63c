"""Opening a store: the operator's own PostgreSQL, its roles, and what is said when it fails."""

import itertools
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Connection, text

from theon.errors import ConflictError, InputError, UnavailableError
from theon.roster.campuses import add_campus, list_campuses
from theon.settings import Settings
from theon.store import urls
from theon.store.embedded import OWNER
from theon.store.engine import Store
from theon.store.scope import Scope
from theon.store.secrets import make_secret

AWKWARD = "pass word@/:%"  # a password that a URL must escape
_numbers = itertools.count()


@dataclass
class Operator:
    """A database of an operator's own on the test server, and the superuser's login."""

    superuser: URL
    owner: URL

    def run(self, statement: str) -> None:
        """Run a statement as the superuser, in the operator's database."""
        with urls.connect(self.superuser) as connection:
            connection.execute(statement)

    def app_login(self) -> URL:
        """A login without rights, made by the operator."""
        name, password = f"{self.owner.database} app", secrets.token_hex()
        self.run(f"CREATE ROLE \"{name}\" LOGIN PASSWORD '{password}'")
        return self.owner.set(username=name, password=password)

    def settings(self, home: Path, app: URL | None = None) -> Settings:
        """Settings that point Theon to this database."""
        return Settings(
            home=home,
            postgres_url=self.owner.render_as_string(hide_password=False),
            postgres_app_url=app.render_as_string(hide_password=False) if app else None,
        )


@pytest.fixture
def operator(shared_store: Store, store_settings: Settings) -> Iterator[Operator]:
    """An empty database whose owner may make roles and is no superuser."""
    name = f"school {next(_numbers)} 50%"  # as an operator may choose
    password = make_secret(store_settings.home_dir, "postgres-superuser")
    known = shared_store._owner.url
    root = known.set(username="postgres", password=password, database="postgres")
    owner = known.set(username=f"{name} owner", password=AWKWARD, database=name)
    with urls.connect(root) as connection:
        connection.execute(f"CREATE ROLE \"{name} owner\" LOGIN CREATEROLE PASSWORD '{AWKWARD}'")
        connection.execute(f'CREATE DATABASE "{name}" OWNER "{name} owner"')
    yield Operator(root.set(database=name), owner)
    with urls.connect(root) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        connection.execute(f'DROP ROLE IF EXISTS "theon_app_{name}"')
        connection.execute(f'DROP ROLE IF EXISTS "{name} app"')
        connection.execute(f'DROP ROLE "{name} owner"')


def slugs(store: Store) -> list[str]:
    return [campus.slug for campus in list_campuses(store, Scope.district())]


def test_an_operators_postgresql_serves_as_well(operator: Operator, tmp_path: Path) -> None:
    """Nothing embedded is started; opened again, it holds what it held."""
    with Store.open(operator.settings(tmp_path)) as store:
        add_campus(store, "lincoln", "Europe/London")
    with Store.open(operator.settings(tmp_path)) as store:
        assert slugs(store) == ["district", "lincoln"]
        with store.transaction(Scope("lincoln")) as conn:
            user = conn.execute(text("SELECT current_user")).scalar_one()
            assert user == f"theon_app_{operator.owner.database}"
            assert conn.execute(text("SELECT count(*) FROM theon.campuses")).scalar_one() == 1
    assert not (tmp_path / "postgres").exists()


def test_another_home_is_not_let_in_and_takes_nothing_away(
    operator: Operator, tmp_path: Path
) -> None:
    """It does not know the role's password; it says so instead of changing it for all."""
    with Store.open(operator.settings(tmp_path / "a")) as store:
        with pytest.raises(ConflictError, match="password"):
            Store.open(operator.settings(tmp_path / "b"))
        store._app.dispose()  # the next use logs in anew
        assert slugs(store) == ["district"]


def test_an_owner_without_createrole_brings_the_applications_login(
    operator: Operator, tmp_path: Path
) -> None:
    """Without POSTGRES_APP_URL that is said; with it, no role is made and scopes hold."""
    operator.run(f'ALTER ROLE "{operator.owner.username}" NOCREATEROLE')
    with pytest.raises(UnavailableError, match="POSTGRES_APP_URL"):
        Store.open(operator.settings(tmp_path))
    app = operator.app_login()
    with Store.open(operator.settings(tmp_path, app)) as store:
        add_campus(store, "lincoln", "Europe/London")
        with store.transaction(Scope("nowhere")) as conn:
            assert conn.execute(text("SELECT current_user")).scalar_one() == app.username
            assert conn.execute(text("SELECT count(*) FROM theon.campuses")).scalar_one() == 0


def test_another_application_role_is_given_what_it_needs(
    operator: Operator, tmp_path: Path
) -> None:
    """A login that comes after the tables were made may use them all."""
    with Store.open(operator.settings(tmp_path)) as store:
        add_campus(store, "lincoln", "Europe/London")
    app = operator.app_login()
    with Store.open(operator.settings(tmp_path, app)) as store:
        add_campus(store, "oak", "UTC", parent="lincoln")
        with store.transaction(Scope("lincoln")) as conn:
            conn.execute(text("INSERT INTO theon.people (campus_id, user_id) VALUES (2, 'u')"))
            assert conn.execute(text("SELECT count(*) FROM theon.campuses")).scalar_one() == 2


@pytest.mark.parametrize(
    ("right", "fault"),
    [
        ("ALTER ROLE {app} SUPERUSER", "superuser"),
        ("ALTER ROLE {app} BYPASSRLS", "bypass"),
        ("GRANT {owner} TO {app}", "owner"),
    ],
)
def test_an_application_role_that_could_see_all_is_refused(
    operator: Operator, tmp_path: Path, right: str, fault: str
) -> None:
    """A superuser, a role that bypasses the policies, or a member of the owner."""
    app = operator.app_login()
    operator.run(right.format(app=f'"{app.username}"', owner=f'"{operator.owner.username}"'))
    with pytest.raises(InputError, match=fault):
        Store.open(operator.settings(tmp_path, app))


def test_the_owner_as_application_role_is_refused(operator: Operator, tmp_path: Path) -> None:
    """One login for both would own the tables it is to be kept from."""
    with pytest.raises(InputError, match="owner"):
        Store.open(operator.settings(tmp_path, operator.owner))


def test_an_owner_that_may_not_make_schemas_is_told_what_to_ask_for(
    operator: Operator, tmp_path: Path
) -> None:
    """The message carries the statement that mends it."""
    operator.run(f'ALTER DATABASE "{operator.owner.database}" OWNER TO postgres')
    with pytest.raises(UnavailableError, match="GRANT CREATE ON DATABASE"):
        Store.open(operator.settings(tmp_path))


def test_stores_opened_at_once_on_an_empty_database_agree(
    operator: Operator, tmp_path: Path
) -> None:
    """Migrations run once, whoever comes first."""
    results: list[object] = []

    def visit() -> None:
        try:
            with Store.open(operator.settings(tmp_path)) as store:
                results.append(slugs(store))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert results == [["district"]] * 4


@pytest.mark.parametrize(
    "place", ["127.0.0.1:1", "no-such-host.invalid:5432"], ids=["closed-port", "unknown-host"]
)
def test_a_server_that_does_not_answer_is_named(tmp_path: Path, place: str) -> None:
    """The message names host and database and what to check; never the password."""
    settings = Settings(
        home=tmp_path, postgres_url=f"postgresql://lms:geheim@{place}/school", postgres_app_url=None
    )
    with pytest.raises(UnavailableError) as caught:
        Store.open(settings)
    assert place in caught.value.message
    assert "POSTGRES_URL" in caught.value.next_step
    assert "geheim" not in caught.value.message


def test_a_wrong_password_is_said_without_it(operator: Operator, tmp_path: Path) -> None:
    """The server's own words, with the user's name and without the password."""
    wrong = operator.owner.set(password=f"geheim-{AWKWARD}")
    settings = Settings(
        home=tmp_path,
        postgres_url=wrong.render_as_string(hide_password=False),
        postgres_app_url=None,
    )
    with pytest.raises(UnavailableError, match="password authentication failed") as caught:
        Store.open(settings)
    assert "geheim" not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:geheim@host/db",
        "geheim",
        "postgresql://u:geheim@host",
        "postgresql://host/db",
        "postgresql://u:geheim@host:port/db",
    ],
)
def test_what_is_no_postgresql_url_is_refused(tmp_path: Path, url: str) -> None:
    """The message names the setting and the form, and repeats no password."""
    with pytest.raises(InputError, match="POSTGRES_URL") as caught:
        Store.open(Settings(home=tmp_path, postgres_url=url, postgres_app_url=None))
    assert "postgresql://user:password@host:5432/database" in caught.value.message
    assert "geheim" not in caught.value.message


def test_a_database_of_a_newer_theon_is_left_alone(operator: Operator, tmp_path: Path) -> None:
    """It is said which step is unknown, and nothing is changed."""
    with Store.open(operator.settings(tmp_path)) as store, store.owner_transaction() as conn:
        newest = conn.execute(text("SELECT version_num FROM theon.schema_version")).scalar_one()
    operator.run("UPDATE theon.schema_version SET version_num = '9999'")
    with pytest.raises(ConflictError, match=r"newer Theon.*9999"):
        Store.open(operator.settings(tmp_path))
    operator.run(f"UPDATE theon.schema_version SET version_num = '{newest}'")
    with Store.open(operator.settings(tmp_path)) as store:
        assert slugs(store) == ["district"]


def test_a_transaction_that_raises_keeps_nothing(store: Store) -> None:
    """All of a block or none of it."""
    insert = text("INSERT INTO theon.people (campus_id, user_id) VALUES (1, 'u')")

    def work() -> None:
        with store.transaction(Scope.district()) as conn:
            conn.execute(insert)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        work()
    with store.transaction(Scope.district()) as conn:
        assert conn.execute(text("SELECT count(*) FROM theon.people")).scalar_one() == 0


def test_the_owner_of_the_embedded_database_is_no_superuser(store: Store) -> None:
    """The same rights as an operator's owner, so both are tested by the same tests."""
    with store.owner_transaction() as conn:
        row = conn.execute(
            text(
                "SELECT current_user, rolsuper, rolbypassrls FROM pg_roles"
                " WHERE rolname = current_user"
            )
        ).one()
    assert tuple(row) == (OWNER, False, False)


def test_importing_the_store_starts_nothing(tmp_path: Path) -> None:
    """Resources are opened by `Store.open` alone: no folder, no process, no warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import theon.store.engine"],
        env=os.environ | {"THEON_HOME": str(tmp_path / "home")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "home").exists()


def test_who_listens_goes_on_when_a_connection_ends_at_any_moment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that ends before it listens; what was told meanwhile is to be looked for."""
    begun = store._begun

    def ended_at_once(*given: Any) -> Connection:
        monkeypatch.undo()
        conn = begun(*given)
        pid = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with store.transaction(Scope.district()) as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        return conn

    monkeypatch.setattr(store, "_begun", ended_at_once)
    heard = store.listen("of_this_test", timeout_s=lambda: 30.0)
    assert next(heard) is None
    assert next(heard) is None  # it listens now
    with store.transaction(Scope.district()) as conn:
        conn.exec_driver_sql("SELECT pg_notify('of_this_test', 'news')")
    assert next(heard) == "news"
    heard.close()
