"""The pages about jobs as a whole over a busy ledger, and how tests read them."""

import re
from html import unescape

from fastapi import FastAPI
from fastapi.testclient import TestClient
from jobs_ledger_of_a_day import EVIL, KINDS, SCHEDULES, Ledger, fill
from jobs_site import Visitor
from tests.access.conftest import PASSWORD, plain_settings, sign_in

from theon.access.accounts import add_account
from theon.access.requests import Access
from theon.access.roles import Role
from theon.api.sign_in import add_sign_in
from theon.jobs.schedules import Scheduler
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.web.jobs_pages import add_jobs_pages
from theon.web.sign_in import add_sign_in_pages

PAGES = ("/queues", "/schedules", "/dead-letters", "/health-of-jobs")
ACCOUNTS = {
    "ada": (Role.SYSTEM_ADMINISTRATOR, "district"),
    "olga": (Role.CAMPUS_ADMINISTRATOR, "oak"),
    "eli": (Role.CAMPUS_ADMINISTRATOR, "elm"),
    "sam": (Role.SERVICE, "oak"),
    "tom": (Role.TEACHER, "oak"),
    "lea": (Role.LEARNER, "oak"),
}


class Pages:
    """The pages over a store with the campuses oak and elm, and who may visit them."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        add_campus(store, "oak", "Europe/London", f"Oak {EVIL}")
        add_campus(store, "elm", "America/New_York", "Elm")
        self.ledger = Ledger(store)
        self.scheduler = Scheduler(store, KINDS, SCHEDULES)
        self.app = FastAPI()
        add_sign_in(self.app, Access(store, plain_settings(settings)))
        add_sign_in_pages(self.app)
        add_jobs_pages(self.app, store, KINDS, self.scheduler)

    def fill(self) -> None:
        """A busy hour, and seven hours in which no scheduler ran."""
        fill(self.store)
        self.scheduler.tick()
        self.ledger.do(
            "UPDATE theon.job_schedules SET seen_until = clock_timestamp() - interval '7 hours'"
        )
        self.scheduler.tick()

    def add(self, name: str) -> None:
        """An account, unless it is there."""
        role, campus = ACCOUNTS[name]
        if not self.ledger.do("SELECT FROM theon.accounts WHERE name = :name", name=name):
            add_account(self.store, name=name, password=PASSWORD, role=role, campus=campus)

    def visitor(self, name: str) -> Visitor:
        """Somebody who is signed in."""
        self.add(name)
        client = TestClient(self.app, follow_redirects=False)
        sign_in(client, name)
        self.ledger.beat()  # to sign in takes its time
        return Visitor(client)

    def stranger(self) -> TestClient:
        return TestClient(self.app, follow_redirects=False)

    def audit(self) -> list[tuple[str, str, str, str]]:
        """Actor, action, subject and campus of every line of the record."""
        return [
            tuple(row)
            for row in self.ledger.do(
                "SELECT a.actor, a.action, a.subject, c.slug FROM theon.job_audit AS a"
                " JOIN theon.campuses AS c ON c.id = a.campus_id ORDER BY a.id"
            )
        ]


def words(html: str) -> str:
    """What somebody reads in a piece of HTML, which may begin inside a tag."""
    html = re.sub(r"^[^<>]*>", "", html)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def part(html: str, start: str, end: str) -> str:
    """From the first `start` to the `end` that follows."""
    assert start in html, f"{start} is not there"
    return html[html.index(start) :].partition(end)[0]


def row(html: str, attribute: str, value: str) -> str:
    """The table row that is marked so."""
    return part(html, f'<tr data-{attribute}="{value}"', "</tr>")


def figure(html: str, name: str, mark: str = "figure") -> str:
    """What stands in the cell or element that is marked so."""
    found = re.search(rf'data-{mark}="{name}"[^>]*>(.*?)</(?:td|dd|span)>', html, re.DOTALL)
    assert found is not None, f"{name} is not there"
    return words(found[1])
