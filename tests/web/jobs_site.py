"""Two schools with jobs of many states, an account of each role, and the pages about jobs."""

import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from tests.access.conftest import ORIGIN, PASSWORD, plain_settings
from tests.access.conftest import sign_in as sign_in_by_api
from tests.browser import Browser, Page, wait_for

from theon.access.accounts import add_account
from theon.access.requests import Access
from theon.access.roles import Role
from theon.api.sign_in import add_sign_in
from theon.jobs import admin, ledger
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message, Outcome, Progress
from theon.jobs.schedules import Scheduler
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope
from theon.web.jobs_pages import add_jobs_pages
from theon.web.sign_in import add_sign_in_pages

DISTRICT = Scope.district()
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\" onfocus='alert(3)'"


@dataclass(frozen=True)
class Rows:
    """What to import."""

    path: str
    limit: int = 10
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Points:
    """Of which course."""

    course: int = 1


@dataclass(frozen=True)
class Tidy:
    """How long to keep."""

    keep_days: int = 30


@job("import.rows", queue="imports", category="import", at_once=1, max_attempts=2)
def rows(ctx: Any, args: Rows) -> None:
    """Import rows."""


@job("reward.points", queue="rewards", category="reward")
def points(ctx: Any, args: Points) -> None:
    """Give points."""


@job("system.tidy", queue="system", category="system")
def tidy(ctx: Any, args: Tidy) -> None:
    """Tidy up."""


KINDS = Kinds([rows, points, tidy])

# Name of an account: its role and campus.
ACCOUNTS: Mapping[str, tuple[Role, str]] = {
    "root": (Role.SYSTEM_ADMINISTRATOR, "district"),
    "oak-admin": (Role.CAMPUS_ADMINISTRATOR, "oak"),
    "elm-admin": (Role.CAMPUS_ADMINISTRATOR, "elm"),
    "oak-service": (Role.SERVICE, "oak"),
    "oak-teacher": (Role.TEACHER, "oak"),
    "oak-learner": (Role.LEARNER, "oak"),
}


class Visitor:
    """Somebody's browser, without scripts."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def see(self, path: str) -> str:
        """The page; it has to be there."""
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, *, proven: bool = True, **fields: Any) -> httpx.Response:
        """Send a form of one of our pages; `proven=False` leaves out what proves that."""
        proof = {"csrf_token": self.client.cookies["theon_csrf"]} if proven else {}
        return self.client.post(path, data={**fields, **proof}, headers={"Origin": ORIGIN})

    def done(self, path: str, **fields: Any) -> str:
        """Send a form that has to succeed; the words that the next page says about it."""
        answer = self.post(path, **fields)
        assert answer.status_code == 303, answer.text
        found = re.search(
            r'<p class="said" role="status">(.*?)</p>', self.see(answer.headers["location"])
        )
        assert found is not None
        return found[1]


class School:
    """The store, its jobs, and who may visit their pages."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        for slug in ("oak", "elm"):
            add_campus(store, slug, "UTC", slug.capitalize())
        self.app = FastAPI()
        add_sign_in(self.app, Access(store, plain_settings(settings)))
        add_sign_in_pages(self.app)
        add_jobs_pages(self.app, store, KINDS, Scheduler(store, KINDS, ()))

    def add(self, name: str) -> None:
        role, campus = ACCOUNTS[name]
        add_account(self.store, name=name, password=PASSWORD, role=role, campus=campus)

    def visitor(self, name: str) -> Visitor:
        """Somebody who has an account and is signed in."""
        self.add(name)
        client = TestClient(self.app, follow_redirects=False)
        sign_in_by_api(client, name)
        return Visitor(client)

    # -- jobs ------------------------------------------------------------------------------

    def put_many(self, new: Sequence[NewJob]) -> list[int]:
        with self.store.transaction(DISTRICT) as conn:
            return enqueue_many(conn, KINDS, new)

    def put(
        self, kind: str = "reward.points", campus: str = "oak", arguments: Any = None, **how: Any
    ) -> int:
        """A queued job."""
        if arguments is None:
            arguments = {"path": "a.csv"} if kind == "import.rows" else {}
        return self.put_many([NewJob(kind, arguments, campus=campus, **how)])[0]

    def begin(self, *ids: int, worker: str = "w1") -> list[Message]:
        """Let jobs run."""
        with self.store.transaction(DISTRICT) as conn:
            ledger.promote(conn)
            return [a.message for a in ledger.start(conn, ledger.dispatch(conn, ids), worker)]

    def progress(self, message: Message, done: float, total: float | None, operation: str) -> None:
        with self.store.transaction(DISTRICT) as conn:
            ledger.renew(conn, [Progress(message.job_id, message.token, done, total, operation)])

    def end(self, messages: Sequence[Message], outcome: str = "completed", **how: Any) -> None:
        how = {"reason": outcome, "transient": False, **how}
        with self.store.transaction(DISTRICT) as conn:
            ledger.finish(conn, [Outcome(m.job_id, m.token, outcome, **how) for m in messages])

    def running(self, **how: Any) -> tuple[int, Message]:
        job_id = self.put(**how)
        return job_id, self.begin(job_id)[0]

    def failed(self, error: str = "it broke", error_kind: str = "ValueError", **how: Any) -> int:
        job_id, message = self.running(**how)
        stack = f"Traceback\n  {error_kind}: {error}"
        self.end([message], "failed", error=error, error_kind=error_kind, stack=stack)
        return job_id

    def completed(self, result: Any = None, **how: Any) -> int:
        job_id, message = self.running(**how)
        self.end([message], result=result, peak_memory_mb=123.0, cpu_s=4.5)
        return job_id

    def in_state(self, state: str) -> int:
        """A job that has come to this state."""
        if state == "running":
            return self.running()[0]
        if state in ("completed", "failed"):
            return self.completed() if state == "completed" else self.failed()
        job_id = self.put(delay_s=3600.0 if state == "scheduled" else 0.0)
        with self.store.transaction(DISTRICT) as conn:
            if state == "dispatched":
                ledger.dispatch(conn, [job_id])
            if state == "cancelled":
                admin.cancel(conn, [job_id], "somebody")
        return job_id

    def states(self, *ids: int) -> list[str]:
        return [state for (state,) in self.sql(
            "SELECT state FROM theon.jobs JOIN unnest(CAST(:ids AS bigint[])) WITH ORDINALITY"
            " AS i (id, n) USING (id) ORDER BY n", ids=list(ids),
        )]  # fmt: skip

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.store.transaction(DISTRICT) as conn:
            found = conn.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []


@pytest.fixture
def school(store: Store, store_settings: Settings) -> School:
    return School(store, store_settings)


# -- what a page says ----------------------------------------------------------------------


def told(html: str) -> str:
    """All that a page tells, in small letters; without its numbers drawn at random.

    Those may contain any short word, a campus's name among them.
    """
    drawn = r'\bnonce="[^"]*"|\bname="(?:csrf_token|once)" value="[^"]*"'
    return re.sub(drawn, "", html).lower()


def rows_of(html: str) -> list[int]:
    """The ids of the jobs in the table, in order."""
    return [int(found) for found in re.findall(r'<tr id="job-(\d+)"', html)]


def counts_of(html: str) -> dict[str, int]:
    """The counts beside the states; the empty key is all of them."""
    found = re.findall(r'data-state="(\w*)"[^>]*><span>[^<]*</span> <b>([\d,]+)</b>', html)
    return {state: int(number.replace(",", "")) for state, number in found}


def previewed(html: str) -> dict[str, int]:
    found = re.findall(r'<li data-state="(\w+)"><b>([\d,]+)</b>', html)
    return {state: int(number.replace(",", "")) for state, number in found}


class Elements(HTMLParser):
    """The names of the elements and of their attributes in a page, as a browser reads it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


# -- in a real browser ---------------------------------------------------------------------


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of a server of `app` in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def enter(
    browser: Browser, url: str, name: str, path: str, *, width: int = 1280, dark: bool = False
) -> Page:
    """Sign in through the form and go on to `path`."""
    page = browser.open(f"{url}/sign-in?next={path}", width=width, dark=dark)
    page.call("Network.clearBrowserCookies")
    go(page, f"{url}/sign-in?next={path}")
    page.ask(
        f"document.getElementById('name').value = '{name}',"
        f" document.getElementById('password').value = '{PASSWORD}',"
        " document.forms[0].requestSubmit()"
    )
    wait_for(lambda: page.ask("location.pathname + location.search") == path)
    wait_for(lambda: page.ask("document.readyState") == "complete")
    return page


def go(page: Page, url: str) -> None:
    """Follow an address, and wait for its page."""
    page.ask("window.left = true")
    page.call("Page.navigate", {"url": url})
    arrived(page)


def arrived(page: Page) -> None:
    """Wait until a page that was marked with `window.left` was left, and the next is there."""
    wait_for(lambda: page.ask("window.left !== true && document.readyState === 'complete'"))
