"""Reading a Moodle log file: every good row kept as it is, every bad row told with its line."""

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from moodle_logs import LOG_COLUMNS, log_row, rejects, staged_rows, write_log

from theon.errors import InputError
from theon.events.schema import EVENT_SCHEMA
from theon.intake.moodle_logstore import stage_logstore
from theon.intake.staged import STAGED_COLUMNS, Staged
from theon.settings import Settings

Stage = Callable[[Path], Staged]


@pytest.fixture
def stage(tmp_path: Path, settings: Settings) -> Stage:
    def run(path: Path) -> Staged:
        workspace = tmp_path / f"work-{path.name}"
        workspace.mkdir(exist_ok=True)
        return stage_logstore(path, workspace, settings)

    return run


def test_a_row_becomes_an_event_with_moodles_values(stage: Stage, tmp_path: Path) -> None:
    row = log_row(
        7,
        eventname=r"\mod_forum\event\post_created",
        component="mod_forum",
        objecttable="forum_posts",
        objectid="31",
        relateduserid="9",
        other='a:1:{s:7:"forumid";i:5;}',
    )
    staged = stage(write_log(tmp_path / "log.csv", [row]))
    (event,) = staged_rows(staged)
    found = dict(zip(STAGED_COLUMNS, event, strict=True))
    assert found == {
        "event_id": "moodle:7",
        "source": "moodle-log",
        "occurred_at": datetime.fromtimestamp(1789286401, UTC),
        "user_id": "115",
        "course_id": "6",
        "event_name": r"\mod_forum\event\post_created",
        "component": "mod_forum",
        "action": "viewed",
        "target": "course",
        "object_table": "forum_posts",
        "object_id": "31",
        "crud": "r",
        "edulevel": 2,
        "context_id": 11,
        "context_level": 50,
        "context_instance_id": 6,
        "related_user_id": "9",
        "real_user_id": None,
        "anonymous": False,
        "origin": "web",
        "ip": "127.0.0.1",
        "other": 'a:1:{s:7:"forumid";i:5;}',
    }


def test_the_staged_file_has_the_canonical_types(stage: Stage, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    schema = pq.read_schema(stage(write_log(tmp_path / "log.csv", [log_row(1)])).path)
    assert {f.name: f.type for f in schema} == {
        name: EVENT_SCHEMA.field(name).type for name in STAGED_COLUMNS
    }


@pytest.mark.parametrize(
    "payload", ["null", '{"a":"\\u00fc, \\"b\\""}', "N;", "a\nb", 'x"y', "ü😀"]
)
def test_the_payload_is_stored_untouched(stage: Stage, tmp_path: Path, payload: str) -> None:
    """JSON, PHP's own format, the word null, line breaks and quotes: as they stand."""
    staged = stage(write_log(tmp_path / "log.csv", [log_row(1, other=payload)]))
    assert staged_rows(staged, "other") == [(payload,)]


@pytest.mark.parametrize("word", ["", "NULL", r"\N"])
def test_each_way_to_write_nothing_is_null(stage: Stage, tmp_path: Path, word: str) -> None:
    row = log_row(1, courseid=word, ip=word, origin=word, realuserid=word, other=word)
    staged = stage(write_log(tmp_path / "log.csv", [row]))
    assert staged_rows(staged, "course_id, ip, origin, real_user_id, other") == [(None,) * 5]


def test_header_names_decide_whatever_their_order(stage: Stage, tmp_path: Path) -> None:
    usual = stage(write_log(tmp_path / "a.csv", [log_row(1), log_row(2)]))
    turned = stage(write_log(tmp_path / "b.csv", [log_row(1), log_row(2)], LOG_COLUMNS[::-1]))
    assert staged_rows(usual) == staged_rows(turned)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_commas_semicolons_and_tabs_delimit(stage: Stage, tmp_path: Path, delimiter: str) -> None:
    path = write_log(tmp_path / "log.csv", [log_row(1)], delimiter=delimiter)
    assert staged_rows(stage(path), "event_id, user_id") == [("moodle:1", "115")]


def test_a_byte_order_mark_and_crlf_change_nothing(stage: Stage, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.csv", [log_row(1), log_row("x"), log_row(2)])
    plain = stage(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    marked = stage(path)
    assert staged_rows(marked) == staged_rows(plain)
    assert marked.rejects == plain.rejects


def test_the_output_of_mysql_batch_is_unescaped(stage: Stage, tmp_path: Path) -> None:
    """`mysql --batch` quotes nothing, doubles backslashes and writes NULL."""
    row = log_row(1, other='{\\"a\\":1}\\\\n\\nend', eventname=r"\\core\\event\\course_viewed")
    row["realuserid"] = "NULL"
    lines = ["\t".join(LOG_COLUMNS), "\t".join(row.values())]
    path = tmp_path / "log.tsv"
    path.write_text("\n".join(lines) + "\n")
    assert staged_rows(stage(path), "event_name, real_user_id") == [
        (r"\core\event\course_viewed", None)
    ]


def test_optional_columns_may_be_missing(stage: Stage, tmp_path: Path) -> None:
    needed = ("id", "eventname", "timecreated", "userid", "courseid")
    staged = stage(write_log(tmp_path / "log.csv", [log_row(1)], needed))
    assert staged_rows(staged, "event_id, anonymous, ip") == [("moodle:1", None, None)]


def test_each_kind_of_bad_row_is_told_with_its_line_and_value(stage: Stage, tmp_path: Path) -> None:
    """Lines are those of the file, also after a field that holds a line break."""
    rows = [
        log_row(1, other="two\nlines"),
        log_row("1.0"),
        log_row(2, timecreated="17.5"),
        log_row(3, timecreated="5"),
        log_row(4, timecreated="99999999999"),
        log_row(5, userid=""),
        log_row(6, courseid="six"),
        log_row(7, eventname=""),
        log_row(8),
    ]
    path = write_log(tmp_path / "log.csv", rows)
    with path.open("a") as out:
        out.write("9,too short\n")
        out.write(path.read_text().splitlines()[1].replace("two", "") + '",more,than,that,,,,,\n')
    staged = stage(path)
    assert staged_rows(staged, "event_id") == [("moodle:1",), ("moodle:8",)]
    assert rejects(staged)[:7] == [
        (4, "id is not a whole number", "1.0"),
        (5, "timecreated is not a whole number", "17.5"),
        (6, "timecreated is before 2000 or more than a year ahead", "5"),
        (7, "timecreated is before 2000 or more than a year ahead", "99999999999"),
        (8, "userid is not a whole number", None),
        (9, "courseid is not a whole number", "six"),
        (10, "eventname is empty", None),
    ]
    assert rejects(staged)[7][:2] == (12, "too few columns")
    assert staged.rejects["original"][0].as_py() == path.read_text().splitlines()[3]
    assert staged.read == staged.rows + staged.rejected


def test_an_equal_repeated_row_is_known_and_another_with_its_id_is_refused(
    stage: Stage, tmp_path: Path
) -> None:
    rows = [log_row(2), log_row(1), log_row(2), log_row(2, userid="116"), log_row(3)]
    staged = stage(write_log(tmp_path / "log.csv", rows))
    assert staged_rows(staged, "event_id, user_id") == [
        ("moodle:2", "115"),
        ("moodle:1", "115"),
        ("moodle:3", "115"),
    ]
    assert (staged.known, staged.rejected) == (1, 1)
    assert rejects(staged) == [(5, "id used twice with different content", None)]


def test_rows_that_an_open_quote_swallows_are_kept(stage: Stage, tmp_path: Path) -> None:
    """Only the row that opens the quote is refused, with its own line."""
    path = write_log(tmp_path / "log.csv", [log_row(n, other='{"n":1}') for n in range(1, 8)])
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace(",web,", ',"web,')
    path.write_text("\n".join(lines) + "\n")
    staged = stage(path)
    assert sorted(staged_rows(staged, "event_id")) == [(f"moodle:{n}",) for n in (1, 2, 4, 5, 6, 7)]
    assert [r[:2] for r in rejects(staged)] == [(4, "a quote that is not closed")]
    assert (staged.read, staged.rows, staged.rejected) == (7, 6, 1)


def test_latin_1_bytes_are_refused_row_by_row(stage: Stage, tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.csv", [log_row(1), log_row(2, other="ü"), log_row(3)])
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xfc"))
    staged = stage(path)
    assert staged_rows(staged, "event_id") == [("moodle:1",), ("moodle:3",)]
    assert [r[:2] for r in rejects(staged)] == [(3, "not UTF-8")]
    assert r"\xfc" in staged.rejects["original"][0].as_py()


def test_a_cut_last_line_is_refused_and_the_rows_before_are_kept(
    stage: Stage, tmp_path: Path
) -> None:
    path = write_log(tmp_path / "log.csv", [log_row(n) for n in range(1, 6)])
    path.write_bytes(path.read_bytes()[:-30])
    staged = stage(path)
    assert staged.rows == 4
    assert [r[:2] for r in rejects(staged)] == [(6, "too few columns")]


def test_a_last_line_without_line_break_is_read_but_mentioned(stage: Stage, tmp_path: Path) -> None:
    """A cut in the last field cannot be seen in the row itself."""
    path = write_log(tmp_path / "log.csv", [log_row(1)])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    staged = stage(path)
    assert staged.rows == 1
    assert "no line break at its end" in staged.notes[0]


def test_a_truncated_gzip_file_gives_what_it_still_holds(stage: Stage, tmp_path: Path) -> None:
    """Every whole row before the cut, and the cut row as a reject with its line."""
    rows = [log_row(n, other=f"payload {n * 7919}") for n in range(1, 20_001)]
    packed = gzip.compress(write_log(tmp_path / "log.csv", rows).read_bytes())
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(packed[: len(packed) // 2])
    staged = stage(path)
    assert 5_000 < staged.rows < 15_000
    assert staged_rows(staged, "min(event_id), count(*)")[0] == ("moodle:1", staged.rows)
    assert rejects(staged) == [
        (staged.rows + 2, "cut off", "the packed file ends here, in the middle")
    ]
    assert "is cut off or damaged" in staged.incomplete


def test_rows_stay_in_the_order_of_the_file(stage: Stage, tmp_path: Path) -> None:
    numbers = [(n * 7_919) % 150_001 + 1 for n in range(150_000)]
    staged = stage(write_log(tmp_path / "log.csv", [log_row(n) for n in numbers]))
    assert staged_rows(staged, "event_id") == [(f"moodle:{n}",) for n in numbers]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"   \n", "only blanks"),
        (b"<!DOCTYPE html><html><title>Log in</title>", "often the login page"),
        (b"PK\x03\x04rest of a workbook", "Excel or zip"),
        (b"%PDF-1.7", "not a text file"),
        ("id,userid\n".encode("utf-16"), "UTF-16"),
        ("id,userid,timecreated\n".encode("utf-16-le"), "UTF-16"),
        (b"Time,User full name,Event name,Description\n", "moodle-report"),
        (b"-- MariaDB dump 10.19\n", "dump of a database"),
        (b"1,\\core\\event\\course_viewed,core\n", "no header"),
        (b"name,grade\nAnn,3\n", "no column id, timecreated, userid, courseid, eventname"),
        (",".join(LOG_COLUMNS).encode() + b"\n", "a header and no row"),
        (",".join((*LOG_COLUMNS, "id")).encode() + b"\n", "column twice: id"),
        (gzip.compress(b"id,eventname\n" * 99, mtime=0)[:12], "cut off"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_what_it_is(
    stage: Stage, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        stage(path)
    assert str(path) in caught.value.message
    assert caught.value.next_step


def test_a_missing_file_is_named(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        stage(tmp_path / "nowhere.csv")


@pytest.mark.real_data
def test_the_real_log_is_read_whole(stage: Stage, moodle_data: Path) -> None:
    staged = stage(moodle_data / "logstore_standard_log_43.csv.gz")
    assert (staged.read, staged.rows, staged.rejected, staged.notes) == (5_798, 5_798, 0, ())
    assert staged_rows(
        staged,
        "count(DISTINCT event_name), count(*) FILTER (anonymous), "
        "count(*) FILTER (real_user_id IS NOT NULL), "
        "count(*) FILTER (other LIKE 'a:%' OR other = 'N;')",
    )[0][:3] == (141, 207, 28)
