"""The resolved view of the lake: each real event once, whatever roads it came by.

A log row (logstore file or database) has Moodle's own id. A report row has none; it is
known by what it says and by its number among rows that say the same. The same event may
therefore be in the lake as a log row and as a report row, or as two report rows of which one
knows the course. The rules, all inside one second and so inside one hour:

1. Of two report rows with the same content and number, the one that knows the course stays.
2. Report rows and log rows that agree in second, user, event name, being logged in as
   somebody else, origin and address are the same events: of n log rows and m report rows,
   the n log rows stay, and m - n report rows if there are more of these.

3. An event that another one retracts is not there, and neither is its retraction. Retractions have
   the time of what they retract. A retracted log row still hides the report row of the same event.

All depend on the set of rows only, so the order of arrival does not matter.
"""

import itertools
from collections.abc import Iterable

import duckdb

from theon.events.schema import EVENT_SCHEMA, SOURCE_MOODLE_REPORT, SOURCE_RETRACTION
from theon.lake.engine import sql_list, sql_text
from theon.lake.table import SQL_TYPES, LakeFile

HOUR_S = 3600
# More ranges than this in one statement cost more to plan than they save in reading.
MAX_RANGES = 64

_NATURAL_KEY = (
    "epoch_us(occurred_at) // 1000000, user_id, event_name, real_user_id IS NULL, origin, ip"
)

# `report:<hash>:<n>@<course>`: the n-th of the rows that say the same.
_REPORT_NUMBER = "try_cast(split_part(split_part(event_id, '@', 1), ':', 3) AS INTEGER)"


def hour_ranges(hours: list[int], limit: int = MAX_RANGES) -> list[tuple[int, int]]:
    """Cover `hours` by at most `limit` ranges [from, to), joining the nearest neighbours."""
    ordered = sorted(set(hours))
    if not ordered:
        return []
    gaps = sorted((b - a for a, b in itertools.pairwise(ordered) if b - a > 1), reverse=True)
    join_up_to = gaps[limit - 1] if len(gaps) >= limit else 1
    ranges: list[tuple[int, int]] = []
    for hour in ordered:
        if ranges and hour - ranges[-1][1] < join_up_to:
            ranges[-1] = (ranges[-1][0], hour + 1)
        else:
            ranges.append((hour, hour + 1))
    return ranges


def events_sql(
    engine: duckdb.DuckDBPyConnection,
    files: list[LakeFile],
    hours: list[int],
    columns: list[str],
    *,
    mark_retracted: bool = False,
) -> str:
    """SQL of the resolved events of some hours.

    Args:
        engine: where the statement will run; a few rows of statistics are read through it.
        files: the lake's files of one campus.
        hours: the wanted hours (epoch seconds // 3600, UTC); others may be read, none is given.
        columns: wanted columns of `EVENT_SCHEMA`, without `campus` and `month`.
        mark_retracted: give retracted events as well, and a last column `retracted` (boolean).

    Returns:
        A SELECT of `columns`.
    """
    paths = _overlapping(files, hour_ranges(hours))
    retracted = _retracted_hours(engine, paths, hours)
    others = [hour for hour in hours if hour not in retracted]
    found = _events_sql(engine, files, others, columns)
    if mark_retracted:
        found = f"SELECT *, false AS retracted FROM ({found})"
    if not retracted:
        return found
    # Only where there are retractions are ids read.
    read = [*columns, *(c for c in ("event_id", "source", "occurred_at") if c not in columns)]
    taken = _without_retracted(
        _events_sql(engine, files, sorted(retracted), read), paths, columns, mark=mark_retracted
    )
    return f"{found} UNION ALL {taken}"


def _events_sql(
    engine: duckdb.DuckDBPyConnection, files: list[LakeFile], hours: list[int], columns: list[str]
) -> str:
    """SQL of the events of some hours, each once; of retracted ones and retractions, too."""
    ranges = hour_ranges(hours)
    read = list(columns)
    reports = _has_reports(engine, files, ranges)
    if reports:
        keys = ["event_id", "source", "occurred_at", "user_id", "course_id", "event_name"]
        read += [c for c in [*keys, "real_user_id", "origin", "ip"] if c not in read]
    by_condition: dict[str, list[str]] = {}
    for file in files:
        inside = [r for r in ranges if _overlaps(file, *r)]
        if inside:
            condition = " OR ".join(_within(*r) for r in inside)
            by_condition.setdefault(condition, []).append(file.path)
    # One statement part per set of ranges: a file is opened once, its row groups are skipped by
    # statistics.
    selects = [
        f"SELECT {', '.join(read)} FROM read_parquet({sql_list(paths)}, hive_partitioning = false)"
        f" WHERE ({condition})" + _exactly(hours, ranges)
        for condition, paths in by_condition.items()
    ]
    if not selects:
        types = {c: SQL_TYPES[EVENT_SCHEMA.field(c).type] for c in columns}
        nothing = ", ".join(f"NULL::{kind} AS {c}" for c, kind in types.items())
        return f"SELECT {nothing} WHERE false"
    union = " UNION ALL ".join(selects)
    return _resolve(union, columns) if reports else union


def _instant(hour: int) -> str:
    return f"make_timestamptz({hour * HOUR_S * 1_000_000})"


def _within(low: int, high: int) -> str:
    return f"(occurred_at >= {_instant(low)} AND occurred_at < {_instant(high)})"


def _exactly(hours: list[int], ranges: list[tuple[int, int]]) -> str:
    """SQL that leaves out hours which the ranges cover and nobody asked for."""
    wanted = set(hours)
    if sum(high - low for low, high in ranges) == len(wanted):
        return ""
    return f" AND epoch_us(occurred_at) // 3600000000 IN ({', '.join(map(str, sorted(wanted)))})"


def _overlaps(file: LakeFile, low: int, high: int) -> bool:
    return file.first_at.timestamp() < high * HOUR_S and file.last_at.timestamp() >= low * HOUR_S


def _overlapping(files: list[LakeFile], ranges: Iterable[tuple[int, int]]) -> list[str]:
    return [f.path for f in files if any(_overlaps(f, low, high) for low, high in ranges)]


def _has_reports(
    engine: duckdb.DuckDBPyConnection, files: list[LakeFile], ranges: list[tuple[int, int]]
) -> bool:
    """Whether one of the files that overlap the ranges holds report rows."""
    paths = _overlapping(files, ranges)
    if not paths:
        return False
    found = engine.sql(
        f"SELECT 1 FROM read_parquet({sql_list(paths)}, hive_partitioning = false) "
        f"WHERE source = {sql_text(SOURCE_MOODLE_REPORT)} LIMIT 1"
    ).fetchall()
    return bool(found)


def _retracted_hours(
    engine: duckdb.DuckDBPyConnection, paths: list[str], hours: list[int]
) -> set[int]:
    """The hours with retractions; mostly the files' statistics say that there are none."""
    if not paths:
        return set()
    found = engine.sql(
        f"SELECT DISTINCT epoch_us(occurred_at) // 3600000000 FROM ({_retractions_sql(paths)})"
    ).fetchall()
    return {hour for (hour,) in found}.intersection(hours)


def _retractions_sql(paths: list[str]) -> str:
    """SQL of the retractions in some files: what they retract, and when that was."""
    return (
        f"SELECT object_id, occurred_at FROM read_parquet({sql_list(paths)}, "
        f"hive_partitioning = false) WHERE source = {sql_text(SOURCE_RETRACTION)}"
    )


def _without_retracted(events: str, paths: list[str], columns: list[str], *, mark: bool) -> str:
    """SQL of the events that no retraction names; or of all, and whether one names them."""
    names = ", ".join(f"e.{c}" for c in columns)
    join, marked = ("LEFT", ", n.object_id IS NOT NULL AS retracted") if mark else ("ANTI", "")
    return (
        f"SELECT {names}{marked} FROM ({events}) AS e {join} JOIN "
        f"(SELECT DISTINCT * FROM ({_retractions_sql(paths)})) AS n "
        "ON e.event_id = n.object_id AND e.occurred_at = n.occurred_at "
        f"WHERE e.source <> {sql_text(SOURCE_RETRACTION)}"
    )


def _resolve(union: str, columns: list[str]) -> str:
    report = f"source = {sql_text(SOURCE_MOODLE_REPORT)}"
    return f"""
    SELECT {", ".join(columns)} FROM (
        SELECT *,
            count(*) FILTER (NOT ({report})) OVER (PARTITION BY {_NATURAL_KEY}) AS log_rows_,
            row_number() OVER (
                PARTITION BY {_NATURAL_KEY}, {report} ORDER BY {_REPORT_NUMBER}, event_id
            ) AS number_
        FROM (
            SELECT * FROM ({union})
            QUALIFY NOT ({report}) OR row_number() OVER (
                PARTITION BY {report}, split_part(event_id, '@', 1)
                ORDER BY course_id IS NULL, course_id, event_id) = 1
        )
    ) WHERE NOT ({report}) OR number_ > log_rows_"""
