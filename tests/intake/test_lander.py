"""Accepted events land while more keep coming, and their files stay few."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from arriving import arrival

from theon import pipeline
from theon.errors import UnavailableError
from theon.intake.door import accept
from theon.intake.journal import LANDING_EVENTS
from theon.intake.landing import Landed, land
from theon.lake.table import EventLake
from theon.metrics.catalog import load_catalog
from theon.metrics.export import published_rows
from theon.metrics.headline import read_headline
from theon.metrics.refresh import refresh
from theon.pipeline import LANDINGS_TO_MERGE, Lander, land_all
from theon.roster.campuses import get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

NOW = int(time.time()) - 60


def send(store: Store, slug: str, event_id: str) -> None:
    campus = get_campus(store, slug)
    with store.transaction(Scope(slug)) as conn:
        accept(conn, campus, "http:test", arrival([{"id": event_id, "at": NOW}]))


@contextmanager
def landing(store: Store, lake: EventLake, settings: Settings) -> Iterator[None]:
    """While a lander is at work."""
    lander = Lander(store, lake, settings)
    lander.start()
    try:
        yield
    finally:
        lander.stop()
        lander.join(60)


def wait_for(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.02)


def test_a_landing_ends_although_events_keep_coming(
    store: Store, lake: EventLake, settings: Settings, lincoln: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Else no metric would move for as long as a steady stream lasts."""
    landings = 0

    def endless(*_: object) -> Landed:
        nonlocal landings
        landings += 1
        return Landed(1, 500, 0, 1)

    send(store, lincoln, "a")
    monkeypatch.setattr(pipeline, "land", endless)
    assert land_all(store, lake, settings) == {lincoln: 500}
    assert landings == 1


def test_a_long_journal_lands_whole(
    store: Store, lake: EventLake, settings: Settings, lincoln: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    full = Landed(1, LANDING_EVENTS - 1, 1, 1)
    rest = [full, full, Landed(1, 10, 0, 1), full]
    send(store, lincoln, "a")
    monkeypatch.setattr(pipeline, "land", lambda *_: rest.pop(0))
    assert land_all(store, lake, settings) == {lincoln: 2 * (LANDING_EVENTS - 1) + 10}
    assert rest == [full]


def test_a_lander_moves_metrics_and_keeps_the_files_few(
    store: Store, lake: EventLake, settings: Settings, lincoln: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline, "ROUND_S", 0.01)
    monkeypatch.setattr(pipeline, "LANDINGS_TO_MERGE", 4)
    assert LANDINGS_TO_MERGE > 4
    with landing(store, lake, settings):
        for number in range(9):
            send(store, lincoln, f"{number}")
            wait_for(lambda least=number: actions(store, lincoln) > least)
    assert actions(store, lincoln) == 9
    assert sum(file.rows for file in lake.files(lincoln)) == 9
    assert len(lake.files(lincoln)) < 9


def test_what_landed_before_a_lander_began_moves_metrics_too(
    store: Store, lake: EventLake, settings: Settings, lincoln: str
) -> None:
    """One before it was killed in between, or real-time analytics were off."""
    send(store, lincoln, "a")
    assert land_all(store, lake, settings) == {lincoln: 1}
    with landing(store, lake, settings):
        wait_for(lambda: actions(store, lincoln) == 1)


def test_a_connection_that_breaks_after_a_landing_keeps_no_metric_back(
    store: Store, lake: EventLake, settings: Settings, lincoln: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The landing was committed, and whoever did it was not told so."""
    monkeypatch.setattr(pipeline, "PAUSE_AFTER_ERROR_S", 0.1)
    monkeypatch.setattr(pipeline, "LOOK_S", 0.1)
    breaks = threading.Event()

    def land_unheard(*given: Any) -> Landed | None:
        done = land(*given)
        if breaks.is_set() and done is not None:
            breaks.clear()
            raise UnavailableError("the connection broke")
        return done

    monkeypatch.setattr(pipeline, "land", land_unheard)
    with landing(store, lake, settings):
        send(store, lincoln, "a")
        wait_for(lambda: actions(store, lincoln) == 1)
        breaks.set()
        send(store, lincoln, "b")
        wait_for(lambda: actions(store, lincoln) == 2)
    assert not breaks.is_set()


def test_what_was_told_during_a_round_asks_for_one_more_not_for_many(
    store: Store, lake: EventLake, settings: Settings, lincoln: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Else rounds without work would go on for hours after a busy one."""
    rounds = []
    monkeypatch.setattr(pipeline, "ROUND_S", 0.01)
    monkeypatch.setattr(Lander, "_round", lambda self: (rounds.append(1), busy.wait(60)))
    busy = threading.Event()
    with landing(store, lake, settings):
        try:
            wait_for(lambda: len(rounds) > 0)
            for number in range(30):
                send(store, lincoln, f"{number}")
            busy.set()
            wait_for(lambda: len(rounds) > 1)
            time.sleep(2)
            assert len(rounds) <= 5
        finally:
            busy.set()


def test_an_event_from_the_future_counts_on_the_day_that_it_names(
    store: Store, lake: EventLake, settings: Settings, lincoln: str
) -> None:
    """So a source whose clock is ahead moves late activity to the next day, and not to today's."""
    campus = get_campus(store, lincoln)
    at = int(time.time()) + 23 * 3600
    with store.transaction(Scope(lincoln)) as conn:
        accept(conn, campus, "http:test", arrival([{"id": "a", "at": at}]))
    assert land_all(store, lake, settings) == {lincoln: 1}
    refresh(store, lake, settings, campus=lincoln)
    [row] = published_rows(store, load_catalog()["user_day"], Scope(lincoln)).to_pylist()
    zone = ZoneInfo(campus.timezone)
    assert row["day"] == datetime.fromtimestamp(at, zone).date()
    assert row["last_access"] == datetime.fromtimestamp(at, UTC)
    before = datetime.now(zone).date()
    with store.transaction(Scope(lincoln)) as conn:
        actions = read_headline(conn, lincoln).today.actions
    # Midnight may come while one looks.
    assert actions in {int(row["day"] == day) for day in (before, datetime.now(zone).date())}


def actions(store: Store, slug: str) -> int:
    with store.transaction(Scope(slug)) as conn:
        found = conn.exec_driver_sql("SELECT to_regclass('metrics.user_day')").scalar_one()
    if found is None:
        return 0
    rows = published_rows(store, load_catalog()["user_day"], Scope(slug)).to_pylist()
    return sum(int(row["total_actions"]) for row in rows)
