"""A small simulated district, taken all the way to published metrics, and its page."""

from collections.abc import Iterator
from datetime import date

import pytest
from jobs_site import school
from running_site import Site, home_settings, serving
from tests.browser import Browser, chromium

from theon.bootstrap import Theon, open_theon
from theon.intake.pipeline import ingest
from theon.metrics.refresh import refresh
from theon.roster.campuses import add_campus
from theon.simulation import plan_district, write_district

__all__ = ["school"]  # a fixture; pytest finds it here

UNTIL = date(2026, 11, 15)


@pytest.fixture(scope="session")
def district(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theon]:
    """Three campuses, 120 learners, five weeks: ingested, refreshed, late events included."""
    folder = tmp_path_factory.mktemp("district")
    plan = plan_district(until=UNTIL, learners=120, courses=9, weeks=5)
    deliveries = write_district(plan, folder / "logs")
    with open_theon(home_settings(folder / "home")) as theon:
        for delivery in deliveries:
            campus = delivery.campus
            add_campus(theon.store, campus.slug, campus.timezone, campus.name)
            for path in (delivery.main, delivery.late):
                ingest(
                    theon.store,
                    theon.lake,
                    theon.settings,
                    location=str(path),
                    format="moodle-logstore",
                    campus=campus.slug,
                )
        refresh(theon.store, theon.lake, theon.settings)
        # A name that would be a picture if it reached the page as it is.
        add_campus(theon.store, "empty", "UTC", "Empty <img src=x> Hall")
        yield theon


@pytest.fixture(scope="session")
def site(district: Theon) -> Iterator[Site]:
    with serving(district) as running:
        yield running


@pytest.fixture(scope="session")
def empty_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("empty")
    with open_theon(home_settings(home)) as theon, serving(theon) as running:
        yield running


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("there is no Chromium on this machine")
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
