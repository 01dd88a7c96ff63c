"""Pages about jobs as a whole in a real browser: they fit, are live, and ask before they act."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_overviews_site import PAGES, Pages
from jobs_site import arrived, enter, go, served
from tests.browser import Browser, wait_for

from theon.jobs.enqueue import NewJob
from theon.settings import Settings
from theon.store.engine import Store

pytestmark = [pytest.mark.service, pytest.mark.slow]

GROUP = "/dead-letters?kind=import.slow&error=LineError"


@pytest.fixture
def pages(store: Store, store_settings: Settings) -> Pages:
    found = Pages(store, store_settings)
    found.fill()
    for name in ("ada", "olga"):
        found.add(name)
    return found


@pytest.fixture
def url(pages: Pages) -> Iterator[str]:
    with served(pages.app) as address:
        yield address


@pytest.mark.parametrize("name", ["ada", "olga"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_its_window_and_asks_nobody_else(
    url: str, pages: Pages, browser: Browser, width: int, dark: bool, name: str, tmp_path: Path
) -> None:
    long = "word" * 60
    pages.ledger.add_worker(long)
    pages.ledger.ran("test.count", {"failed": 1}, seconds=2, error_kind=long, error=long)
    page = enter(browser, url, name, "/queues", width=width, dark=dark)
    for number, path in enumerate((*PAGES, GROUP, "/health-of-jobs?window=week")):
        go(page, url + path)
        tone = "dark" if dark else "light"
        page.picture(tmp_path / f"{name}-{number}-{width}-{tone}.png")
        assert page.sideways_px() == 0, path
        assert page.ask("document.querySelectorAll('h1').length") == 1
        crowded = """[...document.querySelectorAll('main button, main .state')].filter(
            e => e.getClientRects().length && e.clientWidth > 0 && e.scrollWidth > e.clientWidth)
            .length"""
        assert page.ask(crowded) == 0
    assert page.complaints == []
    assert page.hosts == {url.removeprefix("http://")}


def test_figures_follow_the_ledger_by_themselves(url: str, pages: Pages, browser: Browser) -> None:
    page = enter(browser, url, "ada", "/queues")
    total = "Number(document.querySelector('#total-queued').textContent)"
    before = page.ask(total)
    page.ask("document.querySelector('#gone-workers').open = true")
    pages.ledger.put(NewJob("test.count", campus="oak"))
    wait_for(lambda: page.ask(total) == before + 1)
    assert page.ask("document.querySelector('#gone-workers').open")
    assert page.complaints == []


def test_a_queue_is_paused_after_a_question(url: str, pages: Pages, browser: Browser) -> None:
    page = enter(browser, url, "ada", "/queues")
    button = "document.querySelector('[data-queue=test] form button')"
    page.ask(f"{button}.click()")
    assert page.ask("document.querySelector('#confirm').open")
    assert "Pause the queue test" in page.ask("document.querySelector('#confirm').innerText")
    page.ask("document.querySelector('[data-answer=no]').click()")
    assert len(pages.ledger.do("SELECT FROM theon.job_pauses")) == 2
    page.ask("window.left = true")
    page.ask(f"{button}.click()")
    page.ask("document.querySelector('[data-answer=yes]').click()")
    arrived(page)
    assert "The queue test is paused" in page.ask("document.querySelector('.said').innerText")
    assert "paused" in page.ask("document.querySelector('[data-queue=test]').innerText")
    assert len(pages.ledger.do("SELECT FROM theon.job_pauses")) == 3
    assert page.complaints == []


def test_a_group_is_retried_after_a_note_and_a_question(
    url: str, pages: Pages, browser: Browser
) -> None:
    page = enter(browser, url, "ada", "/dead-letters")
    go(page, url + GROUP)
    button = "document.querySelector('[formaction$=retry]')"
    page.ask(f"{button}.click()")
    assert not page.ask("document.querySelector('#confirm').open")  # the note is missing
    page.ask("document.querySelector('#note').value = 'mended'")
    page.ask("window.left = true")
    page.ask(f"{button}.click()")
    question = page.ask("document.querySelector('#confirm').innerText")
    assert "Run 2 dead letters of import.slow, LineError again?" in question
    page.ask("document.querySelector('[data-answer=yes]').click()")
    arrived(page)
    said = page.ask("document.querySelector('.said').innerText")
    assert said == "2 jobs are to run again."
    assert page.complaints == []
