"""The times of a report: local wall-clock text to UTC, by the format and order of the file.

A report's rows stand in the order of time, newest first as a rule. That order decides two
things that a single row cannot: whether 05/10/26 is in May or in October, and which of two
equal hours a row belongs to when clocks went back.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import numpy.typing as npt

from theon.errors import InputError

Seconds = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

# Dates as Moodle's language packs write them; day and month first are told apart by the file.
_DATES = ("%d/%m/%y", "%m/%d/%y", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%y", "%d.%m.%Y", "%d-%m-%y")
_CLOCKS = ("%H:%M:%S", "%I:%M:%S %p", "%H:%M", "%I:%M %p")
FORMATS = (
    *(f"{date}, {clock}" for date in _DATES for clock in _CLOCKS),
    *(f"{date} {clock}" for date in _DATES for clock in _CLOCKS),
    *(
        f"{date}, {clock}"
        for date in ("%d %B %Y", "%A, %d %B %Y", "%d %b %Y", "%B %d, %Y", "%d %b %y")
        for clock in _CLOCKS
    ),
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M:%S.%f",
    "%Y-%m-%d, %H:%M:%S",
)
SAMPLE_ROWS = 2_000
SKIPPED, REPEATED, UNREADABLE = (
    "time does not exist: clocks went forward over it",
    "time is in the hour that clocks repeat, and the file is not in the order of time",
    "time cannot be read",
)


@dataclass(frozen=True)
class ReportTimes:
    """The times of all rows, in the order of the file.

    Attributes:
        local_s: wall-clock seconds since 1970, as if the zone were UTC; -1 unreadable.
        utc_s: epoch seconds; -1 where `reason` says why not.
        reason: '' or one of SKIPPED, REPEATED, UNREADABLE.
        unsure: rows in a repeated hour that the order could not place; taken as the first.
        whole_minutes: the file gives no seconds.
    """

    local_s: Seconds
    utc_s: Seconds
    reason: npt.NDArray[np.str_]
    unsure: int
    whole_minutes: bool


def read_times(engine: duckdb.DuckDBPyConnection, where: str, timezone: str) -> ReportTimes:
    """Read the column `time` of the table `report`, in the order of its `record`.

    Args:
        engine: holds the table `report`.
        where: the file's name, for messages.
        timezone: IANA zone in which the report was downloaded.

    Raises:
        InputError: no known format fits, or day and month cannot be told apart.
    """
    date_format = _choose_format(engine, where)
    found = engine.execute(
        f"SELECT coalesce({_seconds(date_format)}, -1) AS local_s FROM report ORDER BY record"
    ).fetchnumpy()
    local_s = np.asarray(found["local_s"], dtype=np.int64)
    utc_s, reason, unsure = to_utc(local_s, ZoneInfo(timezone))
    return ReportTimes(local_s, utc_s, reason, unsure, "%S" not in date_format)


def _seconds(date_format: str) -> str:
    """SQL: the wall-clock seconds of `time`; null before 2000, for %Y also takes '26'."""
    parsed = f"try_strptime(time, '{date_format}')"
    return f"CASE WHEN year({parsed}) >= 2000 THEN epoch({parsed})::BIGINT END"


def _choose_format(engine: duckdb.DuckDBPyConnection, where: str) -> str:
    # A sample from all over the file decides which formats are worth reading it all with.
    counts = ", ".join(f"count({_seconds(f)})" for f in FORMATS)
    sample = (
        "SELECT time FROM report WHERE record % greatest(1, "
        f"(SELECT count(*) FROM report) // {SAMPLE_ROWS}) = 0"
    )
    row = engine.execute(f"SELECT {counts} FROM ({sample})").fetchone() or ()
    possible = [f for f, n in zip(FORMATS, row, strict=True) if n]
    if not possible:
        first = engine.execute("SELECT time FROM report WHERE time IS NOT NULL LIMIT 1").fetchone()
        raise InputError(
            f"the times cannot be read; the first is {first[0] if first else ''!r}",
            where=where,
            next_step="Set your Moodle profile to English and download the report again, "
            "or use --format moodle-db.",
        )
    counts = ", ".join(f"count({_seconds(f)})" for f in possible)
    row = engine.execute(f"SELECT {counts} FROM report").fetchone() or ()
    best = [f for f, n in zip(possible, row, strict=True) if n == max(row)]
    if len(best) == 1:
        return best[0]
    return _by_order(engine, best, where)


def _by_order(engine: duckdb.DuckDBPyConnection, formats: list[str], where: str) -> str:
    """Of formats that fit equally, the one under which the file is in the order of time."""
    readings: dict[bytes, str] = {}
    for date_format in formats:
        found = engine.execute(
            f"SELECT {_seconds(date_format)} AS s FROM report "
            f"WHERE {_seconds(date_format)} IS NOT NULL ORDER BY record"
        ).fetchnumpy()
        seconds = np.asarray(found["s"], dtype=np.int64)
        ahead = seconds.max(initial=0) > datetime.now(UTC).timestamp() + 86_400
        if not ahead and _breaks(seconds)[0] == 0:
            readings.setdefault(seconds.tobytes(), date_format)
    if len(readings) == 1:
        return next(iter(readings.values()))
    raise InputError(
        "day and month cannot be told apart: every date of this file can be read both ways",
        where=where,
        next_step="Download a longer report (with a day after the 12th), or use "
        "--format moodle-db.",
    )


def _breaks(seconds: Seconds) -> tuple[int, bool]:
    """How often neighbours are out of order, and whether the newest comes first.

    Steps back of up to two hours may be a clock change; they are no break.
    """
    steps = np.diff(seconds)
    falls, rises = int((steps < 0).sum()), int((steps > 0).sum())
    newest_first = falls >= rises
    against = -steps if not newest_first else steps
    return int((against > 7_200).sum()), newest_first


def to_utc(local_s: Seconds, zone: ZoneInfo) -> tuple[Seconds, npt.NDArray[np.str_], int]:
    """Turn wall-clock seconds in the order of the file into epoch seconds.

    Args:
        local_s: see `ReportTimes`.
        zone: the zone of the wall clock.

    Returns:
        Epoch seconds (-1 where there is a reason), reasons, and how many rows lie in a
        repeated hour that nothing decides (taken as the first of the two).
    """
    reason = np.full(len(local_s), "", dtype="<U80")
    reason[local_s < 0] = UNREADABLE
    known = np.flatnonzero(local_s >= 0)
    utc_s = np.full(len(local_s), -1, dtype=np.int64)
    if not len(known):
        return utc_s, reason, 0
    newest_first = _breaks(local_s[known])[1]
    rows = known[::-1] if newest_first else known
    clock = local_s[rows]
    starts_utc, offsets = _offsets(zone, int(clock.min()), int(clock.max()))
    starts = starts_utc + offsets
    ends = np.append(starts_utc[1:] + offsets[:-1], np.iinfo(np.int64).max)
    period = np.searchsorted(ends, clock, side="right")
    reason[rows[clock < starts[period]]] = SKIPPED
    unsure = 0
    for later in range(1, len(starts)):
        # From starts[later] to ends[later - 1] the clock shows each second twice.
        at = np.flatnonzero((clock >= starts[later]) & (clock < ends[later - 1]))
        turns = np.flatnonzero(np.diff(clock[at]) < 0)
        if len(turns) == 1:
            period[at[turns[0] + 1 :]] = later
        elif len(turns) > 1:
            reason[rows[at]] = REPEATED
        else:
            unsure += len(at)
    good = reason[rows] == ""
    utc_s[rows[good]] = clock[good] - offsets[period[good]]
    return utc_s, reason, unsure


def _offsets(zone: ZoneInfo, low_s: int, high_s: int) -> tuple[Seconds, Seconds]:
    """Periods of equal UTC offset around a span: their starts (epoch s) and offsets (s)."""
    day = timedelta(days=1)
    at = datetime.fromtimestamp(low_s, UTC) - 2 * day
    end = datetime.fromtimestamp(high_s, UTC) + 2 * day
    starts, offsets = [int(at.timestamp())], [_offset(zone, at)]
    while at < end:
        following = at + day
        if _offset(zone, following) != offsets[-1]:
            turn = _turn(zone, at, following)
            starts.append(int(turn.timestamp()))
            offsets.append(_offset(zone, following))
        at = following
    return np.array(starts, dtype=np.int64), np.array(offsets, dtype=np.int64)


def _turn(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The second between `low` and `high` at which the offset changes."""
    before = _offset(zone, low)
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=int((high - low).total_seconds()) // 2)
        low, high = (middle, high) if _offset(zone, middle) == before else (low, middle)
    return high


def _offset(zone: ZoneInfo, at: datetime) -> int:
    offset = at.astimezone(zone).utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0
