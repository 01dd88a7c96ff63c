"""The overview in a real browser: right figures, no scrolling sideways, no complaints."""

from typing import Any

import httpx
import pytest
from running_site import Site
from sqlalchemy import text
from tests.browser import Browser, wait_for

from theon.store.scope import Scope

pytestmark = [pytest.mark.service, pytest.mark.slow]

WIDTHS = (1280, 390)
CARDS = """Object.fromEntries([...document.querySelectorAll('[data-figure]')].map(card =>
    [card.dataset.figure, card.querySelector('.number').firstChild.textContent]))"""
TABLE = """[...document.querySelectorAll('#%s tbody tr')].map(row =>
    [...row.children].map(cell => cell.innerText.trim()))"""


def _sql(site: Site, scope: str, statement: str) -> list[tuple[Any, ...]]:
    with site.theon.store.transaction(Scope(scope)) as conn:
        return [tuple(row) for row in conn.execute(text(statement))]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window_and_asks_nobody_else(
    site: Site, browser: Browser, width: int, dark: bool
) -> None:
    page = browser.open(site.url, width=width, dark=dark)
    assert page.complaints == []
    assert page.hosts == {site.url.removeprefix("http://")}
    assert page.sideways_px() == 0
    assert page.ask("innerWidth") == width
    wait_for(lambda: page.ask("document.querySelectorAll('.nicegui-echart svg path').length") > 20)
    wait_for(lambda: page.ask("document.body.classList.contains('body--dark')") is dark)


@pytest.mark.parametrize("scope", ["district", "harbour", "riverside", "banyan"])
def test_key_figures_are_those_of_the_store(site: Site, browser: Browser, scope: str) -> None:
    page = browser.open(f"{site.url}/?campus={scope}", width=1280)
    learners, hours, actions, posts = _sql(
        site,
        scope,
        "SELECT count(DISTINCT (campus_id, user_id)), sum(time_spent_s) / 3600.0,"
        " sum(total_actions), sum(forum_posts) FROM metrics.user_course_week"
        " WHERE week_start = '2026-11-09'",
    )[0]
    assert learners > 10
    assert hours >= 10  # so that the page counts in hours
    assert page.ask(CARDS) == {
        "learners": f"{learners:,}",
        "time": f"{hours:,.0f}",
        "actions": f"{actions:,}",
        "forum_posts": f"{posts:,}",
    }


def test_courses_are_ranked_by_time_per_learner(site: Site, browser: Browser) -> None:
    page = browser.open(f"{site.url}/?campus=harbour", width=1280)
    shown = page.ask(TABLE % "courses")
    expected = _sql(
        site,
        "harbour",
        "SELECT 'Course ' || course_id, count(DISTINCT user_id)"
        " FROM metrics.user_course_week WHERE week_start = '2026-11-09'"
        " GROUP BY course_id HAVING count(DISTINCT user_id) >= 5"
        " ORDER BY sum(time_spent_s) * 1.0 / count(DISTINCT user_id) DESC LIMIT 10",
    )
    assert [(row[0], int(row[3])) for row in shown] == expected
    assert len(shown) >= 3


def test_what_the_api_does_not_have_it_says_itself(site: Site) -> None:
    """And not a page of HTML, which tells a program nothing."""
    for method, path, status in (
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/events", 405),
    ):
        answer = httpx.request(method, f"{site.url}{path}", trust_env=False)
        assert answer.status_code == status, path
        assert answer.json().keys() == {"error", "next_step"}
    assert answer.headers["allow"] == "POST"
    assert "<html" in httpx.get(f"{site.url}/nothing", trust_env=False).text


def test_learners_who_went_quiet_are_counted(site: Site, browser: Browser) -> None:
    page = browser.open(site.url, width=1280)
    expected = _sql(
        site,
        "district",
        "SELECT count(*) FROM (SELECT campus_id, user_id FROM metrics.user_day"
        " GROUP BY 1, 2 HAVING bool_or(day BETWEEN '2026-10-26' AND '2026-11-01')"
        " AND bool_or(day BETWEEN '2026-11-02' AND '2026-11-08')"
        " AND NOT bool_or(day BETWEEN '2026-11-09' AND '2026-11-15')) AS quiet",
    )[0][0]
    assert expected > 0
    assert page.ask("document.querySelector('#quiet-total').innerText") == f"{expected:,}"


def test_the_table_under_a_chart_holds_the_same_numbers(site: Site, browser: Browser) -> None:
    page = browser.open(f"{site.url}/?campus=banyan", width=1280)
    shown = page.ask(
        "[...document.querySelector('figure details tbody').rows].map(r => r.cells[1].textContent)"
    )
    weeks = _sql(
        site,
        "banyan",
        "SELECT count(DISTINCT user_id) FROM metrics.user_course_week"
        " GROUP BY week_start ORDER BY week_start",
    )
    assert shown == [f"{learners:,}" for (learners,) in weeks]
    assert len(shown) == 5


def test_an_earlier_week_is_a_link_away(site: Site, browser: Browser) -> None:
    page = browser.open(site.url, width=1280)
    link = page.ask("document.querySelector('.weeks a[rel=prev]').getAttribute('href')")
    earlier = browser.open(site.url + link, width=1280)
    assert "2 to 8 November 2026" in earlier.ask("document.querySelector('.period').innerText")
    assert earlier.ask(CARDS) != page.ask(CARDS)


def test_a_screen_reader_finds_headings_tables_and_words_for_pictures(
    site: Site, browser: Browser
) -> None:
    page = browser.open(site.url, width=1280)
    assert page.ask("document.documentElement.lang") == "en-US"
    levels = page.ask("[...document.querySelectorAll('h1, h2, h3')].map(h => h.tagName)")
    assert levels[0] == "H1"
    assert levels.count("H1") == 1
    assert len(levels) >= 7
    charts = page.ask(
        "[...document.querySelectorAll('.nicegui-echart')]"
        ".map(c => [c.getAttribute('role'), c.getAttribute('aria-label').length > 30])"
    )
    assert charts == [["img", True], ["img", True]]
    cells = "table tr > :first-child:not(th[scope]), thead > tr > :not(th[scope=col])"
    assert page.ask(f'document.querySelectorAll("{cells}").length') == 0


def test_names_are_shown_as_they_are_written(site: Site, browser: Browser) -> None:
    page = browser.open(f"{site.url}/?campus=empty", width=390)
    assert page.ask("document.querySelector('h1').innerText") == "Empty <img src=x> Hall"
    assert page.ask("document.querySelectorAll('.theon img').length") == 0
    assert "theon ingest" in page.ask("document.querySelector('.first-steps').innerText")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("campus=nowhere", "there is no campus 'nowhere'"),
        ("week=2020-01-06", "there is no activity in the week of 2020-01-06"),
        ("week=soon", "'soon' is not a date"),
    ],
)
def test_a_page_that_cannot_be_says_so(site: Site, browser: Browser, query: str, said: str) -> None:
    page = browser.open(f"{site.url}/?{query}", width=1280)
    assert said in page.ask("document.querySelector('.theon').innerText")


@pytest.mark.parametrize("width", WIDTHS)
def test_an_empty_installation_says_what_to_do_first(
    empty_site: Site, browser: Browser, width: int
) -> None:
    page = browser.open(empty_site.url, width=width)
    said = page.ask("document.querySelector('.first-steps').innerText")
    for step in ("theon campus add", "theon ingest", "theon metrics refresh", "theon demo"):
        assert step in said
    assert page.complaints == []
    assert page.sideways_px() == 0
