"""Files of native events, statements and tracking logs: plain, packed, growing, in folders."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moodle_logs import lake_rows, log_row, write_log

from theon.errors import InputError
from theon.intake import json_files, json_lines, runs
from theon.intake.json_lines import Blocks, Ending, cut_file
from theon.intake.letters import LetterFilter, get_letter, list_letters
from theon.intake.runs import IngestSummary
from theon.lake.table import EventLake
from theon.store.engine import Store
from theon.store.scope import Scope

Take = Callable[..., IngestSummary]


def native(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"e{number}",
        "event_name": "CourseViewed",
        "occurred_at": f"2026-03-01T10:00:{number % 60:02}Z",
        "user_id": "5",
        "course_id": "6",
    } | more


def statement(number: int) -> dict[str, Any]:
    return {
        "id": f"7d8dc490-2885-4cd1-abad-{number:012}",
        "actor": {"account": {"homePage": "http://lms", "name": "8"}},
        "verb": {"id": "http://id.tincanapi.com/verb/viewed"},
        "object": {"id": "http://lms/course/view.php?id=8"},
        "timestamp": "2026-03-01T10:00:00Z",
    }


def tracking(number: int) -> dict[str, Any]:
    return {
        "event_type": "play_video",
        "event_source": "browser",
        "context": {"user_id": number, "course_id": "6"},
        "event": '{"id": "v"}',
        "time": "2026-03-01T10:00:00+00:00",
    }


def lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def ids(lake: EventLake) -> list[str]:
    return [str(row[0]) for row in lake_rows(lake, "SELECT event_id FROM events ORDER BY 1")]


def test_native_lines_are_read_and_a_bad_one_is_listed_with_its_line(
    take: Take, tmp_path: Path, lake: EventLake
) -> None:
    file = tmp_path / "events.ndjson"
    file.write_bytes(lines([native(1)]) + b"\n{broken\n" + lines([native(2)]))
    summary = take(file, "ndjson")
    assert (summary.read, summary.new, summary.rejected) == (3, 2, 1)
    assert ids(lake) == ["e1", "e2"]
    assert summary.rejects_file is not None
    assert summary.rejects_file.read_text().splitlines()[1].startswith('3,"not JSON",')


@pytest.mark.parametrize("packed", [False, True])
def test_statements_may_be_an_array_lines_or_an_answer_of_an_lrs(
    take: Take, tmp_path: Path, lake: EventLake, packed: bool
) -> None:
    shapes = {
        "array.json": json.dumps([statement(1), statement(2)], indent=2).encode(),
        "lines.json": lines([statement(2), statement(3)]),
        "answer.json": json.dumps({"statements": [statement(4)], "more": ""}).encode(),
    }
    for name, raw in shapes.items():
        (tmp_path / name).write_bytes(gzip.compress(raw) if packed else raw)
        assert take(tmp_path / name, "xapi").rejected == 0
    assert ids(lake) == [f"xapi:7d8dc490-2885-4cd1-abad-{n:012}" for n in (1, 2, 3, 4)]


def test_a_broken_element_of_an_array_is_refused_and_the_others_are_read(
    take: Take, tmp_path: Path, lake: EventLake
) -> None:
    good = json.dumps(statement(1))
    (tmp_path / "s.json").write_text(f"[\n{good},\n{{oops}},\n{good.replace('0001', '0002')}\n]")
    summary = take(tmp_path / "s.json", "xapi")
    assert (summary.read, summary.new, summary.rejected) == (3, 2, 1)
    assert summary.rejects_file is not None
    assert summary.rejects_file.read_text().splitlines()[1].startswith("3,")


def test_an_array_that_is_cut_off_gives_what_it_holds_and_says_so(
    take: Take, tmp_path: Path
) -> None:
    whole = json.dumps([statement(n) for n in range(5)])
    (tmp_path / "s.json").write_text(whole[:-30])
    summary = take(tmp_path / "s.json", "xapi")
    assert (summary.new, summary.rejected, summary.exit_status) == (4, 1, 3)
    assert any("ends in the middle of its array" in note for note in summary.notes)


def test_a_packed_file_that_is_cut_off_gives_what_it_holds_and_says_so(
    take: Take, tmp_path: Path
) -> None:
    raw = gzip.compress(lines([native(n, target=f"{n * 7919:x}") for n in range(5000)]))
    (tmp_path / "e.ndjson.gz").write_bytes(raw[: len(raw) // 2])
    summary = take(tmp_path / "e.ndjson.gz", "ndjson")
    assert 0 < summary.new < 5000
    assert summary.exit_status == 3
    assert any("is cut off or damaged" in note for note in summary.notes)


def test_a_packed_file_that_is_damaged_gives_what_stands_before_the_damage(
    take: Take, tmp_path: Path
) -> None:
    """Nothing is lost but what the damage hides: with a wrong sum at its end, nothing."""
    rows = lines([native(n, target=f"{n * 7919:x}") for n in range(5000)])
    raw = bytearray(gzip.compress(rows))
    raw[-8:-4] = b"\0\0\0\0"
    (tmp_path / "sum.ndjson.gz").write_bytes(raw)
    summary = take(tmp_path / "sum.ndjson.gz", "ndjson")
    assert (summary.new, summary.rejected, summary.exit_status) == (5000, 0, 3)
    raw = bytearray(gzip.compress(rows))
    raw[len(raw) // 2 : len(raw) // 2 + 40] = b"\xff" * 40
    (tmp_path / "middle.ndjson.gz").write_bytes(raw)
    summary = take(tmp_path / "middle.ndjson.gz", "ndjson")
    assert summary.known > 2000
    assert any("is cut off or damaged" in note for note in summary.notes)


def test_what_stands_behind_an_array_is_told_of(take: Take, tmp_path: Path) -> None:
    """Two answers of a store in one file, or one that is a page: neither goes without a word."""
    page = {"statements": [statement(1)], "more": "/xapi/statements?more=2"}
    (tmp_path / "page.json").write_text(json.dumps(page))
    summary = take(tmp_path / "page.json", "xapi")
    assert (summary.new, summary.exit_status) == (1, 0)
    assert ["is one page of several" in note for note in summary.notes] == [True]
    for behind in ("[{}]", json.dumps(page), "x"):
        (tmp_path / "two.json").write_text(f"[{json.dumps(statement(2))}]\n\n{behind}\n")
        summary = take(tmp_path / "two.json", "xapi")
        assert (summary.read, summary.exit_status) == (1, 3)
        assert any("holds more behind the end of its array" in note for note in summary.notes)


def test_the_last_line_of_a_log_that_is_being_written_is_read_next_time(
    take: Take, tmp_path: Path, lake: EventLake
) -> None:
    """And what was read before counts nothing a second time."""
    log = tmp_path / "tracking.log"
    whole = lines([tracking(1), tracking(2)])
    log.write_bytes(whole[:-40])
    first = take(log, "edx")
    assert (first.read, first.new, first.rejected, first.exit_status) == (1, 1, 0, 0)
    assert any("has no end yet" in note for note in first.notes)
    log.write_bytes(whole + lines([tracking(3)]))
    again = take(log, "edx")
    assert (again.read, again.new, again.known) == (3, 2, 1)
    assert len(ids(lake)) == 3


def test_a_last_line_without_a_line_break_that_is_whole_counts(take: Take, tmp_path: Path) -> None:
    (tmp_path / "e.ndjson").write_bytes(lines([native(1), native(2)]).rstrip())
    assert take(tmp_path / "e.ndjson", "ndjson").new == 2


def test_a_folder_is_read_with_its_rotated_files_and_nothing_else(
    take: Take, tmp_path: Path, lake: EventLake
) -> None:
    (tmp_path / "logs" / "old").mkdir(parents=True)
    logs = tmp_path / "logs"
    (logs / "tracking.log").write_bytes(lines([tracking(3)]))
    (logs / "tracking.log-20260101.gz").write_bytes(gzip.compress(lines([tracking(1)])))
    (logs / "old" / "tracking.log.1").write_bytes(lines([tracking(2), {}]))
    (logs / "empty.log").touch()
    (logs / "README.md").write_text("no log")
    summary = take(logs, "edx")
    assert (summary.read, summary.new, summary.rejected) == (4, 3, 1)
    assert summary.rejects_file is not None
    assert "old/tracking.log.1" in summary.rejects_file.read_text()
    assert len(ids(lake)) == 3


def test_lines_that_cannot_be_read_are_dead_letters_too_each_once(
    take: Take, tmp_path: Path, lake: EventLake, store: Store, lincoln: str
) -> None:
    """Byte for byte, also where they are no text; a log that is read again adds none."""
    bad = [b'{"event_type": "x", "time": "\xff\x00"}', b"{", b"{}"]
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "tracking.log").write_bytes(lines([tracking(1)]) + b"\n".join([*bad, b""]))
    for _ in range(2):
        take(logs, "edx")
        (logs / "tracking.log").rename(logs / "tracking.log.1")
        (logs / "tracking.log").write_bytes(lines([tracking(2)]) + b"{\n")
    with store.transaction(Scope(lincoln)) as conn:
        letters = [get_letter(conn, one.id) for one in list_letters(conn, LetterFilter())]
        kept = conn.exec_driver_sql("SELECT original FROM theon.dead_letters ORDER BY id")
        assert [bytes(original) for original in kept.scalars()] == bad
        counted = conn.exec_driver_sql("SELECT rejected, dead_lettered FROM theon.delivery_counts")
        assert [sum(column) for column in zip(*counted.all(), strict=True)] == [7, 3]
    places = [one.letter.place for one in reversed(letters)]
    assert places == [f"tracking.log, line {number}" for number in (2, 3, 4)]
    assert {one.letter.format for one in letters} == {"edx"}


def test_of_lines_that_cannot_be_read_no_more_is_held_than_a_part_has_room_for(
    take: Take, tmp_path: Path, lake: EventLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MOST_ORIGINAL_BYTES", 10_000)
    monkeypatch.setattr(runs, "MOST_LISTED", 30)
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 5_000)
    bad = b"".join(b'{"%d": "%s"}\n' % (n, b"x" * 1000) for n in range(50))
    (tmp_path / "e.ndjson").write_bytes(lines([native(1)]) + bad + lines([native(2)]))
    summary = take(tmp_path / "e.ndjson", "ndjson")
    assert (summary.read, summary.new, summary.rejected) == (52, 2, 50)
    assert summary.notes == ("20 more rejected rows are counted but not listed.",)
    assert summary.rejects_file is not None
    assert len(summary.rejects_file.read_text().splitlines()) == 31


def test_what_is_something_else_in_a_folder_is_left_out_and_told_of(
    take: Take, tmp_path: Path, lake: EventLake
) -> None:
    """One file that does not fit keeps out no other; an empty one, packed too, is no matter."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.log").write_bytes(lines([tracking(1)]))
    (logs / "empty.log.1.gz").write_bytes(gzip.compress(b""))
    (logs / "empty.log.2.gz").touch()
    (logs / "blank.log").write_text("\n")
    assert take(logs, "edx").exit_status == 0
    (logs / "b.json").write_bytes(lines([statement(1)]))
    (logs / "c.log").symlink_to("/proc/self/mem")  # whoever reads it, the system refuses
    summary = take(logs, "edx")
    assert (summary.read, summary.known, summary.exit_status) == (1, 1, 3)
    [note] = summary.notes
    assert f"{logs / 'b.json'}: this looks like xAPI statements" in note
    assert f"{logs / 'c.log'}: it cannot be read: input/output error" in note


def test_a_name_may_hold_whatever_the_system_takes(
    take: Take, tmp_path: Path, store: Store, lincoln: str
) -> None:
    for name in (b"of m\xfcller.log", b"two\nlines \xc3\xa4.log", b'it\'s "so".log'):
        file = tmp_path / "logs" / os.fsdecode(name)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(lines([native(1)]) + b"{\n" + lines([native(2)])[:-30])
        summary = take(file, "ndjson")
        assert (summary.read, summary.rejected) == (2, 1)
    assert take(tmp_path / "logs", "ndjson").rejected == 3


def test_a_folder_without_such_files_is_refused(take: Take, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with pytest.raises(InputError, match="there is no file of events in this folder"):
        take(tmp_path / "logs", "edx")


def test_the_id_of_a_tracking_line_is_its_content_with_or_without_a_logger_before_it(
    take: Take, tmp_path: Path, lake: EventLake
) -> None:
    line = json.dumps(tracking(1))
    logger = "2026-03-01 10:00:00,1 INFO 7 [tracking] [user 6] [ip 1.2.3.4] logger.py:41 - "
    dense = json.dumps(tracking(1), separators=(",", ":"))
    (tmp_path / "t.log").write_text(f"{logger}{line}\n{line}\n{dense}\n")
    summary = take(tmp_path / "t.log", "edx")
    assert (summary.read, summary.new, summary.known) == (3, 1, 2)


@pytest.mark.parametrize(
    ("written", "asked", "said"),
    [
        (lines([statement(1)]), "ndjson", "this looks like xAPI statements"),
        (lines([tracking(1)]), "xapi", "this looks like an Open edX tracking log"),
        (lines([native(1)]), "edx", "this looks like Theon's own events"),
        (b"name,grade\na,1\n", "xapi", "this holds no JSON"),
        (json.dumps(native(1), indent=1).encode(), "ndjson", "one JSON object over several lines"),
        (b"", "ndjson", "the file is empty"),
        (b"\n \n", "ndjson", "the file holds only blanks"),
        (lines([native(1), native(2)]).replace(b"\n", b"\r"), "ndjson", "a carriage return alone"),
    ],
)
def test_a_file_of_another_format_is_refused_and_named(
    take: Take, tmp_path: Path, written: bytes, asked: str, said: str
) -> None:
    (tmp_path / "f.json").write_bytes(written)
    with pytest.raises(InputError, match=said):
        take(tmp_path / "f.json", asked)


def test_what_is_no_file_is_refused_and_named(take: Take, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for location, source_format, said in (
        (tmp_path / "pipe", "xapi", "a pipe or a device, which can be read only once"),
        (tmp_path, "moodle-logstore", "this is a folder"),
        (tmp_path / "none", "edx", "there is no such file"),
        ("/proc/self/mem", "edx", "it cannot be read: input/output error"),
    ):
        with pytest.raises(InputError, match=said):
            take(location, source_format)


def test_a_log_table_is_sent_to_its_own_format(take: Take, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Moodle's log table"):
        take(write_log(tmp_path / "log.csv", [log_row(1)]), "ndjson")


def test_a_long_file_is_staged_in_parts(
    take: Take, tmp_path: Path, lake: EventLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "PART_EVENTS", 100)
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 5_000)
    (tmp_path / "e.ndjson").write_bytes(lines([native(n) for n in range(1000)]))
    summary = take(tmp_path / "e.ndjson", "ndjson")
    assert (summary.read, summary.new) == (1000, 1000)
    assert len(lake.files()) > 3


def test_a_line_that_is_too_long_is_refused_and_takes_no_memory(tmp_path: Path, take: Take) -> None:
    file = tmp_path / "e.ndjson"
    file.write_bytes(lines([native(1)]) + b"x" * (20 << 20) + b"\n" + lines([native(2)]))
    summary = take(file, "ndjson")
    assert (summary.read, summary.new, summary.rejected) == (3, 2, 1)


VALUES = st.recursive(
    st.integers() | st.text() | st.sampled_from(['"', "\\", '\\"', "[", "]", "{", "},{", ","]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def cut(path: Path) -> Iterator[tuple[bytes, int]]:
    for part in cut_file(Blocks(path), Ending()):
        yield from zip(part.events.to_pylist(), part.line_numbers.tolist(), strict=True)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(VALUES, max_size=8),
    indent=st.sampled_from([None, 1]),
    block=st.integers(1, 60),
    ascii_=st.booleans(),
)
def test_an_array_is_cut_into_its_elements_wherever_the_blocks_end(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Any],
    indent: int | None,
    block: int,
    ascii_: bool,
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_)
    path = tmp_path_factory.mktemp("cut") / "a.json"
    path.write_text(" " + text, "utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_lines, "BLOCK_BYTES", block)
        found = list(cut(path))
    assert [json.loads(event) for event, _ in found] == rows
    for event, number in found:
        assert event.split(b"\n")[0] in path.read_bytes().split(b"\n")[number - 1]
