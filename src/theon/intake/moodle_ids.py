"""Moodle's log ids in the lake: which are missing between the lowest and the highest.

Moodle numbers its log rows, but the numbers have natural holes: inserts that failed, rows that
were deleted, databases that count in steps. So a hole is a reason to compare with the source
(`theon intake reconcile`), and no proof that something was lost.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import duckdb
import pyarrow as pa

from theon.lake.engine import open_engine, sql_list
from theon.lake.table import EventLake
from theon.settings import Settings

MOODLE = "moodle"  # the source of these gaps: the site, whichever road its log took
PREFIX = "moodle:"
MOST_RUNS = 500
# Where there are more holes than that, those of the usual size are how this site counts.
TIMES_USUAL = 3
BUCKET_IDS = 65_536
_KNOWN = pa.schema({"first": pa.int64(), "last": pa.int64()})


@dataclass(frozen=True)
class Run:
    """Ids that are missing side by side.

    Attributes:
        first, last: both inclusive.
        missing: how many of them; all, or those that the source has.
        from_at, to_at: when the event before and the event after happened.
    """

    first: int
    last: int
    missing: int
    from_at: datetime | None = None
    to_at: datetime | None = None


@dataclass(frozen=True)
class Holes:
    """The holes in the ids of a campus.

    Attributes:
        lowest, highest: id in the lake; None where there is none.
        missing: ids between them that the lake lacks.
        runs: how many runs they are.
        told: those worth telling, by id; see `find_holes`.
        filled: of the runs that were asked about, those of which some id has come since.
    """

    lowest: int | None
    highest: int | None
    missing: int
    runs: int
    told: tuple[Run, ...]
    filled: tuple[tuple[int, int], ...]


@contextmanager
def log_ids(
    lake: EventLake, settings: Settings, campus: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An engine with a view `ids` (id, occurred_at): Moodle's log rows of a campus in the lake."""
    files = [file.path for file in lake.files(campus)]
    with open_engine(settings, ordered=False) as engine:
        source = (
            f"read_parquet({sql_list(files)}, hive_partitioning = false)"
            if files
            else "(SELECT NULL::VARCHAR AS event_id, NULL::TIMESTAMPTZ AS occurred_at) AS none_"
        )
        engine.execute(
            f"CREATE VIEW ids AS SELECT * FROM (SELECT try_cast(substr(event_id, {len(PREFIX) + 1})"
            f" AS BIGINT) AS id, occurred_at FROM {source}"
            f" WHERE starts_with(event_id, '{PREFIX}')) WHERE id IS NOT NULL"
        )
        yield engine


def find_holes(
    lake: EventLake, settings: Settings, campus: str, known: Sequence[tuple[int, int]] = ()
) -> Holes:
    """The runs of ids that the lake lacks between a campus's lowest and highest.

    All are told if they are up to `MOST_RUNS`. Where they are more, ids are missing all over,
    which is how some databases count: then only runs that are longer than `TIMES_USUAL` times the
    usual one (the median) are told, the longest `MOST_RUNS`.

    Args:
        lake: the events.
        settings: of the engine.
        campus: slug.
        known: runs (first, last) that were told before; of them `filled` are given back.
    """
    with log_ids(lake, settings, campus) as engine:
        engine.execute(
            "CREATE TEMP TABLE buckets AS SELECT id // $width AS bucket, count(*) AS rows_,"
            " min(id) AS low, max(id) AS high, arg_min(occurred_at, id) AS low_at,"
            " arg_max(occurred_at, id) AS high_at FROM ids GROUP BY 1",
            {"width": BUCKET_IDS},
        )
        engine.execute(_HOLES, {"width": BUCKET_IDS})
        [(low, high)] = engine.sql("SELECT min(low), max(high) FROM buckets").fetchall()
        [(runs, missing, usual)] = engine.sql(
            "SELECT count(*), coalesce(sum(last - first + 1), 0)::BIGINT,"
            " coalesce(median(last - first + 1), 0) FROM holes"
        ).fetchall()
        least = TIMES_USUAL * usual if runs > MOST_RUNS else 0
        told = engine.execute(
            "SELECT * FROM (SELECT first, last, last - first + 1 AS missing, from_at, to_at"
            " FROM holes WHERE missing > $least ORDER BY missing DESC, first LIMIT $most)"
            " ORDER BY first",
            {"least": least, "most": MOST_RUNS},
        ).fetchall()
        engine.register(
            "known",
            pa.table(
                [
                    pa.array([n for n, _ in known], pa.int64()),
                    pa.array([m for _, m in known], pa.int64()),
                ],
                names=["first", "last"],
            ),
        )
        filled = engine.sql(
            "SELECT k.first, k.last FROM known k WHERE NOT EXISTS (SELECT 1 FROM holes h"
            " WHERE h.first <= k.first AND h.last >= k.last) ORDER BY 1"
        ).fetchall()
    return Holes(
        low, high, int(missing), int(runs), tuple(Run(*row) for row in told),
        tuple((int(first), int(last)) for first, last in filled),
    )  # fmt: skip


# Between the parts, and within those that have holes: there each part is put in order by itself.
_HOLES = """
CREATE TEMP TABLE holes AS
SELECT high + 1 AS first, following - 1 AS last, high_at AS from_at, following_at AS to_at
FROM (SELECT high, high_at, lead(low) OVER w AS following, lead(low_at) OVER w AS following_at
    FROM buckets WINDOW w AS (ORDER BY bucket))
WHERE following > high + 1
UNION ALL
SELECT id + 1, following - 1, occurred_at, following_at
FROM (SELECT id, occurred_at, lead(id) OVER w AS following,
        lead(occurred_at) OVER w AS following_at
    FROM ids WHERE id // $width IN (SELECT bucket FROM buckets WHERE rows_ < high - low + 1)
    WINDOW w AS (PARTITION BY id // $width ORDER BY id))
WHERE following > id + 1"""
