"""In files too an id stands for one event: another one under it is refused, and nothing else."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from moodle_logs import lake_rows
from test_json_files import ids, lines, native, statement

from theon.intake import journal
from theon.intake.arrivals import REUSED_ID
from theon.intake.delivery import VALIDATE
from theon.intake.door import accept
from theon.intake.landing import land
from theon.intake.letters import LetterFilter, get_letter, list_letters
from theon.intake.mapped import read_arrival
from theon.intake.mends import read_mend
from theon.intake.pipeline import ingest
from theon.intake.replay import read_mapped, replay
from theon.intake.runs import IngestSummary
from theon.lake.lake_ids import LakeIds
from theon.lake.table import EventLake
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]


def told(summary: IngestSummary) -> tuple[int, int, int, int]:
    return summary.read, summary.new, summary.known, summary.rejected


def rejects(store: Store, slug: str) -> list[tuple[Any, ...]]:
    with store.transaction(Scope(slug)) as conn:
        found = conn.exec_driver_sql(
            "SELECT line_number, reason, detail FROM theon.intake_rejects ORDER BY run_id, 1"
        )
        return [tuple(row) for row in found]


@pytest.mark.parametrize("later", ["2026-03-01T10:00:00Z", "2026-05-01T10:00:00Z"])
def test_another_event_under_an_id_of_the_lake_is_a_reject_whenever_it_is_said_to_have_been(
    take: Take, lake: EventLake, store: Store, lincoln: str, tmp_path: Path, later: str
) -> None:
    """The id says nothing of the time, so the whole lake is looked through."""
    first, second = tmp_path / "first.ndjson", tmp_path / "second.ndjson"
    first.write_bytes(lines([native(n) for n in range(3)]))
    second.write_bytes(
        lines([native(7), {"id": 8}, native(1, user_id="9", occurred_at=later), native(2)])
    )
    take(first, "ndjson")
    assert told(take(second, "ndjson")) == (4, 1, 1, 2)
    assert ids(lake) == ["e0", "e1", "e2", "e7"]
    found = lake_rows(lake, "SELECT user_id FROM events WHERE event_id = 'e1'")
    assert found == [("5",)]
    assert (3, REUSED_ID, "e1") in rejects(store, lincoln)


def test_in_one_file_the_first_stays_equal_ones_are_known_and_others_are_rejects(
    take: Take, lake: EventLake, store: Store, lincoln: str, tmp_path: Path
) -> None:
    file = tmp_path / "events.ndjson.gz"
    file.write_bytes(
        gzip.compress(lines([native(1), native(2), native(1), native(1, user_id="9"), native(1)]))
    )
    assert told(take(file, "ndjson")) == (5, 2, 2, 1)
    assert rejects(store, lincoln) == [(4, REUSED_ID, "e1")]
    assert told(take(file, "ndjson")) == (5, 0, 4, 1)  # and the same again
    assert ids(lake) == ["e1", "e2"]


def test_a_statement_as_it_was_sent_and_as_a_store_gives_it_back_are_the_same(
    take: Take, tmp_path: Path
) -> None:
    file, export = tmp_path / "sent.json", tmp_path / "stored.json"
    file.write_text(json.dumps([statement(1)]))
    given_back = statement(1) | {
        "stored": "2026-03-02T00:00:00Z",
        "authority": {"mbox": "mailto:store@example.org"},
        "version": "1.0.3",
    }
    export.write_text(json.dumps({"statements": [given_back], "more": ""}))
    assert told(take(file, "xapi")) == (1, 1, 0, 0)
    assert told(take(export, "xapi")) == (1, 0, 1, 0)


@profile(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10
)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_the_first_event_of_each_id_stays_and_every_row_is_accounted_for(
    store: Store, tmp_path: Path, batches: list[list[tuple[int, int]]]
) -> None:
    number = len(list(tmp_path.iterdir()))
    slug = add_campus(store, f"c{number}", "UTC").slug
    kept = Settings(home=tmp_path / f"home-{number}", engine_threads=1)
    lake, first = EventLake(kept), dict[int, int]()
    for batch in batches:
        file = tmp_path / f"{number}.ndjson"
        file.write_bytes(lines([native(event, user_id=f"{user}") for event, user in batch]))
        summary = ingest(store, lake, kept, location=str(file), format="ndjson", campus=slug)
        new = {event for event, _ in batch} - first.keys()
        for event, user in batch:
            first.setdefault(event, user)
        wrong = sum(user != first[event] for event, user in batch)
        assert told(summary) == (len(batch), len(new), len(batch) - len(new) - wrong, wrong)
    found = dict(lake_rows(lake, "SELECT event_id, user_id FROM events"))
    assert found == {f"e{event}": f"{user}" for event, user in first.items()}


def as_lines(rows: list[Any]) -> bytes:
    return lines(rows)


def as_array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_one_line(rows: list[Any]) -> bytes:
    """All elements begin on one line, so its number alone tells of none."""
    return json.dumps({"statements": rows, "more": ""}).encode()


WRITTEN = {
    "lines": ("ndjson", as_lines),
    "array": ("ndjson", as_array),
    "statements": ("xapi", as_lines),
    "array of statements": ("xapi", as_array),
    "answer of a store": ("xapi", as_one_line),
}


@pytest.mark.parametrize("where", ["plain", "packed", "folder"])
@pytest.mark.parametrize("written", list(WRITTEN))
def test_a_line_refused_for_its_id_is_kept_byte_for_byte_and_can_be_replayed(
    take: Take, store: Store, settings: Settings, lincoln: str, tmp_path: Path, written: str,
    where: str,
) -> None:  # fmt: skip
    """Unmended it is refused again, with an id of its own taken in; reading adds no second."""
    source_format, write = WRITTEN[written]
    make, said = (native, "occurred_at") if source_format == "ndjson" else (statement, "timestamp")
    other = make(2) | {said: "2026-04-01T10:00:00Z"}
    raw = write([make(1), make(2), other, make(3)])
    file = tmp_path / "logs" / "of 2026" / "e.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(raw) if where == "packed" else raw)
    location = tmp_path / "logs" if where == "folder" else file
    assert told(take(location, source_format)) == (4, 3, 0, 1)
    assert told(take(location, source_format)) == (4, 0, 3, 1)

    [(line, _, detail)] = set(rejects(store, lincoln))
    with store.transaction(Scope(lincoln)) as conn:
        originals = conn.exec_driver_sql("SELECT original FROM theon.intake_rejects").scalars()
        [original] = set(originals)
        [letter] = list_letters(conn, LetterFilter(None))
        shown = get_letter(conn, letter.id)
    assert json.loads(original) == other
    assert original.encode() in raw  # as it stands there, blanks and all
    assert shown.original == original
    assert (letter.source, letter.stage) == (f"file:{source_format}", VALIDATE)
    assert letter.reason == REUSED_ID
    name = "of 2026/e.json" if where == "folder" else "e.json"
    assert letter.place == f"{name}, line {line}"
    assert detail.startswith(f"{name}: ") == (where == "folder")
    assert raw.split(b"\n")[line - 1].count(original.encode().split(b"\n")[0])

    with store.transaction(Scope(lincoln)) as conn:
        lake_ids = LakeIds(settings)
        [again] = replay(conn, read_mapped, [letter.id], "ada", lake_ids=lake_ids).tried
        assert (again.outcome, again.reason) == ("refused", REUSED_ID)
        mend = read_mend([{"do": "set", "field": "id", "value": make(7)["id"]}])
        [mended] = replay(conn, read_mapped, [letter.id], "ada", lake_ids=lake_ids, mend=mend).tried
        assert mended.outcome == "accepted"


@pytest.mark.parametrize("together", [1, journal.LANDING_EVENTS])
def test_what_came_through_the_door_was_first_also_before_it_has_landed(
    take: Take, lake: EventLake, store: Store, settings: Settings, lincoln: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, together: int,
) -> None:  # fmt: skip
    """Equal events of a file are known, and another one under its id is refused."""
    for row in (native(1), native(2, user_id="8")):
        arrival = read_arrival(pa.array([json.dumps(row).encode()]), "native")
        with store.transaction(Scope(lincoln)) as conn:
            assert accept(conn, get_campus(store, lincoln), "http:lms", arrival).accepted == 1
    monkeypatch.setattr(journal, "LANDING_EVENTS", together)
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines([native(1), native(2, user_id="9"), native(3)]))
    assert told(take(file, "ndjson")) == (3, 1, 1, 1)
    assert ids(lake) == ["e3"]
    assert [(line, reason) for line, reason, *_ in rejects(store, lincoln)] == [(2, REUSED_ID)]
    monkeypatch.undo()
    land(store, lake, settings, get_campus(store, lincoln))
    assert ids(lake) == ["e1", "e2", "e3"]
    assert told(take(file, "ndjson")) == (3, 0, 2, 1)
