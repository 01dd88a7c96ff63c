"""Reading Moodle's own database: the same events as its log file, read only, and resumable."""

import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import psycopg
import pymysql
import pytest
from moodle_logs import Mariadb, lake_rows
from sqlalchemy import URL, text

from theon.errors import InputError, UnavailableError
from theon.intake.moodle_database import stage_database
from theon.intake.moodle_logstore import stage_logstore
from theon.intake.moodle_sources import MysqlSource, PostgresSource, open_source
from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake
from theon.roster.campuses import get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]
LOG_ROWS = 5_798
ALL = LOG_ROWS + 530  # with the rows of outcomes

pytestmark = pytest.mark.real_data


@pytest.fixture
def moodle_url(moodle_postgres: URL) -> str:
    return moodle_postgres.render_as_string(hide_password=False)


def _differences(events: list[Path], log: Path) -> list[tuple[object, ...]]:
    """Events that are in one of the two and not, or not the same, in the other."""
    files = [str(f) for f in events]
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        return engine.execute(
            f"""
            (FROM read_parquet({files}) EXCEPT ALL FROM read_parquet('{log}'))
            UNION ALL
            (FROM read_parquet('{log}') EXCEPT ALL FROM read_parquet({files}))
            """
        ).fetchall()


def _stage_all(
    url: str, folder: Path, settings: Settings, store: Store, campus: str, chunk_rows: int
) -> list[Path]:
    kept = []
    chunks = stage_database(
        url, folder, settings, store, get_campus(store, campus), chunk_rows=chunk_rows
    )
    for number, staged in enumerate(chunks):
        kept.append(staged.path.rename(folder / f"chunk-{number}.parquet"))
    return kept


def test_postgres_gives_the_same_events_as_the_log_file(
    moodle_url: str,
    moodle_data: Path,
    tmp_path: Path,
    settings: Settings,
    store: Store,
    lincoln: str,
) -> None:
    """Row for row and column for column, with the ids that make the two roads one."""
    log = stage_logstore(moodle_data / "logstore_standard_log_43.csv.gz", tmp_path, settings)
    log_path = log.path.rename(tmp_path / "log.parquet")
    chunks = _stage_all(moodle_url, tmp_path, settings, store, lincoln, chunk_rows=1_000)
    assert len(chunks) == 6
    assert _differences(chunks, log_path) == []


@pytest.mark.service
def test_mariadb_gives_the_same_events_as_the_log_file(
    mariadb: Mariadb,
    moodle_data: Path,
    tmp_path: Path,
    settings: Settings,
    store: Store,
    lincoln: str,
) -> None:
    """The other database of Moodle tells the same, emoji, quotes and backslashes included."""
    log = stage_logstore(moodle_data / "logstore_standard_log_43.csv.gz", tmp_path, settings)
    log_path = log.path.rename(tmp_path / "log.parquet")
    chunks = _stage_all(mariadb.url(), tmp_path, settings, store, lincoln, chunk_rows=2_500)
    assert len(chunks) == 3
    assert _differences(chunks, log_path) == []


@pytest.mark.service
def test_mariadb_that_cuts_long_values_is_read_in_smaller_parts(
    mariadb: Mariadb,
    tmp_path: Path,
    settings: Settings,
    store: Store,
    lincoln: str,
) -> None:
    """A value above max_allowed_packet is cut by the server; no row may be lost by it."""
    with mariadb.connect() as root, root.cursor() as cursor:
        cursor.execute("SET GLOBAL max_allowed_packet = 16384")
        try:
            chunks = _stage_all(mariadb.url(), tmp_path, settings, store, lincoln, 10_000)
        finally:
            cursor.execute("SET GLOBAL max_allowed_packet = 16777216")
    with duckdb.connect() as engine:
        found = engine.execute(
            f"SELECT count(DISTINCT event_id) FROM read_parquet({[str(c) for c in chunks]})"
        ).fetchone()
    assert found == (LOG_ROWS,)


@pytest.mark.service
def test_mariadb_is_read_in_transactions_that_cannot_write(mariadb: Mariadb) -> None:
    """The server itself would refuse a write, even of a user who has the right to."""
    source = MysqlSource(mariadb.connect())
    with pytest.raises(pymysql.err.OperationalError, match="READ ONLY"), source._read_only():
        source._one_way("DELETE FROM mdl_logstore_standard_log")


def test_a_second_run_and_the_log_file_count_nothing_twice(
    take: Take, moodle_url: str, moodle_data: Path, lake: EventLake
) -> None:
    first = take(moodle_url, "moodle-db")
    again = take(moodle_url, "moodle-db")
    file = take(moodle_data / "logstore_standard_log_43.csv.gz", "moodle-logstore")
    assert (first.new, first.rejected, first.exit_status, first.notes) == (ALL, 0, 0, ())
    assert (again.new, again.known >= LOG_ROWS) == (0, True)  # it reads behind the cursor
    assert (file.new, file.known) == (0, LOG_ROWS)
    assert lake_rows(lake, "SELECT count(*), count(DISTINCT event_id) FROM events") == [(ALL, ALL)]


def test_courses_and_people_come_into_the_roster_without_names(
    take: Take, moodle_url: str, store: Store, lincoln: str
) -> None:
    take(moodle_url, "moodle-db")
    with store.transaction(Scope(lincoln)) as conn:
        courses = conn.execute(
            text("SELECT course_id, short_name, visible FROM theon.courses ORDER BY course_id")
        ).all()
        people = conn.execute(
            text("SELECT count(*), count(*) FILTER (WHERE deleted) FROM theon.people")
        ).one()
    assert ("6", "BIO101", True) in [tuple(row) for row in courses]
    assert "1" not in [row[0] for row in courses]  # the front page is no course
    assert people[0] > 130
    assert people[1] == 1


def test_only_what_is_new_is_read_again_beyond_the_window(
    moodle_url: str, tmp_path: Path, settings: Settings, store: Store, lincoln: str
) -> None:
    """The window behind the cursor catches ids that became visible late; the rest is left."""
    narrow = settings.model_copy(update={"moodle_reread_ids": 100})
    _stage_all(moodle_url, tmp_path, narrow, store, lincoln, chunk_rows=10_000)
    second = _stage_all(moodle_url, tmp_path, narrow, store, lincoln, chunk_rows=10_000)
    with duckdb.connect() as engine:
        found = engine.execute(
            f"SELECT count(*), min(event_id) FROM read_parquet('{second[0]}')"
        ).fetchone()
    assert found == (100, "moodle:5699")


def test_the_cursor_moves_only_past_chunks_that_are_in_the_lake(
    moodle_url: str, tmp_path: Path, settings: Settings, store: Store, lincoln: str
) -> None:
    """A crash between a chunk's append and the cursor reads that chunk again, and no other."""
    narrow = settings.model_copy(update={"moodle_reread_ids": 0})
    campus = get_campus(store, lincoln)
    chunks = stage_database(moodle_url, tmp_path, narrow, store, campus, chunk_rows=1_000)
    next(chunks)
    next(chunks)  # the first is in the lake, the second is not yet
    chunks.close()
    with store.transaction(Scope(lincoln)) as conn:
        assert conn.execute(text("SELECT last_id FROM theon.intake_cursors")).scalar_one() == 1_000


def test_a_database_that_goes_away_keeps_what_was_read_and_says_where_it_stopped(
    take: Take,
    moodle_postgres: URL,
    superuser: URL,
    moodle_url: str,
    store: Store,
    lincoln: str,
    lake: EventLake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is ended by the server after two chunks; the next run goes on."""
    copy = PostgresSource.copy
    copied: list[int] = []

    def copy_and_lose_the_third(self: object, table: str, *rest: object) -> None:
        if table.endswith("log"):
            copied.append(1)
            if len(copied) == 3:  # the next run copies more, undisturbed
                _end_connections(superuser, moodle_postgres)
        copy(self, table, *rest)

    monkeypatch.setattr(PostgresSource, "copy", copy_and_lose_the_third)
    monkeypatch.setattr(
        "theon.intake.pipeline.stage_database",
        lambda *a, **k: stage_database(*a, **k, chunk_rows=1_000),
    )
    with pytest.raises(UnavailableError, match="stopped after log id 2000") as caught:
        take(moodle_url, "moodle-db")
    assert "reads-only" not in caught.value.message
    assert lake_rows(lake, "SELECT count(*) FROM events") == [(2_000,)]
    with store.transaction(Scope(lincoln)) as conn:
        run = conn.execute(text("SELECT state, events_new, location FROM theon.intake_runs")).one()
    assert (run[0], run[1]) == ("failed", 2_000)
    assert "reads-only" not in run[2]
    again = take(moodle_url, "moodle-db")
    assert again.new == ALL - 2_000


def _end_connections(superuser: URL, site: URL) -> None:
    with psycopg.connect(superuser.render_as_string(hide_password=False)) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            [site.database],
        )


def test_another_moodle_site_is_refused_for_the_same_campus(
    take: Take, moodle_url: str, store: Store, lincoln: str
) -> None:
    """Log ids of two sites would be taken for one another."""
    take(moodle_url, "moodle-db")
    with store.transaction(Scope(lincoln)) as conn:
        conn.execute(text("UPDATE theon.intake_cursors SET site = 'another'"))
    with pytest.raises(InputError, match="another Moodle site"):
        take(moodle_url, "moodle-db")


def test_reading_changes_nothing_in_moodle(
    take: Take, moodle_postgres: URL, moodle_url: str, superuser: URL
) -> None:
    """PostgreSQL's own counters of rows written in that database stand still."""
    owner = superuser.set(database=moodle_postgres.database)

    def written() -> tuple[int, ...]:
        with psycopg.connect(owner.render_as_string(hide_password=False)) as conn:
            # Those who left count what they wrote as they go, and their clients do not wait for it.
            until_s = time.monotonic() + 60
            while conn.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone():
                assert time.monotonic() < until_s, "somebody stays in the database"
                conn.commit()
                time.sleep(0.05)
            conn.execute("SELECT pg_stat_force_next_flush()")
            row = conn.execute(
                "SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_del), count(*) "
                "FROM pg_stat_user_tables"
            ).fetchone()
        return tuple(int(value) for value in row or ())

    before = written()
    take(moodle_url, "moodle-db")
    assert written() == before
    assert before[0] > LOG_ROWS  # the counters do count


def test_a_user_with_rights_is_kept_from_writing_too(superuser: URL, moodle_postgres: URL) -> None:
    owner = superuser.set(database=moodle_postgres.database)
    url = owner.render_as_string(hide_password=False)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), open_source(url) as source:
        source._column("DELETE FROM mdl_logstore_standard_log RETURNING id", [])


def test_a_wrong_prefix_names_the_right_one(take: Take, moodle_url: str) -> None:
    with pytest.raises(InputError, match="'mdl_'"):
        take(moodle_url, "moodle-db", prefix="m_")


def test_a_database_that_is_not_there_is_named_without_its_password(take: Take) -> None:
    with pytest.raises(UnavailableError) as caught:
        take("postgresql://reader:secret-word@127.0.0.1:1/moodle", "moodle-db")
    assert "127.0.0.1:1" in caught.value.message
    assert "secret-word" not in caught.value.message


def test_a_database_of_another_kind_is_refused(take: Take) -> None:
    with pytest.raises(InputError, match="PostgreSQL or MySQL"):
        take("oracle://reader@host/moodle", "moodle-db")
