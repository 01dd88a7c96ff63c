"""The charts of the overview, as options for Apache ECharts, with their meaning in words."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from theon.web.figures import HEAT_WEEKS, Overview
from theon.web.words import describe_change, time_unit

BLUE = "#2563eb"
ORANGE = "#ea580c"
# These two are swapped by the style sheet, which knows whether the page is dark.
TEXT = {"fontFamily": "inherit", "fontSize": 12, "color": "#475467"}
LABEL = {"color": "#475467"}
RULE = {"lineStyle": {"color": "#dde3ee"}}
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class Chart:
    """A chart, what it shows in a sentence, and its numbers as a table.

    Attributes:
        key: short name, used as an element id.
        title: heading.
        words: the sentence; also what a screen reader says instead of the picture.
        options: for ECharts.
        columns: headings of the table.
        rows: its cells.
    """

    key: str
    title: str
    words: str
    options: dict[str, Any]
    columns: list[str]
    rows: list[list[str]]


def trend_chart(overview: Overview) -> Chart:
    """Active learners as bars and hours as a line, a point per week."""
    weeks = overview.trend
    last, first = weeks[-1], weeks[0]
    unit = time_unit(max(week.seconds for week in weeks))
    learned = f"{unit.name.capitalize()} learned"
    busiest = max(weeks, key=lambda week: week.learners)
    change = describe_change(last.learners, first.learners) if len(weeks) > 1 else None
    words = (
        f"{last.learners:,} learners were active in the week of {_short(last.start)}"
        + (f", {first.learners:,} in the week of {_short(first.start)}" if change else "")
        + f"; the most were {busiest.learners:,} in the week of {_short(busiest.start)}."
    )
    labels = [_short(week.start) for week in weeks]
    options = {
        "textStyle": TEXT,
        "animation": False,
        "grid": {"left": 8, "right": 8, "top": 44, "bottom": 4, "containLabel": True},
        "legend": {"top": 0, "left": 0, "itemWidth": 14, "itemHeight": 10, "textStyle": LABEL},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "category",
            "data": labels,
            "axisTick": {"show": False},
            "axisLabel": LABEL,
            "axisLine": RULE,
        },
        "yAxis": [
            {
                "type": "value",
                "minInterval": 1,
                "splitNumber": 4,
                "axisLabel": LABEL,
                "splitLine": RULE,
            },
            {"type": "value", "splitNumber": 4, "axisLabel": LABEL, "splitLine": {"show": False}},
        ],
        "series": [
            {
                "name": "Active learners",
                "type": "bar",
                "data": [week.learners for week in weeks],
                "barMaxWidth": 38,
                "itemStyle": {"color": BLUE, "borderRadius": [4, 4, 0, 0]},
            },
            {
                "name": learned,
                "type": "line",
                "yAxisIndex": 1,
                "data": [unit.of(week.seconds) for week in weeks],
                "symbol": "circle",
                "symbolSize": 8,
                "lineStyle": {"width": 3},
                "itemStyle": {"color": ORANGE},
            },
        ],
    }
    rows = [[_short(w.start), f"{w.learners:,}", f"{unit.of(w.seconds):,}"] for w in weeks]
    return Chart(
        "trend",
        f"Learners and {unit.name}, week by week",
        words,
        options,
        ["Week of", "Active learners", learned],
        rows,
    )


def weekday_chart(overview: Overview) -> Chart:
    """Time learned by weekday of the last weeks, as a heat map."""
    shown = overview.shown
    starts = [
        week.start
        for week in overview.trend
        if shown and shown.start - week.start < timedelta(days=7 * HEAT_WEEKS)
    ]
    spent_s = {
        (week, day): overview.days.get(start + timedelta(days=day), 0)
        for week, start in enumerate(starts)
        for day in range(7)
    }
    largest_s = max(*spent_s.values(), 1)
    unit = time_unit(largest_s)
    learned = f"{unit.name.capitalize()} learned"
    totals = [sum(spent_s[week, day] for week in range(len(starts))) for day in range(7)]
    words = "No time was counted in these weeks."
    if any(totals):
        busiest = date(2024, 1, 1 + totals.index(max(totals)))  # 1 January 2024 was a Monday
        words = (
            f"{busiest:%A} is the busiest day; {sum(totals[5:]) / sum(totals):.0%} of the time "
            "is on Saturday and Sunday."
        )
    # Labels are dark on the lighter half of the scale and white on the darker one.
    dark_from = 0.55 * largest_s
    labels = [_short(start) for start in starts]
    options = {
        "textStyle": TEXT,
        "animation": False,
        "grid": {"left": 8, "right": 8, "top": 8, "bottom": 4, "containLabel": True},
        "tooltip": {"confine": True},
        "xAxis": {
            "type": "category",
            "data": list(WEEKDAYS),
            "axisTick": {"show": False},
            "axisLine": {"show": False},
            "axisLabel": LABEL,
        },
        "yAxis": {
            "type": "category",
            "data": labels,
            "inverse": True,
            "axisTick": {"show": False},
            "axisLine": {"show": False},
            "axisLabel": LABEL,
        },
        "visualMap": {
            "show": False,
            "min": 0,
            "max": max(unit.of(largest_s), 1),
            "inRange": {"color": ["#dbeafe", "#a5c8fd", "#3b6fe0", "#1e40af"]},
        },
        "series": [
            {
                "name": learned,
                "type": "heatmap",
                "data": [
                    {
                        "value": [day, week, unit.of(seconds)],
                        "label": {"color": "#ffffff" if seconds > dark_from else "#172554"},
                    }
                    for (week, day), seconds in spent_s.items()
                ],
                "label": {"show": True, "fontSize": 12},
                "itemStyle": {"borderWidth": 2, "borderColor": "transparent", "borderRadius": 5},
            }
        ],
    }
    rows = [
        [label, *(f"{unit.of(spent_s[week, day]):,}" for day in range(7))]
        for week, label in enumerate(labels)
    ]
    return Chart("weekdays", f"{learned}, day by day", words, options, ["Week of", *WEEKDAYS], rows)


def sparkline(values: list[float], width: int = 120, height: int = 28) -> str:
    """The points of an SVG polyline that shows `values`; empty for fewer than two."""
    if len(values) < 2:
        return ""
    top = max(values) or 1.0
    step = (width - 4) / (len(values) - 1)
    return " ".join(
        f"{2 + place * step:.1f},{height - 3 - value / top * (height - 6):.1f}"
        for place, value in enumerate(values)
    )


def _short(day: date) -> str:
    return f"{day.day} {day:%b}"
