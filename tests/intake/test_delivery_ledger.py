"""The delivery ledger says what each source sent and what became of it; files are in it too."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from arriving import arrival
from moodle_logs import log_row, write_log
from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.intake import delivery_jobs
from theon.intake.arrivals import REUSED_ID
from theon.intake.delivery_jobs import RetainDelivery, run_retention
from theon.intake.delivery_query import Delivery, day_of, read_delivery, read_spans
from theon.intake.door import accept
from theon.intake.event_ids import EVENT_ID_DAYS
from theon.intake.runs import IngestSummary
from theon.lake.lake_ids import LakeIds
from theon.roster.campuses import add_campus, get_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

NOW_S = int(time.time()) - 3600
Take = Callable[..., IngestSummary]


def send(store: Store, campus: str, rows: list[dict[str, Any]], source: str = "http:lms") -> None:
    with store.transaction(Scope(campus)) as conn:
        accept(conn, get_campus(store, campus), source, arrival(rows))


def read(store: Store, scope: str = "district", **how: Any) -> Delivery:
    with store.transaction(Scope(scope)) as conn:
        now = datetime.now(UTC)
        return read_delivery(conn, now - timedelta(hours=2), now + timedelta(hours=1), **how)


def sql(store: Store, statement: str, **values: Any) -> list[Any]:
    with store.transaction(Scope.district()) as conn:
        found = conn.execute(text(statement), values)
        return list(found.all()) if found.returns_rows else []


def test_figures_of_a_source_add_up_and_name_reasons(store: Store, lincoln: str) -> None:
    send(store, lincoln, [{"id": "a", "at": NOW_S}, {"id": "b", "at": NOW_S}])
    send(store, lincoln, [{"id": "a", "at": NOW_S}, {"id": "b", "at": NOW_S, "user_id": "9"}])
    send(store, lincoln, [{"id": "c", "at": NOW_S}], "kafka:user-events")
    found = read(store)
    lms, topic = found.sources
    assert lms.source == "http:lms"
    assert (lms.received, lms.accepted, lms.duplicate, lms.rejected) == (4, 2, 1, 1)
    assert (lms.dead_lettered, lms.waiting_letters, lms.reasons) == (1, 1, {REUSED_ID: 1})
    assert lms.last_at is not None
    assert topic.source == "kafka:user-events"
    assert (found.total.received, found.total.accepted) == (5, 3)
    [journal] = found.journal
    assert (journal.campus, journal.events) == ("lincoln", 3)
    assert journal.oldest_at is not None
    [only] = read(store, source="http:lms").sources
    assert only == lms


def test_figures_by_hour_and_day_agree_with_the_total(store: Store, lincoln: str) -> None:
    send(store, lincoln, [{"id": "a", "at": NOW_S}])
    [(hour,)] = sql(store, "SELECT hour FROM theon.delivery_counts")
    begin, end = day_of(hour)
    sql(
        store,
        "INSERT INTO theon.delivery_counts (campus_id, source, hour, received, accepted, last_at)"
        " SELECT campus_id, source, :hour, 7, 7, :hour FROM theon.delivery_counts"
        " ON CONFLICT DO NOTHING",
        hour=begin - timedelta(hours=1),
    )
    with store.transaction(Scope(lincoln)) as conn:
        hours = read_spans(conn, begin - timedelta(days=1), end)
        days = read_spans(conn, begin - timedelta(days=1), end, "day")
        total = read_delivery(conn, begin - timedelta(days=1), end).total
    assert [span.received for span in hours] == [7, 1]
    assert [(span.at, span.received) for span in days] == [
        (begin - timedelta(days=1), 7), (begin, 1),
    ]  # fmt: skip
    assert total.received == 8


def test_a_source_that_sent_nothing_in_the_span_is_named_with_its_last_time(
    store: Store, lincoln: str
) -> None:
    send(store, lincoln, [{"id": "a", "at": NOW_S}])
    sql(
        store,
        "UPDATE theon.delivery_counts SET hour = hour - interval '9 days',"
        " last_at = last_at - interval '9 days'",
    )
    [source] = read(store).sources
    assert (source.received, source.source) == (0, "http:lms")
    assert source.last_at is not None
    assert source.last_at < datetime.now(UTC) - timedelta(days=8)


def test_another_campus_is_not_seen(store: Store, lincoln: str) -> None:
    add_campus(store, "elm", "UTC")
    send(store, lincoln, [{"id": "a", "at": NOW_S}])
    send(store, "elm", [{"id": "a", "at": NOW_S}])
    assert [s.campus for s in read(store, "elm").sources] == ["elm"]
    assert [s.campus for s in read(store).sources] == ["elm", "lincoln"]
    assert [j.campus for j in read(store, "elm").journal] == ["elm"]


@pytest.mark.parametrize(
    ("since", "until"),
    [
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2026, 1, 1), datetime(2026, 1, 2, tzinfo=UTC)),  # noqa: DTZ001 - the mistake
    ],
)
def test_a_span_that_is_none_is_refused(store: Store, since: datetime, until: datetime) -> None:
    with store.transaction(Scope.district()) as conn, pytest.raises(InputError):
        read_spans(conn, since, until)


def test_files_are_in_the_ledger_and_a_second_reading_counts_as_duplicates(
    store: Store, take: Take, tmp_path: Path
) -> None:
    rows = [log_row(1), log_row(2), log_row(3, timecreated="soon"), log_row(2)]
    log = write_log(tmp_path / "log.csv", rows)
    for _ in range(2):
        take(log, "moodle-logstore")
    [source] = read(store).sources
    assert source.source == "file:moodle-logstore"
    assert (source.received, source.accepted, source.duplicate) == (8, 2, 4)
    assert (source.rejected, source.dead_lettered) == (2, 0)
    assert list(source.reasons.values()) == [2]
    [(read_,)] = sql(store, "SELECT sum(rows_read) FROM theon.intake_runs")
    assert read_ == source.received


@dataclass
class Context:
    """What these jobs use of their context."""

    store: Store
    settings: Settings
    campus: str = "district"
    lines: list[str] = field(default_factory=list)

    def log(self, message: str, **details: Any) -> None:
        self.lines.append(message)

    def progress(self, done: float, total: float | None = None, operation: str = "") -> None:
        pass

    def transaction(self) -> AbstractContextManager[Connection]:
        return self.store.transaction(Scope(self.campus))


@pytest.mark.usefixtures("in_one_hour")
def test_retention_removes_what_is_old_and_keeps_what_waits(
    store: Store, lincoln: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_jobs, "ROWS_PER_ROUND", 2)
    send(store, lincoln, [{"id": f"old {n}", "at": NOW_S} for n in range(5)])
    send(store, lincoln, [{"id": "old 1", "at": NOW_S, "user_id": f"u{n}"} for n in range(6)])
    sql(
        store,
        f"UPDATE theon.event_ids SET accepted_at = now() - interval '{EVENT_ID_DAYS + 1} days'",
    )
    for table in ("delivery_counts", "delivery_reasons"):
        sql(
            store,
            f"INSERT INTO theon.{table} SELECT (jsonb_populate_record(d, jsonb_build_object("
            f"'hour', d.hour - interval '401 days'))).* FROM theon.{table} d",
        )
    sql(
        store,
        "UPDATE theon.dead_letters SET received_at = now() - interval '200 days',"
        " ended_at = now() - interval '91 days', ended_by = 'x',"
        " state = CASE WHEN id % 2 = 0 THEN 'replayed' ELSE 'discarded' END WHERE id <= 4",
    )
    send(store, lincoln, [{"id": "new", "at": NOW_S}])
    removed = run_retention(Context(store, settings), RetainDelivery())  # type: ignore[arg-type]
    assert (removed.event_ids, removed.hours, removed.letters) == (5, 1, 4)
    assert sql(store, "SELECT count(*) FROM theon.event_ids") == [(1,)]
    assert sql(store, "SELECT state FROM theon.dead_letters") == [("waiting",), ("waiting",)]
    assert sql(store, "SELECT received FROM theon.delivery_counts") == [(12,)]
    assert sql(store, "SELECT count(*) FROM theon.delivery_reasons") == [(1,)]
    assert run_retention(Context(store, settings), RetainDelivery()).event_ids == 0  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_one_hour")
def test_the_door_knows_an_event_however_long_ago_it_came(
    store: Store, lincoln: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_jobs, "ROWS_PER_ROUND", 2)
    send(store, lincoln, [{"id": f"old {n}", "at": NOW_S} for n in range(5)])
    sql(store, "UPDATE theon.event_ids SET accepted_at = now() - interval '31 days'")
    run_retention(Context(store, settings), RetainDelivery())  # type: ignore[arg-type]
    assert sql(store, "SELECT count(*) FROM theon.event_ids") == [(0,)]
    sent = [{"id": "old 1", "at": NOW_S}, {"id": "new", "at": NOW_S}, {"id": "old 3", "at": 1}]
    with store.transaction(Scope(lincoln)) as conn:
        campus, ids = get_campus(store, lincoln), LakeIds(settings)
        told = accept(conn, campus, "http:lms", arrival(sent), lake_ids=ids)
    assert (told.accepted, told.duplicates) == (1, [0])
    assert told.refused["reason"].to_pylist() == [REUSED_ID]
