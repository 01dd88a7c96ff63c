"""A service with the API of jobs, clients of every role, and jobs to work with."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.access.conftest import plain_settings

from theon.access.keys import make_key
from theon.access.requests import Access
from theon.access.roles import Role
from theon.api.app import create_app
from theon.api.jobs_app import add_jobs_api
from theon.api.server import Server
from theon.api.sign_in import add_sign_in
from theon.jobs import ledger
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message, Outcome, Progress
from theon.jobs.schedules import Schedule, Scheduler
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()
LIMIT_S = 60.0
JOBS = "/api/v1/jobs"


@dataclass(frozen=True)
class Count:
    """How far to count."""

    upto: int = 1
    word: str = ""
    any: Any = None


@dataclass(frozen=True)
class Days:
    days: int = 30


@job("room.count", queue="rooms", category="analytics", max_attempts=2, at_once=3)
def count(ctx: Any, args: Count) -> None:
    """Count."""


@job("import.rows", queue="imports", category="import")
def rows(ctx: Any, args: Count) -> None:
    """Import rows."""


@job("house.clean", queue="house", category="system")
def clean(ctx: Any, args: Days) -> None:
    """Clean."""


KINDS = Kinds([count, rows, clean])
SCHEDULES = (
    Schedule("room.nightly", "room.count", "15 2 * * *", per_campus=True, summary="Count."),
    Schedule("house.weekly", "house.clean", "30 3 * * 0"),
)


@dataclass
class Service:
    """The service and what stands behind it."""

    store: Store
    app: FastAPI
    scheduler: Scheduler
    keys: dict[tuple[Role, str], str] = field(default_factory=dict)

    def key(self, role: Role, campus: str) -> str:
        """A key of this role and campus."""
        if (role, campus) not in self.keys:
            made = make_key(self.store, name=f"{role} {campus}", role=role, campus=campus)
            self.keys[role, campus] = made[1]
        return self.keys[role, campus]

    def client(self, role: Role | None = None, campus: str = "oak") -> TestClient:
        """A client that shows a key; of no role, nothing."""
        if role is Role.SYSTEM_ADMINISTRATOR:
            campus = "district"
        shown = {} if role is None else {"Authorization": f"Bearer {self.key(role, campus)}"}
        return TestClient(self.app, headers=shown)

    @property
    def root(self) -> TestClient:
        """A system administrator."""
        return self.client(Role.SYSTEM_ADMINISTRATOR)

    @property
    def oak(self) -> TestClient:
        """The administrator of oak."""
        return self.client(Role.CAMPUS_ADMINISTRATOR, "oak")

    # -- the ledger ------------------------------------------------------------------------

    def put(self, *new: NewJob) -> list[int]:
        with self.store.transaction(DISTRICT) as conn:
            return enqueue_many(conn, KINDS, new)

    def one(self, kind: str = "room.count", campus: str = "oak", **how: Any) -> int:
        return self.put(NewJob(kind, campus=campus, **how))[0]

    def begin(self, *ids: int) -> list[Message]:
        with self.store.transaction(DISTRICT) as conn:
            ledger.promote(conn)
            return [a.message for a in ledger.start(conn, ledger.dispatch(conn, ids), "w")]

    def progress(self, message: Message, done: float, total: float, operation: str = "") -> None:
        with self.store.transaction(DISTRICT) as conn:
            ledger.renew(
                conn, [Progress(message.job_id, message.token, done, total, operation or None)]
            )

    def end(self, messages: Sequence[Message], outcome: str = "completed", **how: Any) -> None:
        with self.store.transaction(DISTRICT) as conn:
            given = [Outcome(m.job_id, m.token, outcome, transient=False, **how) for m in messages]
            assert len(ledger.finish(conn, given)) == len(messages)

    def failed(self, **how: Any) -> int:
        job_id = self.one(**how)
        self.end(self.begin(job_id), "failed", error="it broke", error_kind="KeyError")
        return job_id

    def state(self, job_id: int) -> str:
        found = self.root.get(f"{JOBS}/{job_id}")
        assert found.status_code == 200, found.text
        return str(found.json()["job"]["state"])


def make_service(store: Store, settings: Settings) -> Service:
    app = create_app(store)
    add_sign_in(app, Access(store, plain_settings(settings)))
    scheduler = Scheduler(store, KINDS, SCHEDULES)
    scheduler.tick()  # writes down what there is
    add_jobs_api(app, store, KINDS, scheduler)
    return Service(store, app, scheduler)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The application on a real port; gives host and port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        # Without a set-up of its own, so that pytest sees what it logs.
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", timeout_graceful_shutdown=5
        )
        server = Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            until(lambda: server.started, "the server answers")
            yield f"127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(LIMIT_S)
            assert not thread.is_alive()


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait for what must come true, far longer than it takes; gives what `holds` gave."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        found = holds()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {LIMIT_S:.0f} s: {what}")
