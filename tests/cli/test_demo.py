"""`theon demo`: everything from nothing, and again without counting anything twice."""

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = ("--learners", "90", "--courses", "9", "--weeks", "4")

# A demo ends with the last Sunday: by a clock that stands still all of these end with the same.
PROGRAM = f"""
from datetime import datetime
from theon import cli, cli_demo
class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp({time.time()}, tz)
cli_demo.datetime = Clock
cli.main()
"""


@pytest.fixture(scope="module")
def program():
    return [sys.executable, "-c", PROGRAM]


@pytest.fixture(scope="module")
def first(theon):
    done = theon("demo", "--no-serve", *SMALL)
    assert done.returncode == 0, done.stderr
    return done


def _export(theon, metric):
    done = theon("metrics", "export", metric, "--campus", "district", "--format", "csv")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def weeks(theon, first):
    return _export(theon, "user_course_week")


def test_the_last_lines_say_what_was_computed_how_fast_and_where_to_look(first):
    text = first.stdout
    events, learners, courses = re.search(
        r"([\d,]+) events of ([\d,]+) learners in (\d+) courses", text
    ).groups()
    assert int(events.replace(",", "")) > 20_000
    assert 80 <= int(learners) <= 90
    assert courses == "9"
    assert re.search(r"[1-9][\d,]* are duplicates in the second delivery", text)
    assert re.search(r"[1-9][\d,]* hours reopened by late events", text)
    assert re.search(r"[1-9][\d,]* events a second", text)
    assert "http://127.0.0.1:" in text.splitlines()[-1]


def test_the_demos_metrics_pass_verify(theon, first):
    done = theon("metrics", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9][\d,]* rows compared, 0 differ", done.stdout)


def test_an_export_has_the_columns_in_order_and_is_sorted(weeks):
    rows = list(csv.DictReader(io.StringIO(weeks)))
    assert list(rows[0]) == [
        "campus",
        "user_id",
        "course_id",
        "week_start",
        "total_actions",
        "active_days",
        "time_spent_s",
        "resources_viewed",
        "pages_viewed",
        "forum_views",
        "forum_posts",
        "first_access",
        "last_access",
        "quizzes_attempted",
        "quizzes_avg_score",
        "assignments_submitted",
        "course_progress",
        "activities_completed",
    ]
    keys = [(r["campus"], r["user_id"], r["course_id"], r["week_start"]) for r in rows]
    assert keys == sorted(keys)
    assert len({r["week_start"] for r in rows}) == 4


def test_formats_hold_the_same_rows_and_output_goes_to_a_file(theon, first, tmp_path):
    path = tmp_path / "weeks.json"
    done = theon("metrics", "export", "campus_week", "--format", "json", "--output", str(path))
    assert (done.returncode, done.stdout) == (0, "")
    rows = json.loads(path.read_text(encoding="utf-8"))
    table = list(csv.DictReader(io.StringIO(_export(theon, "campus_week"))))
    assert len(rows) == 12
    assert [r["learners"] for r in rows] == [int(r["learners"]) for r in table]


def test_explain_adds_up_to_the_exported_value(theon, weeks):
    row = max(csv.DictReader(io.StringIO(weeks)), key=lambda r: int(r["total_actions"]))
    done = theon(
        "metrics", "explain", "user_course_week", "--campus", row["campus"],
        "--user", row["user_id"], "--course", row["course_id"], "--week", row["week_start"],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f'"total_actions": {row["total_actions"]}' in done.stdout
    assert f'"time_spent_s": {row["time_spent_s"]}' in done.stdout


def test_a_second_demo_in_the_same_home_changes_no_number(theon, first, weeks):
    again = theon("demo", "--no-serve", *SMALL)
    assert again.returncode == 0, again.stderr
    assert _export(theon, "user_course_week") == weeks
    assert re.search(r"\n0 hours reopened", again.stdout)
    read, known = re.search(r"([\d,]+) rows read, ([\d,]+) recognised", again.stdout).groups()
    assert read == known


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_goes_on_and_ends_with_the_same_numbers(
    program, environment, tmp_path, weeks, number
):
    """Stopped while it reads its first file."""
    home = environment | {"THEON_HOME": str(tmp_path)}
    demo = [*program, "demo", "--no-serve", *SMALL]
    process = subprocess.Popen(demo, env=home, stderr=subprocess.PIPE, text=True)
    deliveries = tmp_path / "demo" / "deliveries.json"
    end = time.monotonic() + 200
    while not deliveries.exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(number)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 128 + number, said
    assert "run `theon demo` again" in said
    assert "Traceback" not in said
    done = subprocess.run(demo, env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    export = [*program, "metrics", "export", "user_course_week"]
    again = subprocess.run(export, env=home, capture_output=True, text=True, check=True)
    assert again.stdout == weeks


def test_another_demo_does_not_mix_with_the_first(theon, first):
    done = theon("demo", "--no-serve", "--seed", "2", *SMALL)
    assert done.returncode == 2
    assert "--seed 1" in done.stderr
    assert "THEON_HOME" in done.stderr
