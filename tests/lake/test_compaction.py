"""Compaction moves events into fewer files, and nobody who reads the lake can tell."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.lake.test_table import AT, ids_in, stage
from theon.errors import ConflictError
from theon.lake import compaction
from theon.lake.compaction import RECENT, Compacted, clear_log, compact, sweep
from theon.lake.table import EventLake
from theon.settings import Settings

LONG_AGO = datetime.now(UTC) - timedelta(days=30)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", postgres_url=None, engine_threads=1)


@pytest.fixture
def lake(settings: Settings) -> EventLake:
    return EventLake(settings)


def land(
    lake: EventLake, folder: Path, turn: int, ids: list[str], at: int = AT, campus: str = "north"
) -> None:
    staged = stage(folder / f"staged-{campus}-{turn}", ids, at=at)
    lake.land(staged, campus, turn=turn, fresh_after=LONG_AGO)


def land_some(lake: EventLake, folder: Path, number: int, first: int = 1) -> list[str]:
    for turn in range(first, first + number):
        land(lake, folder, turn, [f"{turn}-a", f"{turn}-b"], AT + turn)
    return sorted(f"{turn}-{x}" for turn in range(1, first + number) for x in "ab")


def test_small_files_become_one_and_the_events_stay(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    ids = land_some(lake, tmp_path, 10)
    assert compact(lake, settings, "north") == Compacted(10, 1, 20)
    [file] = lake.files("north")
    assert ids_in(lake, settings) == ids
    assert Path(file.path).name.startswith("landed-")
    times = pq.read_table(file.path)["occurred_at"].to_pylist()
    assert times == sorted(times)
    assert (file.rows, file.first_at, file.last_at) == (20, times[0], times[-1])
    assert compact(lake, settings, "north") == Compacted()


def test_any_delta_reader_still_understands_the_table(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    ids = land_some(lake, tmp_path, 9)
    before = lake.version()
    compact(lake, settings, "north")
    for version in (before, None):
        table = DeltaTable(str(lake.path), version=version).to_pyarrow_table()
        assert sorted(table["event_id"].to_pylist()) == ids
        assert set(table["campus"].to_pylist()) == {"north"}


def test_a_reader_that_remembers_a_version_sees_no_change(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    land_some(lake, tmp_path, 9)
    processed = lake.version()
    compact(lake, settings, "north")
    changed, files, version = lake.changes("north", processed)
    assert (changed, len(files), version) == ([], 1, processed + 1)
    land(lake, tmp_path, 100, ["new"])
    changed, files, _ = lake.changes("north", processed)
    assert [file.rows for file in changed] == [1]
    assert len(files) == 2


def test_what_was_merged_before_it_was_read_is_seen_where_it_is_now(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    """The reader is given the merged file, although that came by a commit of no change."""
    land_some(lake, tmp_path, 5)
    processed = lake.version()
    land_some(lake, tmp_path, 4, first=6)
    compact(lake, settings, "north")
    land_some(lake, tmp_path, 8, first=10)
    compact(lake, settings, "north", fan_in=2)
    changed, files, _ = lake.changes("north", processed)
    assert changed == files
    assert all(Path(file.path).exists() for file in changed)


def test_without_the_log_everything_came(lake: EventLake, tmp_path: Path) -> None:
    land_some(lake, tmp_path, 3)
    DeltaTable(str(lake.path)).create_checkpoint()
    for number in range(3):
        (lake.path / "_delta_log" / f"{number:020}.json").unlink()
    changed, files, version = lake.changes("north", 1)
    assert (changed, len(files), version) == (files, 3, 3)


def test_what_a_file_brought_is_left_alone(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    """Only landed files are small and many."""
    for number in range(9):
        lake.append(stage(tmp_path / f"{number}", [str(number)]), "north")
    assert compact(lake, settings, "north") == Compacted()


def test_campuses_are_compacted_apart(lake: EventLake, settings: Settings, tmp_path: Path) -> None:
    for campus in ("north", "south"):
        for turn in range(1, 9):
            land(lake, tmp_path, turn, [f"{turn}"], campus=campus)
    assert compact(lake, settings, "north").merged == 8
    assert (len(lake.files("north")), len(lake.files("south"))) == (1, 8)


def test_a_late_event_does_not_make_a_large_file_reach_back(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    """Else every landing would have to look through it once the late event's id is forgotten."""
    weeks_ago = AT - 40 * 86_400
    for turn in range(1, 9):
        staged = stage(tmp_path / f"{turn}", [f"{turn}"], at=AT + turn)
        late = stage(tmp_path / f"late-{turn}", [f"late-{turn}"], at=weeks_ago + turn)
        pq.write_table(_both(staged, late), staged)
        lake.land(staged, "north", turn=turn, fresh_after=LONG_AGO)
    assert compact(lake, settings, "north").written == 2
    old, recent = sorted(lake.files("north"), key=lambda file: file.first_at)
    assert (old.rows, recent.rows) == (8, 8)
    assert recent.last_at - recent.first_at <= RECENT


def _both(one: Path, other: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(one), pq.read_table(other)])


def test_merged_files_are_there_for_a_day(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    """A refresh may be reading them; after that they and what a kill left are deleted."""
    land_some(lake, tmp_path, 8)
    old = [Path(file.path) for file in lake.files("north")]
    compact(lake, settings, "north")
    assert sweep(lake, "north") == 0
    assert all(path.exists() for path in old)
    assert sweep(lake, "north", kept_s=-1) == 8
    assert not any(path.exists() for path in old)
    assert len(ids_in(lake, settings)) == 16


def test_fresh_files_wait_if_they_are_told_to(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    land_some(lake, tmp_path, 9)
    assert compact(lake, settings, "north", older_than_s=3600) == Compacted()
    assert compact(lake, settings, "north", older_than_s=-1).merged == 9


def test_commits_that_nobody_asks_for_are_cleared(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    """The events, the turns of landings and what remembered versions ask for stay."""
    for turn in range(1, 13):
        land(lake, tmp_path, turn, [f"{turn}"], AT + turn)
        if turn in (4, 8):
            DeltaTable(str(lake.path)).create_checkpoint()
    ids, log = ids_in(lake, settings), lake.path / "_delta_log"
    assert clear_log(lake, 3, kept_s=-1) == 0
    assert clear_log(lake, 9) == 0  # all of today
    assert clear_log(lake, 7, kept_s=-1) == 4  # up to the checkpoint before it
    assert clear_log(lake, 9, kept_s=-1) == 5  # 4 to 7 and the checkpoint of 4
    assert len(list(log.glob("*.json"))) == 5
    assert ids_in(lake, settings) == ids
    assert len(lake.changes("north", 9)[0]) == 3
    assert len(lake.changes("north", 2)[0]) == 12  # everything, for it is not known what is new
    assert DeltaTable(str(lake.path)).transaction_version("landing/north") == 12
    assert compact(lake, settings, "north").merged == 12
    land(lake, tmp_path, 13, ["13"])
    assert ids_in(lake, settings) == sorted([*ids, "13"])


@pytest.mark.parametrize("step", ["written", "committed"])
def test_a_compaction_killed_between_its_steps_loses_and_repeats_nothing(
    lake: EventLake, settings: Settings, tmp_path: Path, step: str
) -> None:
    def kill(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    ids = land_some(lake, tmp_path, 9)
    processed = lake.version()
    with pytest.raises(KeyboardInterrupt):
        compact(lake, settings, "north", checkpoint=kill)
    assert ids_in(lake, settings) == ids
    assert lake.changes("north", processed)[0] == []
    compact(lake, settings, "north")
    assert len(lake.files("north")) == 1
    assert ids_in(lake, settings) == ids
    sweep(lake, "north", kept_s=-1)
    assert len(list(lake.folder("north").glob("*.parquet"))) == 1
    assert ids_in(lake, settings) == ids


def test_a_merge_that_lost_an_event_is_not_committed(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    land_some(lake, tmp_path, 8)
    short = stage(tmp_path / "short", ["1-a"])
    target = lake.folder("north") / "landed-short.parquet"
    short.rename(target)
    with pytest.raises(ConflictError, match="16 events became 1"):
        lake.replace("north", lake.files("north"), [target])
    assert len(lake.files("north")) == 8


def test_of_two_compactions_at_once_one_counts(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    """The other finds the files replaced, and takes its own away."""
    ids = land_some(lake, tmp_path, 8)

    def other(step: str) -> None:
        if step == "written":
            assert compact(EventLake(settings), settings, "north").merged == 8

    assert compact(lake, settings, "north", checkpoint=other) == Compacted()
    assert ids_in(lake, settings) == ids
    assert len(list(lake.folder("north").glob("*.parquet"))) == 9


def test_landings_and_appends_go_on_meanwhile(
    lake: EventLake, settings: Settings, tmp_path: Path
) -> None:
    """Two that append and one that compacts all the time: every event is there once."""
    lake.version()
    ended = threading.Event()
    errors: list[BaseException] = []

    def attempt(do: object) -> None:
        try:
            do()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    def landings() -> None:
        for turn in range(1, 25):
            land(EventLake(settings), tmp_path, turn, [f"l{turn}"], AT + turn)

    def appends() -> None:
        for number in range(6):
            staged = stage(tmp_path / f"a{number}", [f"a{number}", f"l{number + 1}"])
            EventLake(settings).append(staged, "north")

    def compactions() -> None:
        while not ended.is_set():
            compact(EventLake(settings), settings, "north", fan_in=3)
            time.sleep(0.01)

    writers = [threading.Thread(target=attempt, args=(do,)) for do in (landings, appends)]
    merger = threading.Thread(target=attempt, args=(compactions,))
    for thread in (*writers, merger):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    merger.join()
    assert errors == []
    ids = ids_in(lake, settings)
    assert len(ids) == len(set(ids))
    assert set(ids) == {f"l{n}" for n in range(1, 25)} | {f"a{n}" for n in range(6)}


operations = st.lists(
    st.one_of(
        st.tuples(st.just("land"), st.lists(st.integers(0, 40), min_size=1, max_size=4)),
        st.tuples(st.just("append"), st.lists(st.integers(0, 40), min_size=1, max_size=4)),
        st.tuples(st.just("compact"), st.integers(2, 4)),
        st.tuples(st.just("sweep"), st.none()),
        st.tuples(st.just("process"), st.none()),
    ),
    min_size=3,
    max_size=14,
)


@hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations)
def test_whatever_the_order_every_event_is_there_once_and_every_change_is_seen(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, object]]
) -> None:
    """A reader that processes now and then has seen all events, and nothing because of a merge."""
    folder = tmp_path_factory.mktemp("drawn")
    settings = Settings(home=folder / "home", postgres_url=None, engine_threads=1)
    lake, expected, seen, processed = EventLake(settings), set[str](), set[str](), 0
    for turn, (what, given_value) in enumerate([*drawn, ("process", None)], start=1):
        if what in ("land", "append"):
            # Each event has its time, as real ones do; some lie weeks apart.
            numbers = sorted(set(given_value))  # type: ignore[call-overload]
            staged = stage(folder / f"{turn}", [str(n) for n in numbers])
            table = pq.read_table(staged)
            times = [datetime.fromtimestamp(AT + n * 86_400, UTC) for n in numbers]
            place = table.schema.get_field_index("occurred_at")
            table = table.set_column(
                place, table.field(place), pa.array(times, table.field(place).type)
            )
            pq.write_table(table, staged)
            if what == "land":
                # A register would keep ids out that have landed; here the lake looks itself.
                future = datetime(2100, 1, 1, tzinfo=UTC)
                lake.land(staged, "north", turn=turn, fresh_after=future)
            else:
                lake.append(staged, "north")
            expected |= {str(n) for n in numbers}
        elif what == "compact":
            compact(lake, settings, "north", fan_in=given_value)  # type: ignore[arg-type]
        elif what == "sweep" and lake.folder("north").exists():
            sweep(lake, "north", kept_s=-1)
        elif what == "process":
            changed, _, processed = lake.changes("north", processed)
            for file in changed:
                seen |= set(pq.read_table(file.path)["event_id"].to_pylist())
            assert lake.changes("north", processed)[0] == []
    ids = ids_in(lake, settings) if expected else []
    assert ids == sorted(expected)
    assert seen == expected


def test_an_event_is_written_again_a_few_times_only(
    lake: EventLake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much lands, files of a class merge among themselves, and the files stay few."""
    monkeypatch.setattr(compaction, "CLASSES", (3, 9, 27, 81))
    moved = 0
    for turn in range(1, 41):
        land(lake, tmp_path, turn, [f"{turn}"], AT + turn)
        moved += compact(lake, settings, "north", fan_in=3).events
        assert len(lake.files("north")) <= 3 * 4
    assert moved <= 40 * 4
