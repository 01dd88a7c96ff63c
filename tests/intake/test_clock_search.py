"""Clocks that are off are noticed through the door, kept, and ended when they are right again."""

import itertools
import json
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import text

from theon.intake.clock_search import look_at_clocks
from theon.intake.delivery_query import read_delivery, read_spans
from theon.intake.door import accept
from theon.intake.gap_search import look_for_gaps
from theon.intake.gaps import CLOCK, KeptGap, accept_gap, list_gaps
from theon.intake.mapped import read_arrival
from theon.intake.replay import read_mapped
from theon.lake.table import EventLake
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()
HOUR_S = 3600
_NUMBERS = itertools.count()


def lines(*lags: float, at_s: float | None = None) -> "pa.Array[Any]":
    """Events that say to have happened so many seconds before `at_s`, or ago."""
    now = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
    return pa.array(
        [
            json.dumps(
                {
                    "id": f"e{next(_NUMBERS)}",
                    "event_name": "viewed",
                    "occurred_at": (now - timedelta(seconds=lag)).isoformat(),
                }
            ).encode()
            for lag in lags
        ],
        pa.binary(),
    )


def send(store: Store, source: str, *lags: float, campus: str = "lincoln", **how: Any) -> None:
    """As a live connector does."""
    now_s = time.time()
    arrival = read_arrival(lines(*lags, at_s=now_s), "native", **{"came_s": now_s, **how})
    with store.transaction(Scope(campus)) as conn:
        accept(conn, get_campus(store, campus), source, arrival)


def hours_pass(store: Store, hours: int = 1) -> None:
    """All that is on record was so many hours earlier."""
    with store.transaction(DISTRICT) as conn:
        # Two steps, as a row must not be where another one still is.
        for by in (f"+ interval '{1000 - hours} hours'", "- interval '1000 hours'"):
            conn.execute(text(f"UPDATE theon.delivery_counts SET hour = hour {by}"))
            conn.execute(
                text(f"UPDATE theon.delivery_gaps SET from_at = from_at {by}, to_at = to_at {by}")
            )


def found(store: Store, state: str | None = "open") -> list[KeptGap]:
    with store.transaction(DISTRICT) as conn:
        return list_gaps(conn, state=state, kind=CLOCK)


def look(store: Store) -> tuple[int, int]:
    """How many clocks are news, and how many are right again."""
    with store.transaction(Scope("lincoln")) as conn:
        news, ended = look_at_clocks(conn, get_campus(store, "lincoln"), datetime.now(UTC))
    return len(news), ended


def test_clocks_that_are_off_are_told_of_and_no_others(
    store: Store, lake: EventLake, settings: Settings, lincoln: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A day of sources, of which two are wrong; the same names at another school are right."""
    add_campus(store, "elm", "UTC")
    for hour in range(8):
        if hour:
            hours_pass(store)
        send(store, "http:early", -3 * HOUR_S + 4, -3 * HOUR_S + 50, 20)
        send(store, "http:zone", 5.5 * HOUR_S + 3, 5.5 * HOUR_S + 70, 9 * HOUR_S)
        send(store, "http:healthy", 2, 40, 3000)
        send(store, "http:offline", (hour * 5 % 8 + 1) * HOUR_S + hour * 333, 20 * HOUR_S)
        if hour > 5:
            send(store, "http:nightly", 6 * HOUR_S + 5, 20 * HOUR_S)
        send(store, "file:ndjson", -3 * HOUR_S, came_s=None)
        send(store, "kafka:waited", -3 * HOUR_S, waited=pa.array([True]))
        send(store, "http:early", 1, campus="elm")
    with caplog.at_level(logging.WARNING):
        assert look_for_gaps(store, lake, settings, DISTRICT).noticed == 2
    assert "clock of http:early of lincoln: Its clock is at least 2 h 59 min ahead" in caplog.text
    early, zone = sorted(found(store), key=lambda gap: gap.source)
    assert (early.source, early.campus) == ("http:early", lincoln)
    assert early.off_s == pytest.approx(3 * HOUR_S - 4, abs=2)
    assert "of 9 events in the last 3 hours in which it sent, 6 came from the" in early.explanation
    assert (zone.source, zone.off_s) == ("http:zone", -5.5 * HOUR_S)
    assert "seems to be 5 h 30 min behind" in zone.explanation
    now = datetime.now(UTC)
    begin = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=7)
    for gap in (early, zone):
        assert gap.from_at is not None
        # The hour may end while this runs.
        assert timedelta() <= begin - gap.from_at <= timedelta(hours=1)
    assert look_for_gaps(store, lake, settings, DISTRICT).noticed == 0
    with store.transaction(Scope(lincoln)) as conn:
        ledger = read_delivery(conn, now - timedelta(days=1), now + timedelta(hours=1))
        spans = read_spans(conn, now - timedelta(days=1), now + timedelta(hours=1), "day")
    shown = {s.source: (s.ahead, s.least_lag_s, s.clock_off_s) for s in ledger.sources}
    assert shown["http:early"][0] == 16
    assert shown["http:early"][1] == pytest.approx(-3 * HOUR_S + 4, abs=2)
    assert shown["http:early"][2] == early.off_s
    assert shown["http:healthy"][0] == 0
    assert shown["http:healthy"][2] is None
    assert shown["file:ndjson"] == shown["kafka:waited"] == (0, None, None)
    assert sum(span.ahead for span in spans) == 16


def test_a_clock_that_is_set_right_ends_the_finding_and_a_new_mistake_is_news(
    store: Store, lincoln: str
) -> None:
    for hour in range(2):
        send(store, "http:lms", -2 * HOUR_S)
        assert look(store) == (hour, 0)
        hours_pass(store)
    send(store, "http:lms", -5 * HOUR_S)
    assert look(store) == (0, 0)
    [gap] = found(store)
    assert gap.off_s == pytest.approx(5 * HOUR_S, abs=2)  # what is on record follows
    for ended in range(2):
        hours_pass(store)
        send(store, "http:lms", 5)
        assert look(store) == (0, ended)
    [gap] = found(store, "repaired")
    assert (gap.ended_by, gap.source) == ("Theon", "http:lms")
    assert gap.from_at is not None
    assert gap.to_at is not None
    assert gap.to_at - gap.from_at >= timedelta(hours=2)
    for hour in range(2):
        hours_pass(store)
        send(store, "http:lms", -2 * HOUR_S)
        assert look(store) == (hour, 0)
    assert len(found(store)) == len(found(store, "repaired")) == 1


def test_what_a_person_accepted_is_told_again_only_when_it_is_another_mistake(
    store: Store, lincoln: str
) -> None:
    def go_on(hours: int, lag: float) -> list[tuple[int, int]]:
        seen = []
        for _ in range(hours):
            hours_pass(store)
            send(store, "http:lms", lag)
            seen.append(look(store))
        return seen

    assert go_on(2, -2 * HOUR_S) == [(0, 0), (1, 0)]
    [gap] = found(store)
    with store.transaction(DISTRICT) as conn:
        accept_gap(conn, gap.id, "ada", "The old server; it is replaced in May.")
    assert go_on(3, -2 * HOUR_S - 100) == [(0, 0)] * 3
    assert go_on(1, -4 * HOUR_S) == [(1, 0)]
    assert [one.state for one in found(store, None)] == ["open", "accepted"]
    assert go_on(2, 5) == [(0, 0), (0, 1)]
    assert [one.state for one in found(store, None)] == ["repaired", "accepted"]
    assert all(one.to_at for one in found(store, None))
    assert go_on(2, -2 * HOUR_S) == [(0, 0), (1, 0)]


def test_a_source_that_is_silent_or_late_leaves_the_finding_open(
    store: Store, lincoln: str
) -> None:
    for _ in range(2):
        send(store, "http:lms", -2 * HOUR_S)
        hours_pass(store)
    assert look(store) == (1, 0)
    hours_pass(store, 200)
    assert look(store) == (0, 0)
    for _ in range(3):
        hours_pass(store)
        send(store, "http:lms", 7 * HOUR_S)
    assert look(store) == (0, 0)
    assert len(found(store)) == 1


def test_what_was_known_or_is_replayed_says_nothing_of_a_clock(store: Store, lincoln: str) -> None:
    """The first delivery counts; a repetition may come at any time."""
    campus = get_campus(store, lincoln)
    sent, sent_s = lines(5), time.time()
    for source, later_s in (("http:lms", 0), ("http:lms", 1000)):
        with store.transaction(Scope(lincoln)) as conn:
            came_s = sent_s + later_s
            accept(conn, campus, source, read_arrival(sent, "native", came_s=came_s))
    with store.transaction(Scope(lincoln)) as conn:
        accept(
            conn, campus, "replay:http:lms", read_mapped("native", lines(-9000), pa.array(["-"]))
        )
    with store.transaction(Scope(lincoln)) as conn:
        rows = conn.execute(
            text(
                "SELECT source, sum(timed), sum(ahead), round(min(least_lag_s))"
                " FROM theon.delivery_counts GROUP BY source ORDER BY source"
            )
        ).all()
    assert [tuple(row) for row in rows] == [
        ("http:lms", 1, 0, 5), ("replay:http:lms", 0, 0, None),
    ]  # fmt: skip
