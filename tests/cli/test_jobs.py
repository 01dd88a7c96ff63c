"""`theon jobs`, `theon schedules`, `theon account`, `theon key` beside a running `theon serve`."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from running_command import COMMAND
from tests.ports import held_port

Run = Callable[..., subprocess.CompletedProcess[str]]
WAIT_S = 200.0


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)


@contextmanager
def serving(environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `theon serve` on a free port; its messages are in `serve.log`."""
    with held_port() as port, (folder / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve"], env=environment | {"PORT": str(port)}, stderr=log
        )
        yield from _until_it_answers(process, port, folder)


def _until_it_answers(
    process: subprocess.Popen[bytes], port: int, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The process, once it answers; it is ended afterwards."""

    def answers() -> bool:
        assert process.poll() is None, (folder / "serve.log").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    try:
        until(answers, "serve answers")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(WAIT_S)


@pytest.fixture(scope="module")
def served(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("log")
    with serving(environment, folder):
        yield folder


def test_a_job_is_run_by_the_server_and_its_result_printed(theon: Run, served: Path):
    assert theon("campus", "add", "oak", "--timezone", "Europe/Paris").returncode == 0
    # The first job of all waits for a process to run it, and may be handed out twice meanwhile.
    assert theon("jobs", "run", "system.health", "--wait").returncode == 0
    done = theon("jobs", "run", "metrics.refresh", "--campus", "oak", "--wait")
    assert done.returncode == 0, done.stderr
    number, _, result = done.stdout.partition("\n")
    assert json.loads(result)["events"] == 0
    shown = json.loads(theon("jobs", "show", number, "--json").stdout)
    assert shown["job"]["state"] == "completed"
    assert [c["after"] for c in shown["history"]] == [
        "queued",
        "dispatched",
        "running",
        "completed",
    ]
    assert shown["job"]["owner"].startswith("command line")


def test_the_health_check_and_the_retention_complete(theon: Run, served: Path):
    """What runs on a schedule runs by hand as well."""
    health = theon("jobs", "run", "system.health", "--wait")
    assert health.returncode == 0, health.stderr
    report = json.loads(health.stdout.partition("\n")[2])
    assert report["workers"] == 1
    assert report["free_bytes"] > 0
    retention = theon("jobs", "run", "system.retention", "--wait")
    assert retention.returncode == 0, retention.stderr


def test_schedules_are_written_down_and_run_by_hand(theon: Run, served: Path):
    until(lambda: "metrics.hourly" in theon("schedules", "list").stdout, "schedules are known")
    states = json.loads(theon("schedules", "list", "--json").stdout)
    hourly = next(s for s in states if s["name"] == "metrics.hourly")
    assert hourly["cron"] == "15 * * * *"
    assert len(hourly["upcoming"]) == 5
    ids: list[str] = []

    def run_by_hand() -> bool:
        """Where the hour has just begun, its own run has to end first."""
        ids[:] = theon("schedules", "run", "system.health").stdout.split()
        return bool(ids)

    until(run_by_hand, "the schedule is run by hand")
    until(lambda: "completed" in theon("jobs", "show", ids[0]).stdout, "the run completed")
    assert theon("schedules", "pause", "metrics.daily").returncode == 0
    assert "paused by command line" in theon("schedules", "list").stdout
    assert theon("schedules", "resume", "metrics.daily").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "metrics.refesh"], "did you mean metrics.refresh?"),
        (["run", "metrics.refresh", "--args", '{"rebuild": "maybe"}'], "rebuild:"),
        (["run", "metrics.refresh", "--args", "{"], "not JSON"),
        (["run", "metrics.refresh", "--campus", "nowhere"], "no campus 'nowhere'"),
        (["run", "metrics.refresh", "--priority", "soon"], "no priority 'soon'"),
        (["show", "999999"], "no job 999999"),
        (["cancel", "999999"], "no job 999999"),
        (["list", "state:done"], "state"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_cannot_be_is_refused_with_words(
    theon: Run, served: Path, arguments: list[str], says: str
):
    done = theon("jobs", *arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_accounts_and_keys_are_managed_at_the_command_line(theon: Run, served: Path):
    """A key is shown once; afterwards only how it begins."""
    made = theon("key", "add", "timetable")
    key = made.stdout.strip()
    assert key
    listed = theon("key", "list").stdout
    assert "timetable" in listed
    assert key not in listed
    assert theon("key", "revoke", listed.split("\t")[0]).returncode == 0
    assert "revoked" in theon("key", "list").stdout
    shown = "--password", "a long enough password"
    added = theon(
        "account", "add", "ann", "--role", "campus_administrator", "--campus", "oak", *shown
    )
    assert added.returncode == 0, added.stderr
    assert "ann\tcampus_administrator\toak\topen" in theon("account", "list").stdout
    assert theon("account", "shut", "ann").returncode == 0
    assert "\tshut" in theon("account", "list").stdout


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_job(
    environment: dict[str, str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    """Jobs that were queued, handed out or running end once after the next start."""
    own = environment | {"THEON_HOME": str(tmp_path_factory.mktemp("killed"))}

    def theon(*arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=own,
            capture_output=True,
            text=True,
            check=True,
            timeout=WAIT_S,
        )
        return done.stdout

    with serving(own, tmp_path) as process:
        ids = [theon("jobs", "run", "system.health").strip() for _ in range(3)]
        os.kill(process.pid, signal.SIGKILL)
        ids.append(theon("jobs", "run", "system.health").strip())
    with serving(own, tmp_path):
        wanted = {f"{job_id}\tcompleted\tsystem.health" for job_id in ids}

        def completed() -> bool:
            """All of these; the run of an hour that has just begun may be beside them."""
            listed = theon("jobs", "list").splitlines()
            return wanted <= {line.rsplit("\t", 3)[0] for line in listed}

        until(completed, "all completed")
        for job_id in ids:
            changes = json.loads(theon("jobs", "show", job_id, "--json"))["history"]
            assert [c["after"] for c in changes].count("completed") == 1


def test_nobody_who_runs_jobs_is_told(theon: Run, environment: dict[str, str]):
    """Waiting for a job that no worker takes ends with what to start; the job stays."""
    alone = {"THEON_HOME": environment["THEON_HOME"] + "-alone"}
    done = theon("jobs", "run", "system.health", "--wait", env=alone)
    assert done.returncode == 4
    assert "theon serve" in done.stderr
    assert "queued\tsystem.health" in theon("jobs", "list", env=alone).stdout
