"""The lake holds each event once, whoever writes and however often."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from theon.errors import InputError
from theon.events.schema import EVENT_SCHEMA
from theon.lake.engine import open_engine, sql_list
from theon.lake.resolved import events_sql, hour_ranges
from theon.lake.table import EventLake
from theon.settings import Settings

STAGED = pa.schema([f for f in EVENT_SCHEMA if f.name != "campus"])
AT = int(datetime(2026, 9, 30, 23, 30, tzinfo=UTC).timestamp())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", postgres_url=None)


def stage(path: Path, ids: list[str], *, at: int = AT, **columns: object) -> Path:
    rows = [
        {
            **dict.fromkeys(STAGED.names),
            "event_id": n,
            "source": "moodle-log",
            "occurred_at": datetime.fromtimestamp(at + 60 * k, UTC),
            "event_name": "\\core\\event\\course_viewed",
            "user_id": "5",
            **columns,
        }
        for k, n in enumerate(ids)
    ]
    pq.write_table(pa.Table.from_pylist(rows, STAGED), path)
    return path


def ids_in(lake: EventLake, settings: Settings) -> list[str]:
    with open_engine(settings) as engine:
        paths = [f.path for f in lake.files()]
        found = engine.sql(f"SELECT event_id FROM read_parquet({sql_list(paths)}) ORDER BY 1")
        return [row[0] for row in found.fetchall()]


def test_an_event_is_appended_once(settings: Settings, tmp_path: Path) -> None:
    """Again, overlapping, and twice in one file: the id is there once."""
    lake = EventLake(settings)
    first = lake.append(stage(tmp_path / "a", ["1", "2"]), "north")
    assert (first.new, first.known) == (2, 0)
    again = lake.append(stage(tmp_path / "b", ["1", "2", "3", "3"]), "north")
    assert (again.new, again.known) == (1, 3)
    nothing = lake.append(tmp_path / "b", "north")
    assert (nothing.new, nothing.known, nothing.version) == (0, 4, again.version)
    assert ids_in(lake, settings) == ["1", "2", "3"]


def test_campuses_do_not_share_ids(settings: Settings, tmp_path: Path) -> None:
    """Two schools' Moodles both begin at 1."""
    lake = EventLake(settings)
    lake.append(stage(tmp_path / "a", ["1"]), "north")
    assert lake.append(tmp_path / "a", "south").new == 1
    assert {f.campus for f in lake.files()} == {"north", "south"}
    assert [f.campus for f in lake.files("south")] == ["south"]


def test_writers_at_the_same_time_cannot_both_append_an_event(
    settings: Settings, tmp_path: Path
) -> None:
    """Four writers race with overlapping batches: every id once, every new one counted once."""
    lake = EventLake(settings)
    lake.version()
    results = []
    batches = [stage(tmp_path / f"w{n}", [str(i) for i in range(n, n + 8)]) for n in range(4)]

    def write(path: Path) -> None:
        results.append(EventLake(settings).append(path, "north"))

    threads = [threading.Thread(target=write, args=(b,)) for b in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids_in(lake, settings) == sorted(map(str, range(11)))
    assert sum(r.new for r in results) == 11


def test_an_interruption_right_after_the_commit_loses_no_file(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal that arrives when the commit is already in the log must not undo half of it."""
    lake = EventLake(settings)
    commit = DeltaTable.create_write_transaction

    def commit_then_interrupt(*arguments: object, **options: object) -> None:
        commit(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeltaTable, "create_write_transaction", commit_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            lake.append(stage(tmp_path / "a", ["1", "2"]), "north")
    again = lake.append(stage(tmp_path / "b", ["1", "2", "3"]), "north")
    assert (again.new, again.known) == (1, 2)
    assert ids_in(lake, settings) == ["1", "2", "3"]


def test_changes_name_the_files_since_a_version(settings: Settings, tmp_path: Path) -> None:
    """A reader that remembers a version sees what came after, and nothing else."""
    lake = EventLake(settings)
    lake.append(stage(tmp_path / "a", ["1"]), "north")
    _, files, version = lake.changes("north", -1)
    assert lake.changes("north", version) == ([], files, version)
    lake.append(stage(tmp_path / "b", ["9"]), "south")
    lake.append(stage(tmp_path / "c", ["2"]), "north")
    changed, _, now = lake.changes("north", version)
    assert [f.rows for f in changed] == [1]
    assert now == version + 2


def test_any_delta_reader_understands_the_table(settings: Settings, tmp_path: Path) -> None:
    """The table is plain Delta: another engine reads the same rows from it."""
    lake = EventLake(settings)
    lake.append(stage(tmp_path / "a", [str(n) for n in range(60)]), "north")  # into October
    table = DeltaTable(str(lake.path)).to_pyarrow_table()
    assert set(table["campus"].to_pylist()) == {"north"}
    assert table.schema.names == EVENT_SCHEMA.names
    assert table.num_rows == 60


def test_a_staged_file_without_a_column_is_refused(settings: Settings, tmp_path: Path) -> None:
    """A connector that forgets a column is told which, and nothing is appended."""
    path = stage(tmp_path / "a", ["1"])
    pq.write_table(pq.read_table(path).drop_columns(["user_id"]), path)
    with pytest.raises(InputError, match="user_id"):
        EventLake(settings).append(path, "north")


def resolved(settings: Settings, lake: EventLake) -> list[tuple[str, str | None]]:
    hours = list(range(AT // 3600 - 1, AT // 3600 + 3))
    with open_engine(settings) as engine:
        query = events_sql(engine, lake.files("north"), hours, ["event_id", "course_id"])
        return sorted(engine.sql(query).fetchall())


def test_a_log_row_takes_the_place_of_its_report_row(settings: Settings, tmp_path: Path) -> None:
    """Of one log row and two report rows that agree, two events remain: the log's and one more."""
    lake = EventLake(settings)
    report = {"source": "moodle-report", "course_id": None}
    lake.append(stage(tmp_path / "r1", ["report:x:1"], **report), "north")
    lake.append(stage(tmp_path / "r2", ["report:x:2"], **report), "north")
    assert len(resolved(settings, lake)) == 2
    lake.append(stage(tmp_path / "l", ["moodle:7"], course_id="6"), "north")
    assert resolved(settings, lake) == [("moodle:7", "6"), ("report:x:2", None)]


def test_a_report_row_that_knows_its_course_stays(settings: Settings, tmp_path: Path) -> None:
    """The same row from the site's report and from the course's: the latter, in any order."""
    for order in (["report:x:1", "report:x:1@6"], ["report:x:1@6", "report:x:1"]):
        lake = EventLake(settings.model_copy(update={"home": tmp_path / order[0][-3:]}))
        for event in order:
            course = "6" if "@" in event else None
            staged = stage(tmp_path / "s", [event], source="moodle-report", course_id=course)
            lake.append(staged, "north")
        assert resolved(settings, lake) == [("report:x:1@6", "6")]


def test_hour_ranges_cover_all_hours_with_few_ranges() -> None:
    """Neighbours join; beyond the limit the nearest ranges do; no hour is lost."""
    assert hour_ranges([5, 3, 4, 9]) == [(3, 6), (9, 10)]
    assert hour_ranges([]) == []
    many = [*range(0, 1000, 7), 5000]
    ranges = hour_ranges(many, limit=10)
    assert len(ranges) <= 10
    assert all(any(low <= h < high for low, high in ranges) for h in many)
    assert ranges[-1] == (5000, 5001)
