"""The pages. They read PostgreSQL through a scope and nothing else."""

import asyncio
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from nicegui import ui

from theon.errors import InputError, TheonError
from theon.metrics.catalog import load_catalog
from theon.store.engine import Store
from theon.store.scope import DISTRICT
from theon.web import words
from theon.web.charts import Chart, sparkline, trend_chart, weekday_chart
from theon.web.figures import LEAST_LEARNERS, Overview, Week, read_overview

STYLE = Path(__file__).with_name("overview.css")
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


def add_pages(app: FastAPI, store: Store) -> None:
    """Put the pages onto `app`: `/` with `?campus=<slug>` and `?week=<Monday>`."""

    @ui.page("/", title="Theon", response_timeout=30)
    async def overview_page(campus: str = DISTRICT, week: str = "") -> None:
        ui.add_css(STYLE)
        with ui.element("main").classes("theon"):
            try:
                monday = _read_week(week)
                overview = await asyncio.to_thread(read_overview, store, campus=campus, week=monday)
            except TheonError as error:
                _show_failure(error)
                return
            _show(overview, monday)

    ui.run_with(
        app,
        title="Theon",
        favicon=ICON,
        dark=None,
        tailwind=False,
        language="en-US",
        show_welcome_message=False,
    )


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
    _html("failure.html", error=error)


def _show(overview: Overview, monday: date | None) -> None:
    def link(campus: str = overview.scope.slug, week: date | None = monday) -> str:
        query = {} if campus == DISTRICT else {"campus": campus}
        if week is not None:
            query["week"] = week.isoformat()
        return "/?" + urlencode(query) if query else "/"

    shown = overview.shown
    _html(
        "head.html",
        o=overview,
        link=link,
        period=words.week_name(shown.start, shown.last_day) if shown else "",
        previous=overview.neighbour(-1),
        next=overview.neighbour(1),
        cards=_cards(overview),
        example=next((c.slug for c in overview.campuses if c.parent is not None), "lincoln"),
    )
    if shown is not None:
        with ui.element("div").classes("charts"):
            _show_chart(trend_chart(overview))
            _show_chart(weekday_chart(overview))
        with ui.element("div").classes("tables"):
            _html(
                "tables.html",
                o=overview,
                link=link,
                least=LEAST_LEARNERS,
                several=len(overview.campus_rows) > 1,
                quiet_total=sum(len(group.user_ids) for group in overview.quiet),
                describe_change=words.describe_change,
                duration=words.duration,
            )
    catalog = load_catalog()
    metrics = [catalog[name] for name in EXPLAINED if name in catalog]
    _html("foot.html", f=overview.freshness, moment=_moment, metrics=metrics)


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


def _show_chart(chart: Chart) -> None:
    with ui.element("figure").classes("panel").props(f"aria-labelledby={chart.key}-title"):
        _html("title.html", chart=chart)
        picture = ui.echart(chart.options, renderer="svg").classes(f"theon-{chart.key}")
        picture.props["role"] = "img"
        picture.props["aria-label"] = chart.words
        _html("chart.html", chart=chart)


def _html(template: str, **values: object) -> None:
    # Not cleaned again in the browser: the templates are ours and every value is escaped.
    ui.html(_templates.get_template(template).render(**values), sanitize=False)


def _moment(at: datetime | None) -> str:
    return f"{at.day} {at:%B %Y, %H:%M} UTC" if at else "never"
