"""Events over HTTP: Theon's door and an LRS beside it, one measured task per process.

`python -m bench.http_work TASK EVENTS` prints one line of JSON as `bench.work` does. The client is
this process: its bodies are made before the clock starts, its connections stay open.
"""

import base64
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from bench import data
from bench.jobs_services import free_port, process, wait_for
from bench.work import Result, timed
from theon.access.keys import make_key
from theon.access.roles import Role
from theon.bootstrap import Theon, open_theon
from theon.roster.campuses import add_campus
from theon.settings import Settings

BATCH = 500
CONNECTIONS = 8
SINGLE_CONNECTIONS = 32
NDJSON = {"Content-Type": "application/x-ndjson"}
RALPH = "ralph-malph[cli,lrs]==5.1.0"
USER = "bench"
# Not by its own command, which watches its files and logs every request. As it comes, its file back
# end takes the first request and refuses all that follow, for it wants to create the file again.
RALPH_SERVER = """
import sys
import uvicorn
from ralph.backends.data.base import BaseOperationType
from ralph.backends.lrs.fs import FSLRSBackend
FSLRSBackend.default_operation_type = BaseOperationType.APPEND
uvicorn.run("ralph.api:app", port=int(sys.argv[1]), log_level="warning")
"""


def native_events(count: int) -> list[bytes]:
    """Views of pages of now, by 1,500 learners in 40 courses."""
    begin = datetime.now(UTC) - timedelta(seconds=count / 1000)
    run = uuid4().hex[:8]
    return [
        json.dumps(
            {
                "id": f"{run}-{n}",
                "event_name": "\\core\\event\\course_viewed",
                "occurred_at": (begin + timedelta(milliseconds=n)).isoformat(),
                "user_id": str(n * 7 % 1500 + 100),
                "course_id": str(n % 40 + 2),
                "component": "core",
                "action": "viewed",
                "target": "course",
                "other": {"section": n % 12},
            }
        ).encode()
        for n in range(count)
    ]


def statements(count: int) -> list[bytes]:
    """The same as xAPI statements."""
    begin = datetime.now(UTC) - timedelta(seconds=count / 1000)
    return [
        json.dumps(
            {
                "id": str(uuid4()),
                "actor": {
                    "account": {"homePage": "http://lms.example.org", "name": str(n * 7 % 1500)}
                },
                "verb": {"id": "http://id.tincanapi.com/verb/viewed"},
                "object": {"id": f"http://lms.example.org/course/{n % 40}"},
                "timestamp": (begin + timedelta(milliseconds=n)).isoformat(),
            }
        ).encode()
        for n in range(count)
    ]


def ours_batches(events: int) -> Result:
    """Batches of 500 lines."""
    sent = native_events(events)
    bodies = [b"\n".join(sent[at : at + BATCH]) for at in range(0, events, BATCH)]
    with serving() as (port, key):
        send(port, "/api/v1/events", bodies[:2], {**NDJSON, **key}, 1, 202)
        return timed(
            lambda: send(port, "/api/v1/events", bodies[2:], {**NDJSON, **key}, CONNECTIONS, 202)
        )


def ours_singles(events: int) -> Result:
    """One event a request, on 32 connections."""
    bodies = native_events(events)
    with serving() as (port, key):
        headers = {"Content-Type": "application/json", **key}
        send(port, "/api/v1/events", bodies[:100], headers, SINGLE_CONNECTIONS, 202)
        return timed(
            lambda: send(port, "/api/v1/events", bodies[100:], headers, SINGLE_CONNECTIONS, 202)
        )


def theirs_ralph(events: int) -> Result:
    """Batches of 500 statements to Ralph on its file back end."""
    sent = statements(events)
    bodies = [b"[" + b",".join(sent[at : at + BATCH]) + b"]" for at in range(0, events, BATCH)]
    with ralph() as (port, headers):
        path = "/xAPI/statements"
        send(port, path, bodies[:2], headers, 1, 200)
        return timed(lambda: send(port, path, bodies[2:], headers, CONNECTIONS, 200))


def send(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    headers: dict[str, str],
    connections: int,
    status: int,
) -> None:
    """Post every body once, each connection the next that is left."""
    rest = iter(bodies)
    taking = threading.Lock()
    failures: list[str] = []

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while not failures:
            with taking:
                body = next(rest, None)
            if body is None:
                return
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != status:
                failures.append(f"{answer.status}: {said[:200]!r}")

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@contextmanager
def serving(
    prepare: Callable[[Theon, Path], None] = lambda _theon, _folder: None,
) -> Iterator[tuple[int, dict[str, str]]]:
    """`theon serve` on a new home with one campus; gives the port and what a sender shows.

    `prepare` is called before it serves, with a folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="theon-bench-") as folder:
        home = Path(folder) / "home"
        settings = Settings(home=home, postgres_url=None, postgres_app_url=None)
        with open_theon(settings) as theon:
            add_campus(theon.store, data.CAMPUS, data.TIMEZONE)
            prepare(theon, Path(folder))
            _, key = make_key(theon.store, name=USER, role=Role.SERVICE, campus=data.CAMPUS)
            port = free_port()
            environment = {
                **os.environ,
                "THEON_HOME": str(home),
                "PORT": str(port),
                "THEON_CLIENT_EVENTS_PER_MINUTE": "100000000",
            }
            start = "from theon.cli import main; main()"
            command = [sys.executable, "-W", "ignore", "-c", start, "serve"]
            with process(command, environment):
                wait_for(lambda: _answers(port, "/health"), "theon serve")
                yield port, {"Authorization": f"Bearer {key}"}


@contextmanager
def ralph() -> Iterator[tuple[int, dict[str, str]]]:
    """Ralph in a virtual environment of its own, with one user who may do everything."""
    place = data.FOLDER / "ralph"
    program = place / "bin" / "ralph"
    if not program.exists():
        venv.create(place, with_pip=True)
        subprocess.run([place / "bin" / "pip", "install", "-q", RALPH, "requests"], check=True)
    with tempfile.TemporaryDirectory(prefix="theon-bench-") as folder:
        environment = {
            **os.environ,
            "RALPH_APP_DIR": folder,
            "RALPH_AUTH_FILE": f"{folder}/auth",
            "RALPH_RUNSERVER_BACKEND": "fs",
            "RALPH_BACKENDS__LRS__FS__DEFAULT_DIRECTORY_PATH": folder,
        }
        options = ["-u", USER, "-p", USER, "-s", "all", "-M", "mailto:bench@example.org"]
        subprocess.run([program, "auth", *options, "-N", USER, "-w"], env=environment, check=True)
        port = free_port()
        command = [str(place / "bin" / "python"), "-c", RALPH_SERVER, str(port)]
        with process(command, environment):
            wait_for(lambda: _answers(port, "/__heartbeat__"), "ralph")
            shown = base64.b64encode(f"{USER}:{USER}".encode()).decode()
            yield (
                port,
                {
                    "Content-Type": "application/json",
                    "Authorization": f"Basic {shown}",
                    "X-Experience-API-Version": "1.0.3",
                },
            )


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


TASKS: dict[str, Callable[[int], Result]] = {
    f.__name__: f for f in (ours_batches, ours_singles, theirs_ralph)
}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](int(sys.argv[2]))))
