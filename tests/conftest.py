"""Fixtures that several rooms use: a real PostgreSQL and a clean store for each test."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from hypothesis import settings as hypothesis_settings
from pydantic import AliasChoices
from sqlalchemy import text

from tests.skipping import NO_DATA, pytest_runtest_makereport, pytest_terminal_summary
from theon.access import passwords
from theon.settings import Settings
from theon.store.engine import Store

__all__ = ["pytest_runtest_makereport", "pytest_terminal_summary"]  # pytest finds them here

_OWN_FOLDER = pytest.StashKey[Path]()

# Tests may lose their data, so they need not wait for the disk.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
ONE_HOUR_MARGIN_S = 60.0
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

# An example that takes long says that the machine is busy, not that anything is wrong.
hypothesis_settings.register_profile("theon", hypothesis_settings.default, deadline=None)
hypothesis_settings.load_profile("theon")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give this run a folder for temporary files that no other run of pytest touches.

    The usual one, `pytest-of-<user>`, is closed to all other users by every pytest that
    starts; for root, PostgreSQL is another user, and loses its data in the middle of a test.
    """
    if config.option.basetemp is None:
        config.option.basetemp = tempfile.mkdtemp(prefix="theon-tests-")
        config.stash[_OWN_FOLDER] = Path(config.option.basetemp)
    _forget_the_environment()
    # Nobody guesses at a test's passwords; what stands in production takes 50 ms for each.
    passwords.HASHER = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


def _forget_the_environment() -> None:
    """Take away what is set on somebody's machine: a test says itself what it is to run with."""
    for field in Settings.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            for name in field.validation_alias.choices:
                os.environ.pop(str(name), None)
    for name in PROXIES:
        os.environ.pop(name, None)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove that folder, unless a test failed whose files somebody may want to see."""
    folder = session.config.stash.get(_OWN_FOLDER, None)
    if folder is not None and exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def store_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of the store shared by the tests of this worker; its own THEON_HOME."""
    return Settings(
        home=tmp_path_factory.mktemp("store") / "home",
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
        # Only tables that hold something: to empty all of them takes fifteen times as long, and to
        # truncate the campuses means all.
        used = conn.execute(
            text(
                "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class"
                " WHERE relnamespace = 'theon'::regnamespace AND relkind = 'r'"
                " AND relname NOT IN ('schema_version', 'campuses') AND pg_relation_size(oid) > 0"
            )
        ).scalar_one()
        if used is not None:
            conn.exec_driver_sql(f"TRUNCATE {used} CASCADE")
        conn.exec_driver_sql("ALTER TABLE theon.campuses NO FORCE ROW LEVEL SECURITY")
        conn.exec_driver_sql("DELETE FROM theon.campuses")
        conn.exec_driver_sql("ALTER TABLE theon.campuses FORCE ROW LEVEL SECURITY")
        advanced = conn.execute(
            text(
                "SELECT format('%I.%I', schemaname, sequencename) FROM pg_sequences"
                " WHERE schemaname = 'theon' AND last_value IS NOT NULL"
            )
        ).scalars()
        for sequence in advanced.all():
            conn.exec_driver_sql(f"ALTER SEQUENCE {sequence} RESTART")
        conn.exec_driver_sql(
            "INSERT INTO theon.campuses (slug, name, timezone)"
            " VALUES ('district', 'District', 'UTC')"
        )
    return shared_store


@pytest.fixture
def in_one_hour() -> None:
    """Begin where the hour, and so the day and the week too, does not end for a minute.

    For tests of what is counted by the hour of the database's clock, or is of today.
    """
    left_s = 3600.0 - time.time() % 3600.0
    if left_s < ONE_HOUR_MARGIN_S:
        time.sleep(left_s + 0.1)


@pytest.fixture(scope="session")
def moodle_data() -> Path:
    """The folder of the real Moodle site beside the project; skips where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "moodle"
    if not folder.is_dir():
        pytest.skip(f"{NO_DATA} ({folder})")
    return folder
