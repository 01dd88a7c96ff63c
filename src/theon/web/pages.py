"""The pages. They read PostgreSQL through a scope and nothing else."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from nicegui import background_tasks, ui
from starlette.routing import Mount

from theon.errors import InputError, TheonError
from theon.metrics.catalog import load_catalog
from theon.metrics.headline import Headline
from theon.metrics.live import LiveHub
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope
from theon.web import words
from theon.web.charts import Chart, sparkline, trend_chart, weekday_chart
from theon.web.figures import LEAST_LEARNERS, Overview, Week, read_overview
from theon.web.following import Follower, Readings, View

STYLE = Path(__file__).with_name("overview.css")
SCRIPT = Path(__file__).with_name("overview_script.js")
EXPLAINED = ("campus_week", "course_week", "course_day", "user_course_week")
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="8" fill="#1d4ed8"/><path d="M8 22V15m8 7V9m8 13V12" stroke="#fff" stroke-width="4" '
    'stroke-linecap="round"/></svg>'
)

_templates = Environment(
    loader=PackageLoader("theon.web"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def add_pages(app: FastAPI, store: Store, hub: LiveHub) -> None:
    """Put the pages onto `app`: `/` with `?campus=<slug>` and `?week=<Monday>`.

    Who has a page open sees it move when metrics in view change; `hub` tells when they do. The
    pages ask nobody to sign in, and their updates show no more than they do.
    """
    readings = Readings(store)

    @ui.page("/", title="Theon", response_timeout=30)
    async def overview_page(campus: str = DISTRICT, week: str = "") -> None:
        ui.add_css(STYLE)
        ui.add_body_html(f"<script>{SCRIPT.read_text('utf-8')}</script>")
        with ui.element("main").classes("theon"):
            try:
                view = View(campus, _read_week(week))
                overview = await asyncio.to_thread(
                    read_overview, store, campus=campus, week=view.week
                )
                headline = await asyncio.to_thread(hub.read, Scope(campus))
            except TheonError as error:
                _show_failure(error)
                return
            page = OverviewPage(view, overview, headline)
        follower = Follower(hub, readings, view, page.show, page.show_now, page.show_away)
        following = background_tasks.create(
            follower.follow(ui.context.client), name="follow the metrics"
        )
        ui.context.client.on_delete(following.cancel)

    ui.run_with(
        app,
        title="Theon",
        favicon=ICON,
        dark=None,
        tailwind=False,
        language="en-US",
        show_welcome_message=False,
    )
    # They take every path that is left, except those that programs ask for: of these the API says
    # itself what it does not have.
    taking = app.router.routes[-1]
    assert isinstance(taking, Mount)  # noqa: S101 - tells the type
    taking.path_regex = re.compile(r"^(?!/api/)/(?P<path>.*)$")


def _read_week(week: str) -> date | None:
    try:
        return date.fromisoformat(week) if week else None
    except ValueError as error:
        raise InputError(
            f"{week!r} is not a date",
            where="page",
            next_step="Weeks are named by their Monday, such as 2026-09-14.",
        ) from error


def _show_failure(error: TheonError) -> None:
    ui.html(_render("failure.html", error=error), sanitize=False)


class OverviewPage:
    """One open overview; made inside its place on the page, and brought up to date by `show`."""

    def __init__(self, view: View, overview: Overview, headline: Headline) -> None:
        """Show it for the first time."""
        self._view = view
        self._headline = headline
        self._is_away = False
        self._had_week = overview.shown is not None
        self._parts: dict[str, tuple[ui.html, str]] = {}
        self._charts: dict[str, tuple[ui.echart, Chart]] = {}
        parts = _parts(overview, view.week) | _chart_parts(overview)
        self._add("head", parts)
        self._add("live", {"live": self._live()})
        self._add("cards", parts)
        if overview.shown is not None:
            with ui.element("div").classes("charts"):
                for chart in _charts(overview):
                    self._add_chart(chart, parts)
            with ui.element("div").classes("tables"):
                self._add("tables", parts)
        self._add("foot", parts)

    def show_now(self, headline: Headline) -> None:
        """Bring the figures of now to what they are, unless newer ones are there."""
        if headline.position >= self._headline.position:
            self._headline = headline
        self._is_away = False
        self._patch("live", self._live())

    def show(self, overview: Overview) -> None:
        """Bring what differs to what is now."""
        if (overview.shown is not None) is not self._had_week:
            ui.navigate.reload()  # the first activity: there is more to show than parts
            return
        self.show_now(self._headline)  # the database is there
        parts = _parts(overview, self._view.week) | _chart_parts(overview)
        for key, html in parts.items():
            self._patch(key, html)
        for chart in _charts(overview):
            picture, last = self._charts[chart.key]
            if chart != last:
                self._charts[chart.key] = picture, chart
                picture.options.clear()
                picture.options.update(chart.options)
                picture.props["aria-label"] = chart.words
                picture.update()

    def show_away(self) -> None:
        """Say that the database cannot be reached; the figures stay as they were."""
        self._is_away = True
        self._patch("live", self._live())

    def _live(self) -> str:
        monday = self._headline.read_at.date()
        monday -= timedelta(days=monday.weekday())
        has_week = self._headline.week.learners > 0 and self._view.week != monday
        return _render(
            "live.html",
            h=self._headline,
            away=self._is_away,
            moment=_second,
            duration=words.duration,
            this_week=_link(self._view.campus, monday) if has_week else None,
        )

    def _add(self, key: str, parts: dict[str, str]) -> None:
        if key in parts:
            # Not cleaned again in the browser: the templates are ours, every value is escaped.
            self._parts[key] = ui.html(parts[key], sanitize=False), parts[key]

    def _add_chart(self, chart: Chart, parts: dict[str, str]) -> None:
        with ui.element("figure").classes("panel").props(f"aria-labelledby={chart.key}-title"):
            self._add(f"{chart.key} title", parts)
            picture = ui.echart(chart.options, renderer="svg").classes(f"theon-{chart.key}")
            picture.props["role"] = "img"
            picture.props["aria-label"] = chart.words
            self._charts[chart.key] = picture, chart
            self._add(f"{chart.key} words", parts)

    def _patch(self, key: str, html: str) -> None:
        place, last = self._parts[key]
        if html != last:
            self._parts[key] = place, html
            ui.run_javascript(f"theonPatch({json.dumps(place.html_id)}, {json.dumps(html)})")


def _link(campus: str, week: date | None) -> str:
    query = {} if campus == DISTRICT else {"campus": campus}
    if week is not None:
        query["week"] = week.isoformat()
    return "/?" + urlencode(query) if query else "/"


def _parts(overview: Overview, monday: date | None) -> dict[str, str]:
    """The parts of the page that are HTML, by name."""

    def link(campus: str = overview.scope.slug, week: date | None = monday) -> str:
        return _link(campus, week)

    shown = overview.shown
    head = {
        "o": overview,
        "link": link,
        "period": words.week_name(shown.start, shown.last_day) if shown else "",
        "previous": overview.neighbour(-1),
        "next": overview.neighbour(1),
        "cards": _cards(overview),
        "example": next((c.slug for c in overview.campuses if c.parent is not None), "lincoln"),
    }
    catalog = load_catalog()
    metrics = [catalog[name] for name in EXPLAINED if name in catalog]
    parts = {
        "head": _render("head.html", **head),
        "cards": _render("cards.html", **head),
        "foot": _render("foot.html", f=overview.freshness, moment=_moment, metrics=metrics),
    }
    if shown is not None:
        parts["tables"] = _render(
            "tables.html",
            o=overview,
            link=link,
            least=LEAST_LEARNERS,
            several=len(overview.campus_rows) > 1,
            quiet_total=sum(len(group.user_ids) for group in overview.quiet),
            describe_change=words.describe_change,
            duration=words.duration,
        )
    return parts


def _charts(overview: Overview) -> list[Chart]:
    if overview.shown is None:
        return []
    return [trend_chart(overview), weekday_chart(overview)]


def _chart_parts(overview: Overview) -> dict[str, str]:
    parts: dict[str, str] = {}
    for chart in _charts(overview):
        parts[f"{chart.key} title"] = _render("title.html", chart=chart)
        parts[f"{chart.key} words"] = _render("chart.html", chart=chart)
    return parts


def _cards(overview: Overview) -> list[dict[str, Any]]:
    shown, before = overview.shown, overview.before
    if shown is None:
        return []
    unit = words.time_unit(shown.seconds)
    time_label = f"{unit.name.capitalize()} learned"
    kinds: tuple[tuple[str, str, str, Callable[[Week], float], float], ...] = (
        ("learners", "Active learners", "", lambda week: week.learners, 1),
        ("time", time_label, unit.short, lambda week: week.seconds, unit.seconds),
        ("actions", "Actions", "", lambda week: week.actions, 1),
        ("forum_posts", "Forum posts", "", lambda week: week.forum_posts, 1),
    )
    return [
        {
            "key": key,
            "label": label,
            "unit": short,
            "number": f"{value(shown) / size:,.0f}",
            "change": words.describe_change(value(shown), value(before) if before else None),
            "spark": sparkline([value(week) for week in overview.trend]),
        }
        for key, label, short, value, size in kinds
    ]


def _render(template: str, **values: object) -> str:
    return _templates.get_template(template).render(**values)


def _moment(at: datetime | None) -> str:
    return f"{at.day} {at:%B %Y, %H:%M} UTC" if at else "never"


def _second(at: datetime) -> str:
    return f"{at:%H:%M:%S} UTC on {at.day} {at:%B}"
