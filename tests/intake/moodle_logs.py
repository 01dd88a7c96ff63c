"""Small Moodle logs written by the tests, and what is in a staged file or a lake."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pymysql

from theon.intake.staged import Staged
from theon.lake.table import EventLake

LOG_COLUMNS = (
    "id", "eventname", "component", "action", "target", "objecttable", "objectid", "crud",
    "edulevel", "contextid", "contextlevel", "contextinstanceid", "userid", "courseid",
    "relateduserid", "anonymous", "other", "timecreated", "origin", "ip", "realuserid",
)  # fmt: skip
ORDINARY = {
    "eventname": r"\core\event\course_viewed",
    "component": "core",
    "action": "viewed",
    "target": "course",
    "crud": "r",
    "edulevel": "2",
    "contextid": "11",
    "contextlevel": "50",
    "contextinstanceid": "6",
    "userid": "115",
    "courseid": "6",
    "anonymous": "0",
    "other": "N;",
    "timecreated": "1789286401",
    "origin": "web",
    "ip": "127.0.0.1",
}


def log_row(number: int | str, **values: str) -> dict[str, str]:
    """An ordinary row of a Moodle log, with some values of the test's own."""
    return {**dict.fromkeys(LOG_COLUMNS, ""), **ORDINARY, "id": str(number), **values}


def write_log(
    path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str] = LOG_COLUMNS, **how: str
) -> Path:
    """Write a log file; the columns in this order, others left out."""
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n", **how)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(rows)
    return path


def staged_rows(staged: Staged, columns: str = "*") -> list[tuple[object, ...]]:
    """The staged events, in their order."""
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        found = engine.sql(f"SELECT {columns} FROM read_parquet('{staged.path}')").to_arrow_table()
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))


def rejects(staged: Staged) -> list[tuple[object, ...]]:
    """(line, reason, detail) of the rejected rows."""
    return [(r["line_number"], r["reason"], r["detail"]) for r in staged.rejects.to_pylist()]


def lake_rows(lake: EventLake, query: str) -> list[tuple[object, ...]]:
    """The result of a query over `events`: all events of the lake."""
    files = [f.path for f in lake.files()]
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        engine.execute(
            f"CREATE VIEW events AS SELECT * FROM read_parquet({files}, hive_partitioning = false)"
        )
        return engine.execute(query).fetchall()


@dataclass(frozen=True)
class Mariadb:
    """A running MariaDB with the real site in database `moodle`."""

    socket: Path

    def url(self, user: str = "reader", database: str = "moodle") -> str:
        return f"mysql://{user}:reads-only@localhost/{database}?unix_socket={self.socket}"

    def connect(self, user: str = "root", database: str = "moodle") -> pymysql.Connection:
        return pymysql.connect(
            unix_socket=str(self.socket),
            user=user,
            password="" if user == "root" else "reads-only",
            database=database,
            autocommit=True,
        )
