"""The pages of deliveries in a real browser: they fit, are live, and ask before they act."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from delivery_site import AT, DeliverySite
from jobs_site import arrived, enter, go, served
from tests.browser import Browser, wait_for

from theon.settings import Settings
from theon.store.engine import Store

pytestmark = [pytest.mark.service, pytest.mark.slow]


@pytest.fixture
def site(store: Store, store_settings: Settings) -> DeliverySite:
    found = DeliverySite(store, store_settings)
    found.fill()
    for name in ("ada", "olga"):
        found.add(name)
    return found


@pytest.fixture
def url(site: DeliverySite) -> Iterator[str]:
    with served(site.app) as address:
        yield address


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_its_window_and_asks_nobody_else(
    url: str, site: DeliverySite, browser: Browser, width: int, dark: bool, tmp_path: Path
) -> None:
    long = "word" * 60
    letter = site.send("oak", long.encode(), source=f"http:{long}")[-1]
    site.gap("oak", long, first=90)
    page = enter(browser, url, "ada", "/delivery", width=width, dark=dark)
    for number, path in enumerate(
        ("/delivery", "/delivery/dead-letters", f"/delivery/dead-letters/{letter}")
    ):
        go(page, url + path)
        page.picture(tmp_path / f"delivery-{number}-{width}-{'dark' if dark else 'light'}.png")
        assert page.sideways_px() == 0, path
        assert page.ask("document.querySelectorAll('h1').length") == 1
    assert page.complaints == []
    assert page.hosts == {url.removeprefix("http://")}


def test_figures_follow_by_themselves(url: str, site: DeliverySite, browser: Browser) -> None:
    page = enter(browser, url, "ada", "/delivery")
    accepted = "document.querySelector('#pending').textContent"
    before = int(page.ask(accepted))
    site.send("oak", {"id": "new", "at": AT})
    wait_for(lambda: int(page.ask(accepted)) == before + 1)
    assert page.complaints == []


def test_a_discard_asks_first(url: str, site: DeliverySite, browser: Browser) -> None:
    letter = site.send("oak", b"x")[-1]
    page = enter(browser, url, "olga", f"/delivery/dead-letters/{letter}")
    page.ask("document.querySelector('button.danger').click()")
    assert page.ask("document.querySelector('#confirm').open")
    page.ask("document.querySelector('[data-answer=no]').click()")
    assert site.letter(letter).state == "waiting"
    page.ask("window.left = true")
    page.ask("document.querySelector('button.danger').click()")
    page.ask("document.querySelector('[data-answer=yes]').click()")
    arrived(page)
    assert site.letter(letter).state == "discarded"
