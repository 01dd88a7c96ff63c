"""Fixtures that several rooms use: a real PostgreSQL and a clean store for each test."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from theon.settings import Settings
from theon.store.engine import Store

# Tests may lose their data, so they need not wait for the disk.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@pytest.fixture(scope="session")
def store_settings() -> Iterator[Settings]:
    """Settings of the store shared by the tests of this worker; its own THEON_HOME.

    Not below pytest's folder: every pytest that starts closes that one to all other users
    again, and for root the server is another user.
    """
    with tempfile.TemporaryDirectory(prefix="theon-") as folder:
        yield Settings(
            home=Path(folder) / "home",
            postgres_url=None,
            postgres_app_url=None,
            session_limit_s=1800,
        )


@pytest.fixture(scope="session")
def shared_store(store_settings: Settings) -> Iterator[Store]:
    """One embedded PostgreSQL per worker; use `store`, which is clean."""
    with Store.open(store_settings, server=FAST) as store:
        yield store


@pytest.fixture
def store(shared_store: Store) -> Store:
    """A store as right after the first migration: the district, no metric tables, no rows."""
    with shared_store.owner_transaction() as conn:
        generated = conn.execute(
            text(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                " WHERE schemaname = 'metrics'"
            )
        ).scalars()
        for table in generated.all():
            conn.exec_driver_sql(f"DROP TABLE {table} CASCADE")
        tables = conn.execute(
            text(
                "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables"
                " WHERE schemaname = 'theon' AND tablename <> 'schema_version'"
            )
        ).scalar_one()
        conn.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
        conn.exec_driver_sql(
            "INSERT INTO theon.campuses (slug, name, timezone)"
            " VALUES ('district', 'District', 'UTC')"
        )
    return shared_store


@pytest.fixture(scope="session")
def moodle_data() -> Path:
    """The folder of the real Moodle site beside the project; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "moodle"
    if not folder.is_dir():
        pytest.skip(f"the real Moodle site is not beside the project ({folder})")
    return folder
