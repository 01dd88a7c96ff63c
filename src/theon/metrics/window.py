"""Read the lake for a stretch of local days: what `explain` and `verify` share."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import duckdb

from theon.lake.resolved import events_sql
from theon.lake.table import EventLake
from theon.metrics import kernel
from theon.roster.campuses import Campus
from theon.settings import SLOT_S

EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Window:
    """Local days [first, last] of a campus, as UTC hours with the session limit before them."""

    campus: Campus
    first: date
    last: date
    session_limit_s: int

    @property
    def start(self) -> datetime:
        """The instant at which the first day begins, UTC."""
        return _midnight(self.first, self.campus.timezone)

    @property
    def end(self) -> datetime:
        """The instant at which the last day has ended, UTC."""
        return _midnight(self.last + timedelta(days=1), self.campus.timezone)

    @property
    def hours(self) -> list[int]:
        """The hours of the days, and those a gap that ends in them may begin in."""
        low = int(self.start.timestamp()) - self.session_limit_s - 1
        return list(range(low // kernel.HOUR_S, -(-int(self.end.timestamp()) // kernel.HOUR_S)))

    def events_sql(
        self,
        engine: duckdb.DuckDBPyConnection,
        lake: EventLake,
        columns: list[str],
        *,
        mark_retracted: bool = False,
    ) -> str:
        """SQL of the resolved events of `hours`; see `theon.lake.resolved`."""
        files = lake.files(self.campus.slug)
        return events_sql(engine, files, self.hours, columns, mark_retracted=mark_retracted)

    def make_slot_days(self, engine: duckdb.DuckDBPyConnection) -> None:
        """Fill the temp table `slot_days(slot, day)` for the days of the window."""
        low, high = int(self.start.timestamp()) // SLOT_S, int(self.end.timestamp()) // SLOT_S
        slots = f"SELECT unnest(range({low}, {high})) AS slot"
        engine.execute(
            "CREATE OR REPLACE TEMP TABLE slot_days AS SELECT slot::INTEGER AS slot, day "
            f"FROM ({kernel.slot_days_sql(slots, self.campus.timezone)})"
        ).fetchall()


def _midnight(day: date, timezone: str) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone)).astimezone(UTC)


def first_day(day: date, period: str) -> date:
    """The first day of the day, week or month that `day` lies in."""
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else day


def last_day(start: date, period: str) -> date:
    """The last day of the day, week or month that begins at `start`."""
    if period == "day":
        return start
    if period == "week":
        return start + timedelta(days=6)
    return (start.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)


def period_window(campus: Campus, start: date, period: str, session_limit_s: int) -> Window:
    """The window of the day, week or month that begins at `start`."""
    return Window(campus, start, last_day(start, period), session_limit_s)
