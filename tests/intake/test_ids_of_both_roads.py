"""Files and the door know of each other: by whichever road an event comes, it counts once."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arriving import arrival, delivered
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from moodle_logs import lake_rows
from test_json_files import ids, lines, native, statement

from theon.intake import pipeline
from theon.intake.arrivals import EVENT_COLUMNS, REUSED_ID, Receipt
from theon.intake.door import accept
from theon.intake.event_ids import CONTENT_COLUMNS, note_lake_ids
from theon.intake.landing import land
from theon.intake.mapped import read_arrival
from theon.intake.pipeline import ingest
from theon.intake.runs import IngestSummary
from theon.lake.engine import open_engine, sql_text
from theon.lake.lake_ids import LakeIds
from theon.lake.table import EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.tables import ensure_tables
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]


@pytest.fixture(autouse=True)
def _tables(store: Store) -> None:
    ensure_tables(store, load_catalog())


def send(
    store: Store, settings: Settings, slug: str, rows: list[Any], mapping: str = "native"
) -> Receipt:
    sent = read_arrival(pa.array([json.dumps(row).encode() for row in rows]), mapping)
    with store.transaction(Scope(slug)) as conn:
        lake_ids = LakeIds(settings)
        return accept(conn, get_campus(store, slug), "http:lms", sent, lake_ids=lake_ids)


def test_the_door_knows_what_a_file_has_brought(
    take: Take, lake: EventLake, store: Store, settings: Settings, lincoln: str, tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines([native(n) for n in range(3)]))
    take(file, "ndjson")
    told = send(store, settings, lincoln, [native(2), native(3), native(0), native(3)])
    assert (told.accepted, told.duplicates) == (1, [0, 2, 3])
    assert delivered(store, lincoln) == (7, 4, 3, 0, 0)
    land(store, lake, settings, get_campus(store, lincoln))
    assert ids(lake) == ["e0", "e1", "e2", "e3"]


@pytest.mark.parametrize("at", ["2026-03-01T10:00:01Z", "2026-05-01T10:00:00Z"])
def test_the_door_refuses_another_event_under_an_id_of_a_file_whenever_it_was(
    take: Take, store: Store, settings: Settings, lincoln: str, tmp_path: Path, at: str
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines([native(1)]))
    take(file, "ndjson")
    told = send(store, settings, lincoln, [native(1, user_id="9", occurred_at=at)])
    assert (told.accepted, told.duplicates) == (0, [])
    assert told.refused["reason"].to_pylist() == [REUSED_ID]
    assert told.refused["detail"].to_pylist() == ["e1"]


def test_a_statement_of_a_file_is_known_to_the_door(
    take: Take, store: Store, settings: Settings, lincoln: str, tmp_path: Path
) -> None:
    file = tmp_path / "statements.json"
    file.write_text(json.dumps([statement(1), statement(2)]))
    take(file, "xapi")
    told = send(store, settings, lincoln, [statement(2), statement(3)], "xapi")
    assert (told.accepted, told.duplicates) == (1, [0])


def test_campuses_do_not_know_each_others_ids(
    take: Take, store: Store, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines([native(1)]))
    take(file, "ndjson")
    add_campus(store, "elm", "UTC")
    assert send(store, settings, "elm", [native(1)]).accepted == 1


def test_a_run_that_ended_before_its_ids_were_noted_is_made_whole_by_the_next(
    take: Take, lake: EventLake, store: Store, settings: Settings, lincoln: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Until then the door takes the events once more, and the landing finds them."""

    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_note_ids", ends)
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines([native(1), native(2)]))
    with pytest.raises(KeyboardInterrupt):
        take(file, "ndjson")
    monkeypatch.undo()
    assert send(store, settings, lincoln, [native(1)]).accepted == 1
    land(store, lake, settings, get_campus(store, lincoln))
    assert ids(lake) == ["e1", "e2"]
    take(file, "ndjson")
    assert send(store, settings, lincoln, [native(1), native(2)]).duplicates == [0, 1]


def _values(field: "pa.Field[Any]") -> st.SearchStrategy[Any]:
    if pa.types.is_boolean(field.type):
        some: st.SearchStrategy[Any] = st.booleans()
    elif pa.types.is_integer(field.type):
        most = (1 << field.type.bit_width - 1) - 1
        some = st.integers(-most - 1, most)
    else:
        some = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    return st.none() | some if field.nullable else some


_FIELDS = {field.name: field for field in EVENT_COLUMNS}
_TIME = {"at": st.integers(1_000_000_000, 2_000_000_000)}
_CONTENTS = st.fixed_dictionaries(
    _TIME | {name: _values(_FIELDS[name]) for name in CONTENT_COLUMNS if name != "occurred_at"}
)


@profile(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=_CONTENTS, other=_CONTENTS)
def test_files_and_the_door_agree_on_what_two_events_have_in_common(
    store: Store, tmp_path: Path, first: dict[str, Any], other: dict[str, Any]
) -> None:
    """One hashes with SQL and one with Arrow: what is equal for one is equal for the other."""
    number = len(list(tmp_path.iterdir()))
    campus = add_campus(store, f"c{number}", "UTC")
    settings = Settings(home=tmp_path / f"home-{number}", engine_threads=1)
    given_rows = [{"id": "a"} | first, {"id": "b"} | other]
    noted = arrival(given_rows)
    file = settings.home_dir / "events.parquet"
    file.parent.mkdir()
    pq.write_table(noted.events.select([field.name for field in EVENT_COLUMNS]), file)
    with open_engine(settings) as engine:
        note_lake_ids(LakeIds(settings), campus, engine, f"read_parquet({sql_text(file)})")
    swapped = [given_rows[0] | {"id": "b"}, given_rows[1] | {"id": "a"}]
    with store.transaction(Scope(campus.slug)) as conn:
        again, changed = (
            accept(conn, campus, "x", sent, lake_ids=LakeIds(settings), letters=False)
            for sent in (arrival(given_rows), arrival(swapped))
        )
    assert again.duplicates == [0, 1]
    same = first == other
    assert changed.duplicates == ([0, 1] if same else [])
    assert changed.refused.num_rows == (0 if same else 2)


_STEPS = st.one_of(
    st.tuples(
        st.sampled_from(["door", "file"]),
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=5),
    ),
    st.tuples(st.just("land"), st.just([])),
)


@profile(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(steps=st.lists(_STEPS, min_size=1, max_size=6))
def test_whatever_comes_by_whichever_road_the_first_of_each_id_stays_and_all_is_accounted_for(
    store: Store, tmp_path: Path, steps: list[tuple[str, list[tuple[int, int]]]]
) -> None:
    """The ledger's figures are those of the lake; other events under an id are rejected."""
    number = len(list(tmp_path.iterdir()))
    campus = add_campus(store, f"c{number}", "UTC")
    settings = Settings(home=tmp_path / f"home-{number}", engine_threads=1)
    lake, first = EventLake(settings), dict[int, int]()
    received = wrong = 0
    for road, batch in steps:
        # Another user's event is of another day: an id says nothing of the time.
        began = datetime(2026, 3, 1, tzinfo=UTC)
        days = [(began + timedelta(days=40 * user)).isoformat() for _, user in batch]
        rows = [
            native(event, user_id=f"{user}", occurred_at=at)
            for (event, user), at in zip(batch, days, strict=True)
        ]
        if road == "land":
            while land(store, lake, settings, campus) is not None:
                pass
        elif road == "door":
            send(store, settings, campus.slug, rows)
        else:
            file = tmp_path / f"{number}.ndjson"
            file.write_bytes(lines(rows))
            ingest(store, lake, settings, location=str(file), format="ndjson", campus=campus.slug)
        for event, user in batch:
            first.setdefault(event, user)
        received += len(batch)
        wrong += sum(user != first[event] for event, user in batch)
    while land(store, lake, settings, campus) is not None:
        pass
    found = lake_rows(lake, "SELECT event_id, user_id FROM events ORDER BY 1") if first else []
    assert found == sorted((f"e{event}", f"{user}") for event, user in first.items())
    duplicate = received - len(first) - wrong
    assert delivered(store, campus.slug)[:4] == (received, len(first), duplicate, wrong)
