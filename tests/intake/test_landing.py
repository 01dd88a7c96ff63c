"""Landing: what was accepted is in the lake once, whatever is killed in between."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from arriving import arrival
from sqlalchemy import text

from theon.intake import landing
from theon.intake.door import accept
from theon.intake.landing import Landed, campuses_to_land, land
from theon.lake.engine import open_scratch, sql_list
from theon.lake.table import EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.export import published_rows
from theon.metrics.refresh import refresh
from theon.roster.campuses import Campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

NOW = int(time.time()) - 7200


@pytest.fixture
def campus(store: Store, lincoln: str) -> Campus:
    return get_campus(store, lincoln)


def send(store: Store, campus: Campus, ids: list[str], at: int = NOW) -> None:
    with store.transaction(Scope(campus.slug)) as conn:
        accept(conn, campus, "http:test", arrival([{"id": i, "at": at} for i in ids]))


def lake_ids(lake: EventLake) -> list[str]:
    files = [file.path for file in lake.files()]
    if not files:
        return []
    found = open_scratch().sql(f"SELECT event_id FROM read_parquet({sql_list(files)})").fetchall()
    return sorted(event_id for (event_id,) in found)


def test_accepted_events_land_and_the_journal_is_empty(
    store: Store, lake: EventLake, settings: Settings, campus: Campus
) -> None:
    send(store, campus, ["a", "b"])
    send(store, campus, ["c"])
    with store.transaction(Scope.district()) as conn:
        assert campuses_to_land(conn) == ["lincoln"]
    assert land(store, lake, settings, campus) == Landed(2, 3, 0, 1)
    assert land(store, lake, settings, campus) is None
    assert lake_ids(lake) == ["a", "b", "c"]
    with store.transaction(Scope.district()) as conn:
        assert campuses_to_land(conn) == []


def test_a_landing_killed_between_the_two_commits_is_done_once(
    store: Store, lake: EventLake, settings: Settings, campus: Campus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The lake has committed, PostgreSQL has not; meanwhile more was accepted."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    send(store, campus, ["a", "b"])
    with monkeypatch.context() as patch:
        patch.setattr(landing, "clear_journal", killed)
        with pytest.raises(KeyboardInterrupt):
            land(store, lake, settings, campus)
    assert lake_ids(lake) == ["a", "b"]
    send(store, campus, ["c"])
    again = land(store, lake, settings, campus)
    assert again is not None
    assert (again.entries, again.new, again.known) == (2, 1, 2)
    assert lake_ids(lake) == ["a", "b", "c"]
    send(store, campus, ["d"])
    assert land(store, lake, settings, campus) is not None
    assert lake_ids(lake) == ["a", "b", "c", "d"]


def test_a_retraction_of_a_landing_that_was_killed_is_made_once(
    store: Store, lake: EventLake, settings: Settings, campus: Campus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One of an event that landed before, one of an event that lands now, one that never comes."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    send(store, campus, ["xapi:a"])
    land(store, lake, settings, campus)
    send(store, campus, ["xapi:b", "other:a"])
    voided = {"event_name": "StatementVoided", "source": "xapi", "at": NOW + 9}
    with store.transaction(Scope(campus.slug)) as conn:
        rows = [{"id": f"v{i}", "object_id": i, **voided} for i in ("A", "b", "c")]
        accept(conn, campus, "xapi:test", arrival(rows))
    with monkeypatch.context() as patch:
        patch.setattr(landing, "clear_journal", killed)
        with pytest.raises(KeyboardInterrupt):
            land(store, lake, settings, campus)
    assert land(store, lake, settings, campus) is not None
    made = [i for i in lake_ids(lake) if i.startswith("retraction:")]
    assert made == ["retraction:xapi:a", "retraction:xapi:b"]
    with store.transaction(Scope.district()) as conn:
        assert campuses_to_land(conn) == []


def test_a_landing_that_fails_before_the_lake_loses_nothing(
    store: Store, lake: EventLake, settings: Settings, campus: Campus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    send(store, campus, ["a"])
    with monkeypatch.context() as patch:
        patch.setattr(EventLake, "land", _full_disk)
        with pytest.raises(OSError, match="disk"):
            land(store, lake, settings, campus)
    assert lake_ids(lake) == []
    assert land(store, lake, settings, campus) == Landed(1, 1, 0, 1)


def _full_disk(*_: object, **__: object) -> None:
    raise OSError("the disk is full")


def test_what_a_file_brought_does_not_land_again(
    store: Store, lake: EventLake, settings: Settings, campus: Campus, tmp_path: Path
) -> None:
    """The same event by a file and over HTTP, in either order."""
    import pyarrow.parquet as pq

    def by_file(ids: list[str]) -> int:
        rows = arrival([{"id": i, "at": NOW} for i in ids]).events.drop_columns(["ordinal"])
        pq.write_table(rows, tmp_path / "staged.parquet")
        return lake.append(tmp_path / "staged.parquet", campus.slug).new

    assert by_file(["a"]) == 1
    send(store, campus, ["a", "b"])
    assert land(store, lake, settings, campus) == Landed(1, 1, 1, 2)
    assert by_file(["b", "c"]) == 1
    send(store, campus, ["d"])
    assert by_file(["d"]) == 1
    assert land(store, lake, settings, campus) == Landed(1, 0, 1, 4)
    assert lake_ids(lake) == ["a", "b", "c", "d"]


def test_an_event_whose_id_was_forgotten_is_found_in_the_lake(
    store: Store, lake: EventLake, settings: Settings, campus: Campus
) -> None:
    old = int((datetime.now(UTC) - timedelta(days=60)).timestamp())
    send(store, campus, ["a"], at=old)
    land(store, lake, settings, campus)
    with store.transaction(Scope.district()) as conn:
        conn.execute(text("DELETE FROM theon.event_ids"))
    send(store, campus, ["a", "b"], at=old)
    again = land(store, lake, settings, campus)
    assert again is not None
    assert (again.new, again.known) == (1, 1)
    assert lake_ids(lake) == ["a", "b"]


def test_recent_events_are_not_looked_for_in_what_landed(
    store: Store, lake: EventLake, settings: Settings, campus: Campus
) -> None:
    """Their ids are in the register; so a landing costs the same however much has landed."""
    send(store, campus, ["a"])
    land(store, lake, settings, campus)
    for file in lake.files():
        Path(file.path).write_bytes(b"not to be read")
    send(store, campus, ["b"])
    assert land(store, lake, settings, campus) == Landed(1, 1, 0, 2)


def test_metrics_of_landed_events_are_those_of_a_rebuild(
    store: Store, lake: EventLake, settings: Settings, campus: Campus
) -> None:
    for minute in range(5):
        send(store, campus, [f"{minute}"], at=NOW + 600 * minute)
        land(store, lake, settings, campus)
        refresh(store, lake, settings)
    metric = load_catalog()["user_day"]

    def rows() -> list[dict[str, object]]:
        return published_rows(store, metric, Scope(campus.slug)).to_pylist()

    found = rows()
    assert sum(int(str(row["total_actions"])) for row in found) == 5
    refresh(store, lake, settings, rebuild=True)
    assert rows() == found
