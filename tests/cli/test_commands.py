"""Commands: results on standard output, messages on standard error, exit statuses that tell."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_command import COMMAND
from tests.ports import held_port
from typer.main import get_command

from theon import __version__
from theon.cli import app


def _leaves(command, path=()):
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from _leaves(child, (*path, name))
        else:
            yield " ".join((*path, name)), child


def test_every_command_says_what_it_does_with_an_example():
    found = dict(_leaves(get_command(app)))
    assert set(found) == {
        "campus add", "campus list", "ingest", "metrics list", "metrics refresh",
        "metrics export", "metrics explain", "metrics verify", "serve", "doctor", "demo", "worker",
        "jobs list", "jobs kinds", "jobs run", "jobs show", "jobs cancel", "jobs retry",
        "jobs discard", "jobs prioritise",
        "schedules list", "schedules run", "schedules pause", "schedules resume",
        "account add", "account list", "account password", "account shut",
        "key add", "key list", "key revoke",
        "intake status", "intake gaps", "intake accept-gap", "intake reconcile",
        "intake dead-letters list", "intake dead-letters show", "intake dead-letters replay",
        "intake dead-letters discard",
        "kafka consume", "kafka status", "kafka rewind", "kafka topics create",
    }  # fmt: skip
    for name, command in found.items():
        assert f"theon {name}" in command.help.split("Example:", 1)[1], name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_help_loads_no_engine():
    """So that it answers at once."""
    heavy = ("duckdb", "pyarrow", "sqlalchemy", "nicegui", "fastapi", "deltalake", "numpy")
    program = f"import sys, theon.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_version_is_that_of_the_package(theon):
    assert theon("--version").stdout == f"theon {__version__}\n"


def test_a_campus_is_added_once_and_listed(theon):
    first = theon("campus", "add", "lincoln", "--timezone", "Europe/London", "--name", "Lincoln")
    again = theon("campus", "add", "lincoln", "--timezone", "Europe/London", "--name", "Lincoln")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    listed = theon("campus", "list")
    assert listed.stdout.splitlines().count("lincoln\tEurope/London\tdistrict\tLincoln") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("campus", "add", "x", "--timezone", "Europe/Londn"), 2, "Europe/London"),
        (("metrics", "export", "nonsense", "--campus", "district"), 2, "user_course_week"),
        (("metrics", "export", "user_day", "--campus", "nowhere"), 2, "theon campus add nowhere"),
        (
            ("ingest", "missing.csv", "--format", "moodle-logstore", "--campus", "nowhere"),
            2,
            "nowhere",
        ),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_a_mistake_gets_a_message_and_a_status_not_a_traceback(theon, arguments, status, said):
    done = theon(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_setting_that_does_not_fit_is_named(theon):
    done = theon("campus", "list", env={"PORT": "seventy"})
    assert done.returncode == 2
    assert "PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_is_a_file_is_refused(theon, tmp_path):
    (tmp_path / "file").write_text("")
    done = theon("campus", "list", env={"THEON_HOME": str(tmp_path / "file")})
    assert done.returncode == 2
    assert "not a folder" in done.stderr


def test_doctor_passes_a_new_installation_and_says_what_is_missing(theon):
    done = theon("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line[:4].strip() for line in lines if not line.startswith("      ")] == [
        "ok", "ok", "ok", "ok", "ok", "ok", "warn",
    ]  # fmt: skip
    assert "theon metrics refresh" in lines[-1]


def test_doctor_fails_where_the_database_cannot_be_reached(theon):
    done = theon("doctor", env={"POSTGRES_URL": "postgresql://nobody:x@127.0.0.1:1/none"})
    assert done.returncode == 1
    assert "fail  PostgreSQL" in done.stdout
    assert "POSTGRES_URL" in done.stdout


def test_serve_names_a_port_that_is_taken(theon):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = theon("serve", env={"PORT": str(port)})
    assert done.returncode == 4
    assert f"127.0.0.1:{port}" in done.stderr
    assert f"PORT={port + 1}" in done.stderr


@pytest.fixture
def port():
    with held_port() as port:
        yield port


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_serve_with_a_sentence_and_no_traceback(environment, port, number, status):
    process = subprocess.Popen(
        [*COMMAND, "serve"],
        env=environment | {"PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert f"http://127.0.0.1:{port}" in line
        _wait_until_listening(port)
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(120) == status
    finally:
        process.kill()
    assert "Traceback" not in rest
    if number == signal.SIGINT:
        assert "All data is kept" in rest


def _wait_until_listening(port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as client:
            client.settimeout(20)
            try:
                client.connect(("127.0.0.1", port))
                client.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                if client.recv(20):
                    return
            except OSError:
                time.sleep(0.1)
    pytest.fail("the service did not answer in two minutes")


def test_output_that_nobody_reads_on_is_no_failure(environment, home: Path):
    """As in `theon metrics list | head -1`."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [*COMMAND, "metrics", "list"],
        env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert "Traceback" not in process.stderr
