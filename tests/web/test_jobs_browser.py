"""The pages about jobs in a real browser: they fit, are live, ask first, and ask nobody else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_site import DISTRICT, EVIL, School, arrived, enter, go, served
from running_site import Site
from tests.access.conftest import PASSWORD
from tests.browser import Browser, Page, wait_for

from theon.access.accounts import add_account
from theon.access.roles import Role
from theon.jobs import admin
from theon.jobs.enqueue import NewJob
from theon.settings import Settings
from theon.store.engine import Store

pytestmark = [pytest.mark.service, pytest.mark.slow]


@pytest.fixture
def school(store: Store, store_settings: Settings) -> School:
    school = School(store, store_settings)
    school.add("root")
    return school


@pytest.fixture
def url(school: School) -> Iterator[str]:
    with served(school.app) as address:
        yield address


@pytest.fixture(autouse=True)
def _leave_no_page(browser: Browser) -> Iterator[None]:
    yield
    browser.close_pages()


def state_of(page: Page, job_id: int) -> str | None:
    found: str | None = page.ask(f"document.querySelector('#job-{job_id}')?.dataset.state")
    return found


def count_of(page: Page, state: str) -> int:
    return int(page.ask(f"document.querySelector('[data-state={state}] b').textContent"))


def click(page: Page, selector: str) -> None:
    page.ask(f"document.querySelector({selector!r}).click()")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_its_window_and_asks_nobody_else(
    school: School, url: str, browser: Browser, width: int, dark: bool, tmp_path: Path
) -> None:
    long = "word" * 60
    needs = [school.completed({"rows": 5}), school.put("system.tidy")]
    failed = school.failed(
        f"{long} {EVIL}", kind="import.rows", arguments={"path": long}, owner=EVIL
    )
    running, message = school.running(owner=long)
    school.progress(message, 3, 10, f"reads {long}")
    waiting = school.put(after=needs, owner="ada (account:7)")
    page = enter(browser, url, "root", "/jobs", width=width, dark=dark)
    paths = (
        "/jobs", "/jobs?q=state:failed", "/jobs?q=knd:x", f"/jobs/{failed}", f"/jobs/{running}",
        f"/jobs/{waiting}", f"/jobs/{needs[0]}", "/jobs/run", "/jobs/run?kind=import.rows",
    )  # fmt: skip
    for number, path in enumerate(paths):
        go(page, url + path)
        page.picture(tmp_path / f"{number}.png")
        assert page.sideways_px() == 0, path
        assert page.ask("innerWidth") == width
        assert page.ask("document.querySelectorAll('h1').length") == 1
    go(page, f"{url}/jobs")
    page.ask("window.left = true")
    click(page, "button[value=all]")
    arrived(page)
    assert page.ask("location.pathname") == "/jobs/confirm"
    assert page.sideways_px() == 0
    refused = [
        c for c in page.complaints if "status of 400" not in c
    ]  # of the search without sense
    assert refused == []
    assert page.hosts == {url.removeprefix("http://")}


def test_a_row_is_replaced_when_its_job_changes(school: School, url: str, browser: Browser) -> None:
    """State, counts and new rows come by themselves; what somebody ticked stays as it is."""
    job_id, message = school.running()
    page = enter(browser, url, "root", "/jobs")
    assert state_of(page, job_id) == "running"
    school.end([message])
    wait_for(lambda: state_of(page, job_id) == "completed")
    wait_for(lambda: count_of(page, "completed") == 1)
    click(page, f"#job-{job_id} input")
    new = school.put()
    wait_for(lambda: count_of(page, "queued") == 1)
    assert state_of(page, new) is None
    assert page.ask(f"document.querySelector('#job-{job_id} input').checked")
    click(page, f"#job-{job_id} input")
    page.ask("document.activeElement.blur()")
    wait_for(lambda: state_of(page, new) == "queued")
    assert page.complaints == []


def test_a_job_is_followed_to_its_end(school: School, url: str, browser: Browser) -> None:
    """What was opened stays open, and what was typed stays typed."""
    job_id, message = school.running(kind="import.rows")
    page = enter(browser, url, "root", f"/jobs/{job_id}")
    school.progress(message, 1, 4, "reads rows")
    wait_for(lambda: page.ask("document.querySelector('#job-state progress')?.value") == 1)
    assert "25 %" in page.ask("document.querySelector('#job-state').innerText")
    page.ask("document.querySelector('#cancel-reason').value = 'typed'")
    school.end([message], "failed", error="line 7 is bad", stack="File rows.py")
    wait_for(lambda: page.ask("document.querySelector('#job-state').dataset.state") == "failed")
    wait_for(lambda: page.ask("document.querySelector('#error')?.textContent") == "line 7 is bad")
    assert page.ask("document.querySelector('#cancel-reason').value") == "typed"
    assert page.complaints == []


def test_what_was_typed_stays_where_it_is_refused(
    school: School, url: str, browser: Browser
) -> None:
    """The page with the reason is live but for the form."""
    job_id = school.failed(kind="import.rows")
    page = enter(browser, url, "root", f"/jobs/{job_id}")
    click(page, "#edit summary")
    page.ask("window.left = true, document.querySelector('#arguments').value = '{\"path\": 7}'")
    click(page, "#edit button")
    arrived(page)
    assert "path: Input should be a valid string" in page.ask("fault.innerText")
    with school.store.transaction(DISTRICT) as conn:
        admin.discard(conn, [job_id], "somebody")
    wait_for(lambda: page.ask("document.querySelector('#job-state').dataset.state") == "cancelled")
    assert page.ask("document.querySelector('#arguments').value") == '{"path": 7}'
    assert page.ask("document.querySelector('[data-not-live]').hidden")


def test_a_cancel_asks_first(school: School, url: str, browser: Browser) -> None:
    job_id = school.put()
    page = enter(browser, url, "root", f"/jobs/{job_id}")
    is_open = "document.querySelector('#confirm').open"
    click(page, "[data-do=cancel]")
    assert page.ask(is_open)
    assert f"Cancel job {job_id}" in page.ask("document.querySelector('#confirm').innerText")
    click(page, "[data-answer=no]")
    assert not page.ask(is_open)
    assert school.states(job_id) == ["queued"]
    page.ask("window.left = true")
    click(page, "[data-do=cancel]")
    click(page, "[data-answer=yes]")
    arrived(page)
    assert school.states(job_id) == ["cancelled"]
    assert page.ask("document.querySelector('.said').innerText") == "1 job cancelled."
    assert page.complaints == []


def test_many_are_ticked_confirmed_and_changed(school: School, url: str, browser: Browser) -> None:
    ids = school.put_many([NewJob("reward.points", campus="oak") for _ in range(3)])
    page = enter(browser, url, "root", "/jobs")
    assert page.ask("document.querySelector('#priority').offsetParent === null")
    page.ask(
        "document.querySelector('#action').value = 'prioritise',"
        " document.querySelector('#action').dispatchEvent(new Event('change', {bubbles: true}))"
    )
    assert page.ask("document.querySelector('#priority').offsetParent !== null")
    page.ask("document.querySelector('#priority').value = 'high'")
    click(page, "[data-tick-all]")
    page.ask("window.left = true")
    click(page, "button[value=ticked]")
    arrived(page)
    assert page.ask("document.querySelector('#preview-count').innerText") == "3"
    page.ask("window.left = true")
    click(page, "main button[type=submit]")
    arrived(page)
    assert page.ask("document.querySelector('.said').innerText") == "3 jobs given another priority."
    assert school.sql("SELECT DISTINCT priority FROM theon.jobs") == [(1,)]
    assert school.states(*ids) == ["queued"] * 3
    assert page.complaints == []


def test_a_search_suggests_names_that_there_are(school: School, url: str, browser: Browser) -> None:
    page = enter(browser, url, "root", "/jobs")
    offered = """(words => { const q = document.querySelector('#q'); q.value = words;
        q.dispatchEvent(new Event('input', {bubbles: true}));
        return [...q.list.options].map(option => option.value) })"""
    assert "campus:oak" in page.ask(f"{offered}('')")
    assert page.ask(f"{offered}('state:failed kind:imp')") == [
        "state:failed kind:import", "state:failed kind:import.rows",
    ]  # fmt: skip
    assert page.ask(f"{offered}('campus:el')") == ["campus:elm"]


def test_a_page_without_an_answer_says_that_it_is_not_live(
    school: School, browser: Browser
) -> None:
    with served(school.app) as address:
        page = enter(browser, address, "root", "/jobs")
        assert page.ask("document.querySelector('[data-not-live]').hidden")
    note = "document.querySelector('[data-not-live]:not([hidden])')?.textContent"
    wait_for(lambda: (page.ask(note) or "").startswith("Not live: no answer since"))


def test_a_job_run_from_the_page_is_seen_to_its_end(empty_site: Site, browser: Browser) -> None:
    """From the overview by way of signing in, with a real worker."""
    store = empty_site.theon.store
    role = Role.SYSTEM_ADMINISTRATOR
    add_account(store, name="root", password=PASSWORD, role=role, campus="district")
    overview = browser.open(empty_site.url, width=1280)
    assert overview.ask("document.querySelector('footer a[href=\"/jobs\"]') !== null")
    page = enter(browser, empty_site.url, "root", "/jobs/run?kind=system.health")
    page.ask("window.left = true")
    click(page, "main button[type=submit]")
    arrived(page)
    state = "document.querySelector('#job-state').dataset.state"
    wait_for(lambda: page.ask(state) == "completed")
    wait_for(lambda: page.ask("document.querySelector('#job-result pre') !== null"))
    attempt = page.ask("document.querySelector('#attempts tbody tr').innerText")
    assert "completed" in attempt
    assert " MB" in attempt
    assert page.complaints == []
