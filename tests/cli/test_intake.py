"""`theon intake`: figures, gaps and dead letters at the command line."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from sqlalchemy import text
from tests.intake.moodle_logs import log_row, write_log

from theon.bootstrap import open_theon
from theon.intake.door import accept
from theon.intake.replay import read_mapped
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.scope import Scope

Run = Callable[..., subprocess.CompletedProcess[str]]
GOOD = {"id": "a", "event_name": "PageViewed", "occurred_at": "2026-09-14T09:00:00Z"}
SENT = [GOOD, {**GOOD, "id": "b", "occurred_at": "soon"}, {"ident": "c"}]


@pytest.fixture(scope="module")
def letters(home: Path, theon: Run) -> list[int]:
    """Dead letters of a campus, oldest first: a time that is none, an id under another name."""
    settings = Settings(home=home, postgres_url=None, postgres_app_url=None)
    with open_theon(settings) as opened:
        add_campus(opened.store, "lincoln", "Europe/London")
        originals = pa.array([json.dumps(event).encode() for event in SENT], pa.binary())
        ids = pa.array(["-"] * len(SENT))
        with opened.store.transaction(Scope("lincoln")) as conn:
            sent = read_mapped("native", originals, ids)
            accept(conn, get_campus(opened.store, "lincoln"), "http:lms", sent)
    listed = json.loads(theon("intake", "dead-letters", "list", "--json").stdout)
    return sorted(letter["id"] for letter in listed)


def test_figures_are_shown_with_reasons_and_what_waits(theon: Run, letters: list[int]):
    said = theon("intake", "status")
    first, *rest = said.stdout.splitlines()
    assert first.split("\t")[:7] == ["lincoln", "http:lms", "3", "1", "0", "2", "2"]
    assert any("1 events wait to land" in line for line in rest)
    found = json.loads(theon("intake", "status", "--days", "7", "--json").stdout)
    assert (found["total"]["received"], found["sources"][0]["rejected"]) == (3, 2)


def test_a_letter_is_shown_previewed_mended_and_replayed(theon: Run, letters: list[int]):
    first, second = map(str, letters)
    listed = theon("intake", "dead-letters", "list").stdout
    assert [line.split("\t")[0] for line in listed.splitlines()] == [second, first]
    shown = theon("intake", "dead-letters", "show", first).stdout
    assert json.dumps(SENT[1]) in shown
    mend = ("--set", "occurred_at=2026-09-14T09:00:00Z")
    seen = theon("intake", "dead-letters", "replay", first, second, *mend, "--preview").stdout
    assert f"{first}\taccepted" in seen
    assert f"{second}\trefused" in seen
    assert theon("intake", "dead-letters", "list").stdout == listed
    done = theon("intake", "dead-letters", "replay", first, *mend, "--note", "clock")
    assert (done.returncode, done.stdout) == (0, "accepted 1 · duplicate 0 · refused 0\n")
    again = theon("intake", "dead-letters", "replay", "--all", "--source", "http:lms")
    assert again.returncode == 3
    assert "refused 1" in again.stdout
    record = json.loads(theon("intake", "dead-letters", "show", first, "--json").stdout)
    [change] = record["changes"]
    assert change["actor"].startswith("command line (")
    assert (change["note"], change["mend"][0]["field"]) == ("clock", "occurred_at")
    gone = theon("intake", "dead-letters", "discard", second, "--note", "a test")
    assert gone.stdout == "discarded 1\n"
    twice = theon("intake", "dead-letters", "discard", second)
    assert (twice.stdout, f"{second} was left alone" in twice.stderr) == ("discarded 0\n", True)
    assert theon("intake", "dead-letters", "list").stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead-letters", "replay"),
        ("dead-letters", "discard", "5", "--all"),
        ("dead-letters", "replay", "5", "--set", "nothing"),
        ("dead-letters", "show", "999999"),
        ("dead-letters", "list", "--state", "wide"),
        ("dead-letters", "list", "--campus", "lincolm"),
        ("dead-letters", "replay", "--all", "--campus", "lincolm"),
        ("gaps", "--state", "wide"),
        ("accept-gap", "999999", "--because", "x"),
    ],
)
def test_a_mistake_gets_a_message_not_a_traceback(theon: Run, arguments: tuple[str, ...]):
    done = theon("intake", *arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_gap_is_found_and_accepted(theon: Run, letters: list[int], tmp_path: Path):
    times = {n: str(1_789_286_400 + n) for n in (1, 2, 6)}
    log = write_log(tmp_path / "log.csv", [log_row(n, timecreated=times[n]) for n in times])
    known = ("--format", "moodle-logstore", "--campus", "lincoln")
    compared = theon("intake", "reconcile", str(log), *known)
    assert (compared.returncode, compared.stdout) == (
        1, "read 3 · known 0 · missing 3 · rejected 0\n",
    )  # fmt: skip
    assert theon("intake", "reconcile", str(log), *known, "--repair").returncode == 0
    assert theon("intake", "reconcile", str(log), *known).returncode == 0
    [line] = theon("intake", "gaps", "--look").stdout.splitlines()
    number, state, campus, source = line.split("\t")[:4]
    assert (state, campus, source) == ("open", "lincoln", "moodle")
    assert "ids 3 to 5" in line
    done = theon("intake", "accept-gap", number, "--because", "deleted")
    assert "accepted" in done.stdout
    assert theon("intake", "gaps").stdout == ""


def test_a_clock_that_is_off_is_listed_and_stands_with_its_source(
    home: Path, theon: Run, letters: list[int]
):
    settings = Settings(home=home, postgres_url=None, postgres_app_url=None)
    with open_theon(settings) as opened, opened.store.transaction(Scope("lincoln")) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.delivery_counts (campus_id, source, hour, received, accepted,"
                " timed, ahead, least_lag_s, last_at) SELECT c.id, 'http:app', h, 9, 9, 9, 4,"
                " -3600, h FROM theon.campuses c, generate_series(date_trunc('hour', now())"
                " - interval '2 hours', now(), '1 hour') AS h WHERE c.slug = 'lincoln'"
            )
        )
    [line] = theon("intake", "gaps", "--look").stdout.splitlines()
    _, state, campus, source, since, words = line.split("\t")
    assert (state, campus, source, since[:6]) == ("open", "lincoln", "http:app", "since ")
    assert words.startswith("Its clock is at least 1 h ahead, as if a time zone were written")
    said = theon("intake", "status").stdout.splitlines()
    assert "\tclock\t1 h ahead: see theon intake gaps" in said
    found = json.loads(theon("intake", "status", "--source", "http:app", "--json").stdout)
    assert found["sources"][0]["clock_off_s"] == 3600
