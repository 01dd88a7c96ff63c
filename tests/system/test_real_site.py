"""The real Moodle site, source to published metrics, by every road and mixture."""

import csv
import gzip
import itertools
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from theon.intake.pipeline import ingest
from theon.lake.table import EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.export import published_rows
from theon.metrics.refresh import refresh
from theon.metrics.verify import verify
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

pytestmark = pytest.mark.real_data
LONDON = ZoneInfo("Europe/London")
RESOURCES = ["resource", "url", "folder", "page", "book", "imscp", "h5pactivity", "scorm"]
SOURCES: dict[str, dict[str, Any]] = {
    "log": {"location": "logstore_standard_log_43.csv.gz", "format": "moodle-logstore"},
    "course": {"location": "report_log_course.csv", "format": "moodle-report", "course": "6"},
    "site": {"location": "report_log_site.csv", "format": "moodle-report"},
}


class Site:
    """A campus `lincoln` in a lake of its own."""

    def __init__(self, store: Store, settings: Settings, data: Path) -> None:
        self.store, self.settings, self.data = store, settings, data
        self.lake = EventLake(settings)
        add_campus(store, "lincoln", "Europe/London")

    def ingest(self, source: str) -> None:
        options = {**SOURCES[source], "location": str(self.data / SOURCES[source]["location"])}
        ingest(self.store, self.lake, self.settings, campus="lincoln", **options)

    def refresh(self) -> None:
        refresh(self.store, self.lake, self.settings)

    def rows(self, metric: str = "user_course_week") -> list[dict[str, Any]]:
        return published_rows(self.store, load_catalog()[metric], Scope("lincoln")).to_pylist()


@pytest.fixture
def site(store: Store, store_settings: Settings, tmp_path: Path, moodle_data: Path) -> Site:
    return Site(store, store_settings.model_copy(update={"home": tmp_path}), moodle_data)


def weeks_in_words(path: Path) -> dict[tuple[int, int, Any], tuple[Any, ...]]:
    """`user_course_week` straight from the file, row by row, by the definition's words."""
    by_key: dict[tuple[int, int], list[dict[str, str]]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (
                int(row["userid"]) > 1
                and row["anonymous"] == "0"
                and row["realuserid"] == ""
                and row["origin"] in ("web", "ws")
                and int(row["courseid"] or 0) > 1
                and row["component"] not in ("mod_quiz", "mod_assign")
                and "submitted" not in row["eventname"]
            ):
                by_key[int(row["userid"]), int(row["courseid"])].append(row)
    weeks: dict[tuple[int, int, Any], list[Any]] = {}
    for (user, course), rows in by_key.items():
        last = None
        for row in sorted(rows, key=lambda r: int(r["timecreated"])):
            at = int(row["timecreated"])
            day = datetime.fromtimestamp(at, LONDON).date()
            week = weeks.setdefault(
                (user, course, day - timedelta(days=day.weekday())),
                [0, set(), 0, 0, 0, 0, 0, at, at],
            )
            viewed = row["action"] == "viewed"
            week[0] += 1
            week[1].add(day)
            week[2] += at - last if last is not None and at - last <= 1800 else 0
            week[3] += viewed and row["component"] in [f"mod_{r}" for r in RESOURCES]
            week[4] += viewed
            week[5] += viewed and row["component"] == "mod_forum"
            week[6] += row["eventname"] in (
                "\\mod_forum\\event\\discussion_created",
                "\\mod_forum\\event\\post_created",
            )
            week[8] = last = at
    return {k: (w[0], len(w[1]), *w[2:7], *_instants(w[7:])) for k, w in weeks.items()}


def _instants(seconds: list[int]) -> list[datetime]:
    return [datetime.fromtimestamp(s, UTC) for s in seconds]


def published(site: Site) -> dict[tuple[int, int, Any], tuple[Any, ...]]:
    columns = [c.name for c in load_catalog()["user_course_week"].family("activity")]
    return {
        (int(r["user_id"]), int(r["course_id"]), r["week_start"]): tuple(r[c] for c in columns)
        for r in site.rows()
        if r["total_actions"] is not None  # a week with outcomes only
    }


def test_the_log_gives_what_its_rows_say_in_words(site: Site) -> None:
    """Every week of every learner, compared with a reading of the file row by row."""
    site.ingest("log")
    site.refresh()
    expected = weeks_in_words(site.data / SOURCES["log"]["location"])
    assert len(expected) == 168
    assert published(site) == expected


@pytest.mark.parametrize("order", list(itertools.permutations(["log", "course", "site"])))
def test_roads_mixed_in_any_order_count_nothing_twice(site: Site, order: tuple[str, ...]) -> None:
    """Log, course report and site report of one site, refreshed in between: the log's numbers."""
    for source in order:
        site.ingest(source)
        site.refresh()
    assert published(site) == weeks_in_words(site.data / SOURCES["log"]["location"])
    report = verify(site.store, site.lake, site.settings)
    assert report.ok, [d.sentence() for d in report.differences]


def test_a_course_report_differs_only_by_what_it_cannot_tell(site: Site) -> None:
    """Alone, the course's report gives the log's weeks but for anonymous rows and its end."""
    site.ingest("course")
    site.refresh()
    mine = published(site)
    log = weeks_in_words(site.data / SOURCES["log"]["location"])
    course = {k: v for k, v in log.items() if k[1] == 6}
    more = sum(v[0] for v in mine.values()) - sum(v[0] for v in course.values())
    assert more == 42 - 11  # anonymous rows that it shows as named; log rows after the download
    same = [k for k in course if mine.get(k) == course[k]]
    assert len(same) > 0.7 * len(course)


def test_reports_in_either_order_give_the_same(site: Site, store: Store) -> None:
    """Course then site report, or site then course: the same weeks."""
    site.ingest("course")
    site.ingest("site")
    site.refresh()
    first = site.rows()
    add_campus(store, "other", "Europe/London")
    for source in ("site", "course"):
        options = {**SOURCES[source], "location": str(site.data / SOURCES[source]["location"])}
        ingest(store, site.lake, site.settings, campus="other", **options)
    site.refresh()
    second = published_rows(store, load_catalog()["user_course_week"], Scope("other")).to_pylist()
    assert [{**r, "campus": "lincoln"} for r in second] == first
