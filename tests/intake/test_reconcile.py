"""Reconciling finds every log row that the lake lacks, and brings it once."""

import gzip
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from moodle_logs import LOG_COLUMNS, Mariadb, lake_rows, log_row, write_log
from psycopg import sql
from sqlalchemy import URL

from theon.errors import InputError
from theon.intake import reconcile as reconciling
from theon.intake.gap_search import look_for_gaps
from theon.intake.gaps import KeptGap, list_gaps
from theon.intake.moodle_ids import Run
from theon.intake.pipeline import compare_file, ingest
from theon.intake.reconcile import Reconciled, ranges_of, reconcile
from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]
Check = Callable[..., Reconciled]
NUMBERS = itertools.count()
LOG = "mdl_logstore_standard_log"


@pytest.fixture(scope="module")
def small_site(superuser: URL) -> Iterator[URL]:
    """A Moodle database with a log and nothing else in it."""
    name = "moodle_small"
    plain = superuser.set(drivername="postgresql")
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}")
        admin.execute(f"CREATE DATABASE {name}")
        site = plain.set(database=name)
        with psycopg.connect(site.render_as_string(hide_password=False)) as conn:
            columns = ", ".join(f"{name} text" for name in LOG_COLUMNS if name != "id")
            conn.execute(f"CREATE TABLE {LOG} (id bigint PRIMARY KEY, {columns})")
            conn.execute("CREATE TABLE mdl_config (name text, value text)")
        yield site
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill(site: URL, ids: set[int], bad: set[int] = frozenset()) -> str:  # type: ignore[assignment]
    """Give the site just these log rows; those in `bad` have no time. Returns its URL."""
    url = site.render_as_string(hide_password=False)
    with psycopg.connect(url) as conn:
        conn.execute(f"TRUNCATE {LOG}")
        names = sql.SQL(", ").join(map(sql.Identifier, LOG_COLUMNS))
        copied = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(LOG), names)
        with conn.cursor() as cursor, cursor.copy(copied) as copy:
            for number in sorted(ids):
                time = "soon" if number in bad else str(1_789_286_400 + number)
                row = log_row(number, timecreated=time)
                copy.write_row([row[name] for name in LOG_COLUMNS])
    return url


def put(
    folder: Path, store: Store, lake: EventLake, settings: Settings, campus: str, ids: set[int]
) -> None:
    """Bring log rows into the lake as a file."""
    rows = [log_row(n, timecreated=str(1_789_286_400 + n)) for n in sorted(ids)]
    file = write_log(folder / f"log-{next(NUMBERS)}.csv", rows)
    ingest(
        store, lake, settings, location=str(file), format="moodle-logstore", campus=campus
    )  # fmt: skip


def own_ids(lake: EventLake, campus: str) -> list[int]:
    files = [f.path for f in lake.files(campus)]
    import duckdb

    found = duckdb.sql(f"SELECT event_id FROM read_parquet({files}, hive_partitioning = false)")
    return sorted(int(event.removeprefix("moodle:")) for (event,) in found.fetchall())


def gaps(store: Store, state: str | None = "open", scope: str = "district") -> list[KeptGap]:
    with store.transaction(Scope(scope)) as conn:
        return list_gaps(conn, state=state)


@how(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(theirs=st.sets(st.integers(1, 60)), own=st.sets(st.integers(1, 60), min_size=1))
def test_what_is_missing_is_what_the_source_has_and_the_lake_has_not(
    theirs: set[int], own: set[int], small_site: URL, store: Store, lake: EventLake,
    settings: Settings, tmp_path: Path,
) -> None:  # fmt: skip
    campus = f"s{next(NUMBERS)}"
    add_campus(store, campus, "UTC")
    put(tmp_path, store, lake, settings, campus, own)
    url = fill(small_site, theirs)
    upto = max(own)
    missing = {n for n in theirs - own if n <= upto}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconciling, "WIDTH_IDS", 10)
        patch.setattr(reconciling, "SUMMED_IDS", 20)
        patch.setattr(reconciling, "NEAR_IDS", 3)
        look_for_gaps(store, lake, settings, Scope(campus))
        dry = reconcile(store, lake, settings, location=url, campus=campus)
        assert own_ids(lake, campus) == sorted(own)
        done = reconcile(store, lake, settings, location=url, campus=campus, repair=True)
    found = dry.found
    assert (found.upto, found.missing) == (upto, len(missing))
    assert found.surplus == len(own - theirs)
    assert found.ahead == any(n > upto for n in theirs)
    held = [n for run in found.runs for n in theirs if run.first <= n <= run.last]
    assert sorted(held) == sorted(missing)  # a run holds missing rows only
    assert sum(run.missing for run in found.runs) == len(missing)
    assert (done.brought, done.unreadable) == (len(missing), 0)
    assert own_ids(lake, campus) == sorted(own | missing)
    assert gaps(store, scope=campus) == []
    assert look_for_gaps(store, lake, settings, Scope(campus)).noticed == 0


def test_runs_across_the_parts_that_are_compared_are_one(
    small_site: URL, store: Store, lake: EventLake, settings: Settings, lincoln: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(reconciling, "WIDTH_IDS", 10)
    put(tmp_path, store, lake, settings, lincoln, {1, 2, 3, 40, 49, 50})
    url = fill(small_site, set(range(1, 51)) - {30})
    found = reconcile(store, lake, settings, location=url, campus=lincoln).found
    assert [(run.first, run.last, run.missing) for run in found.runs] == [(4, 39, 35), (41, 48, 8)]
    first = found.runs[0]
    assert first.from_at is not None
    assert first.to_at is not None
    assert (first.to_at - first.from_at).total_seconds() == 37


def test_rows_that_cannot_be_read_stay_a_gap_that_says_so(
    small_site: URL, store: Store, lake: EventLake, settings: Settings, lincoln: str, tmp_path: Path
) -> None:
    put(tmp_path, store, lake, settings, lincoln, {1, 2, 9})
    url = fill(small_site, set(range(1, 10)), bad={4})
    done = reconcile(store, lake, settings, location=url, campus=lincoln, repair=True)
    assert (done.brought, done.unreadable) == (5, 1)
    [gap] = gaps(store)
    assert "1 log row" in gap.explanation
    assert "rejected" in gap.explanation


def test_a_gap_of_rows_that_moodle_deleted_is_explained(
    small_site: URL, store: Store, lake: EventLake, settings: Settings, lincoln: str, tmp_path: Path
) -> None:
    put(tmp_path, store, lake, settings, lincoln, {1, 2, 9})
    look_for_gaps(store, lake, settings, Scope.district())
    url = fill(small_site, {1, 2, 9, 10})
    done = reconcile(store, lake, settings, location=url, campus=lincoln)
    assert (done.explained, done.found.missing, done.found.ahead) == (1, 0, True)
    [gap] = gaps(store, None)
    assert (gap.state, gap.ended_by) == ("accepted", "reconcile")
    assert "no such rows either" in gap.explanation


def test_near_runs_are_read_together() -> None:
    runs = [Run(1, 5, 5), Run(900, 901, 2), Run(5_000, 5_000, 1)]
    assert ranges_of(runs) == [(1, 901), (5_000, 5_000)]


# -- the real site -------------------------------------------------------------------------

HOLES = [(1, 2_000), (2_500, 2_600), (3_000, 5_000)]
MISSING = 499 + 399


@pytest.fixture(params=["postgres", "mariadb"])
def real_site(request: pytest.FixtureRequest) -> str:
    if request.param == "postgres":
        url: URL = request.getfixturevalue("moodle_postgres")
        return url.render_as_string(hide_password=False)
    server: Mariadb = request.getfixturevalue("mariadb")
    return server.url()


@pytest.mark.real_data
def test_a_real_site_is_made_whole_and_the_second_time_nothing_is_missing(
    real_site: str, take: Take, store: Store, lake: EventLake, settings: Settings, lincoln: str
) -> None:
    take(real_site, "moodle-db", only=HOLES)
    assert lake_rows(lake, "SELECT count(*) FROM events") == [(5_000 - MISSING,)]

    def check(**options: bool) -> Reconciled:
        return reconcile(store, lake, settings, location=real_site, campus=lincoln, **options)

    found = check().found
    assert (found.upto, found.rows, found.missing, found.ahead) == (5_000, 5_000, MISSING, True)
    assert [(run.first, run.last) for run in found.runs] == [(2_001, 2_499), (2_601, 2_999)]
    assert [gap.missing for gap in gaps(store)] == [399, 499]
    done = check(repair=True)
    assert (done.brought, done.unreadable) == (MISSING, 0)
    assert {gap.state for gap in gaps(store, None)} == {"repaired"}
    assert check(repair=True).found.missing == 0
    take(real_site, "moodle-db")  # the cursor was left where it was
    log = "SELECT count(*) FROM events WHERE event_id SIMILAR TO 'moodle:[0-9]+'"
    assert lake_rows(lake, log) == [(5_798,)]
    last = check().found
    assert (last.upto, last.missing, last.ahead) == (5_798, 0, False)


@pytest.mark.real_data
def test_a_repair_that_was_cut_off_goes_on(
    real_site: str, take: Take, store: Store, lake: EventLake, settings: Settings, lincoln: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(reconciling, "NEAR_IDS", 1)
    take(real_site, "moodle-db", only=HOLES)
    append = EventLake.append
    appended: list[int] = []

    def append_once(self: EventLake, *given: object, **named: object) -> object:
        if appended:
            raise KeyboardInterrupt
        appended.append(1)
        return append(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(EventLake, "append", append_once)
    with pytest.raises(KeyboardInterrupt):
        reconcile(store, lake, settings, location=real_site, campus=lincoln, repair=True)
    monkeypatch.setattr(EventLake, "append", append)
    done = reconcile(store, lake, settings, location=real_site, campus=lincoln, repair=True)
    assert (done.found.missing, done.brought) == (399, 399)


# -- files ---------------------------------------------------------------------------------


def test_a_file_is_compared_without_changing_anything(
    store: Store, lake: EventLake, settings: Settings, lincoln: str, tmp_path: Path
) -> None:
    put(tmp_path, store, lake, settings, lincoln, {1, 2, 3})
    rows = [log_row(n, timecreated=str(1_789_286_400 + n)) for n in (1, 3, 4, 5, 5)]
    file = write_log(tmp_path / "more.csv", [*rows, log_row(6, timecreated="soon")])
    version = lake.version()
    found = compare_file(
        store, lake, settings, location=str(file), format="moodle-logstore", campus=lincoln
    )
    assert (found.read, found.known, found.missing, found.rejected) == (6, 3, 2, 1)
    assert lake.version() == version
    assert list((settings.home_dir / "tmp").glob("compare-*")) == []
    assert found.incomplete == ""
    packed = gzip.compress(file.read_bytes())
    file.write_bytes(packed[:-4])
    cut = compare_file(
        store, lake, settings, location=str(file), format="moodle-logstore", campus=lincoln
    )
    assert "is cut off or damaged" in cut.incomplete


def test_a_database_that_was_never_read_has_nothing_missing_and_all_ahead(
    small_site: URL, store: Store, lake: EventLake, settings: Settings, lincoln: str
) -> None:
    url = fill(small_site, {1, 2})
    found = reconcile(store, lake, settings, location=url, campus=lincoln, repair=True).found
    assert (found.upto, found.missing, found.ahead) == (0, 0, True)
    with pytest.raises(InputError):
        reconcile(store, lake, settings, location="sqlite:///x", campus=lincoln)
