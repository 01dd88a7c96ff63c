"""What the README tells to type works."""

import csv
import gzip
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from docs.generate import leaves
from tests.docs.conftest import PAGES, ROOT, theon_lines
from typer.main import get_command

from theon.cli import app

COMMANDS = dict(leaves(get_command(app)))

LOG = [
    ("id", "eventname", "component", "action", "userid", "courseid", "anonymous", "timecreated",
     "origin", "ip", "realuserid"),
    (1, r"\core\event\course_viewed", "core", "viewed", 115, 6, 0, 1789376400, "web", "::1", ""),
    (2, r"\mod_page\event\course_module_viewed", "mod_page", "viewed", 115, 6, 0, 1789376460,
     "web", "::1", ""),
    (3, r"\mod_forum\event\post_created", "mod_forum", "created", 115, 6, 0, 1789377660, "web",
     "::1", ""),
    (4, r"\mod_quiz\event\attempt_started", "mod_quiz", "started", 115, 6, 0, 1789377670, "web",
     "::1", ""),
    (5, r"\core\event\course_viewed", "core", "viewed", 2, 6, 0, 1789377700, "cli", "", ""),
]  # fmt: skip
REPORT = [
    ("Time", "User full name", "Affected user", "Event context", "Component", "Event name",
     "Description", "Origin", "IP address"),
    ("14/09/26, 10:01:00", "Ada Lovelace", "-", "Page: Engines", "Page", "Course module viewed",
     "The user with id '115' viewed the 'page' activity with course module id '9'.", "web", "::1"),
]  # fmt: skip
WEEK = "lincoln,115,6,2026-09-14,3,1,1260,1,2,0,1,2026-09-14T09:00:00Z,2026-09-14T09:21:00Z,,,,,"

Shell = Callable[..., subprocess.CompletedProcess[str]]


def wrong_words(words: list[str]) -> str | None:
    """What is wrong with a command line, by the program's own list; None if nothing is."""
    names = [n for n in COMMANDS if words[: len(n.split())] == n.split()]
    if not names:
        return f"no command {' '.join(words[:2])!r}"
    command = COMMANDS[names[0]]
    rest = words[len(names[0].split()) :]
    options = {o: p for p in command.params if p.param_type_name == "option" for o in p.opts}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    given: list[str] = []
    values = 0
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            values += 1
        elif word not in options:
            return f"theon {names[0]} has no option {word}"
        else:
            given.append(word)
            if not options[word].is_flag and not rest:
                return f"{word} lacks its value"
            if not options[word].is_flag:
                rest.pop(0)
    missing = [o for o, p in options.items() if p.required and not p.prompt and o not in given]
    if missing:
        return f"theon {names[0]} needs {missing[0]}"
    most = float("inf") if any(p.nargs < 0 for p in arguments) else len(arguments)
    if not sum(p.required for p in arguments) <= values <= most:
        return f"theon {names[0]} takes {len(arguments)} arguments, not {values}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_a_page_exists_with_these_options(page):
    lines = theon_lines(page.read_text(encoding="utf-8"))
    assert [found for words in lines if (found := wrong_words(words))] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("metrics compute", "no command"),
        ("metrics refresh --again", "no option --again"),
        ("campus add x", "needs --timezone"),
        ("campus list all", "takes 0 arguments"),
        ("serve", None),
        ("campus add x --timezone UTC", None),
    ],
)
def test_a_wrong_command_line_is_found(line, says):
    found = wrong_words(line.split())
    assert found is None if says is None else says in str(found)


def test_the_readme_names_every_command(readme):
    named = {" ".join(words) for words in theon_lines(readme)}
    unnamed = [n for n in COMMANDS if n != "demo" and not any(w.startswith(n) for w in named)]
    assert unnamed == []
    assert "\nmake demo\n" in readme


def test_the_help_of_every_command_answers(environment: Mapping[str, str]):
    for name in COMMANDS:
        done = subprocess.run(
            ["theon", *name.split(), "--help"],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (name, done.stderr)
        assert f"Usage: theon {name}" in done.stdout


@pytest.mark.slow
def test_the_commands_for_your_moodle_run_on_a_small_log(
    section: Callable[[str], str], environment: Mapping[str, str], tmp_path: Path
):
    """As they stand in the README, one after the other; the databases and the page aside."""
    with gzip.open(tmp_path / "logstore_standard_log_43.csv.gz", "wt", newline="") as log:
        csv.writer(log, lineterminator="\n").writerows(LOG)
    with (tmp_path / "report_log_course.csv").open("w", newline="", encoding="utf-8-sig") as report:
        csv.writer(report, lineterminator="\n").writerows(REPORT)
    said = {}
    for words in theon_lines(section("The same on your Moodle")):
        if "moodle-db" in words or words == ["serve"]:
            continue
        done = subprocess.run(
            ["theon", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        said[" ".join(w for w in words[:2])] = done.stdout
    assert said["ingest report_log_course.csv"].startswith("read 1 · new 1 ")
    assert said["ingest logstore_standard_log_43.csv.gz"].startswith("read 5 · new 5 ")
    header, *weeks = said["metrics export"].splitlines()
    assert header.startswith("campus,user_id,course_id,week_start,total_actions,active_days,")
    assert weeks == [WEEK]  # the report's row is one of the log's, and counts once
    assert "The published row is exactly what these events give." in said["metrics explain"]
    guide = (ROOT / "docs" / "guides" / "metrics.md").read_text(encoding="utf-8")
    example = guide.partition("for a log of five rows:\n\n```\n")[2].partition("```")[0]
    assert "left to the observers" in example
    assert said["metrics explain"].startswith(example)
    assert said["metrics verify"].strip() == "7 rows compared, 0 differ"
    assert len(said["metrics list"].splitlines()) == 7
    assert "lincoln\tEurope/London" in said["campus list"]
    # The folder that it names has a random name, which may spell any short word.
    assert not [line for line in said["doctor"].splitlines() if line.startswith("fail")]


def test_the_readme_quotes_the_last_measurements(readme: str):
    """Else: `python -m bench.report`."""
    done = subprocess.run(
        [sys.executable, "-c", "import json; from bench import report; "
         "print(report.block(json.loads(report.RESULTS.read_text('utf-8'))), end='')"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"<!-- bench -->\n{done.stdout}\n<!-- /bench -->" in readme
