"""Put a metric's rows into PostgreSQL: only rows that differ are written."""

import pyarrow as pa
from sqlalchemy import Connection, text

from theon.metrics.catalog import Metric
from theon.store.bulk import copy_in


def publish(
    conn: Connection,
    metric: Metric,
    campus_id: int,
    rows: pa.RecordBatchReader | pa.Table,
    keys: pa.Table | None,
) -> int:
    """Replace rows of one campus by `rows`, in the caller's transaction.

    Args:
        conn: a transaction whose scope holds the campus.
        metric: the definition.
        campus_id: whose rows.
        rows: the grain without campus, and the activity columns.
        keys: the grain of the rows that were computed again (a key without a row in `rows` is
            gone); None: all rows of the campus were.

    Returns:
        How many rows were written or removed. Outcome columns are in a table of their own.
    """
    activity = [c.name for c in metric.family("activity")]
    names = ", ".join([*metric.keys, *activity])
    same_key = " AND ".join(f"t.{k} = s.{k}" for k in metric.keys)
    conn.execute(
        text(
            f"CREATE TEMP TABLE stage ON COMMIT DROP AS "
            f"SELECT {names} FROM {metric.table} WHERE false"
        )
    )
    computed = copy_in(conn, "stage", rows)
    conn.execute(text("ANALYZE stage"))
    written = 0
    if keys is None:
        written = _remove_vanished(conn, metric, campus_id, "", same_key)
    elif computed < keys.num_rows:  # one row per key, as a definition gives: else one vanished
        among = _keep_vanished_keys(conn, metric, keys)
        written = _remove_vanished(conn, metric, campus_id, among, same_key)
    written += _write_changed(conn, metric, campus_id, names, same_key, activity)
    conn.execute(text("DROP TABLE stage"))
    conn.execute(text("DROP TABLE IF EXISTS touched"))
    return written


def _keep_vanished_keys(conn: Connection, metric: Metric, keys: pa.Table) -> str:
    """Fill `touched` with the keys that have no row in `stage`; a condition that `t` is there.

    They are few, so they are found by the primary key and the table is not read through.
    """
    conn.execute(
        text(
            f"CREATE TEMP TABLE touched ON COMMIT DROP AS "
            f"SELECT {', '.join(metric.keys)} FROM {metric.table} WHERE false"
        )
    )
    copy_in(conn, "touched", keys)
    matched = " AND ".join(f"k.{k} = s.{k}" for k in metric.keys)
    conn.execute(text(f"DELETE FROM touched k USING stage s WHERE {matched}"))
    conn.execute(text("ANALYZE touched"))
    same = " AND ".join(f"t.{k} = k.{k}" for k in metric.keys)
    return f" AND EXISTS (SELECT 1 FROM touched k WHERE {same})"


def _remove_vanished(
    conn: Connection, metric: Metric, campus_id: int, among: str, same_key: str
) -> int:
    removed = conn.execute(
        text(
            f"DELETE FROM {metric.table} t WHERE t.campus_id = :campus{among}"
            f" AND NOT EXISTS (SELECT 1 FROM stage s WHERE {same_key})"
        ),
        {"campus": campus_id},
    )
    return removed.rowcount


def _write_changed(
    conn: Connection,
    metric: Metric,
    campus_id: int,
    names: str,
    same_key: str,
    activity: list[str],
) -> int:
    old = ", ".join(f"t.{a}" for a in activity)
    new = ", ".join(f"s.{a}" for a in activity)
    update = ", ".join(f"{a} = excluded.{a}" for a in activity)
    changed = conn.execute(
        text(
            f"INSERT INTO {metric.table} AS x (campus_id, {names}) "
            f"SELECT :campus, s.* FROM stage s "
            f"LEFT JOIN {metric.table} t ON t.campus_id = :campus AND {same_key} "
            f"WHERE t.campus_id IS NULL OR ({old}) IS DISTINCT FROM ({new}) "
            f"ON CONFLICT (campus_id, {', '.join(metric.keys)}) DO UPDATE SET {update}"
        ),
        {"campus": campus_id},
    )
    return changed.rowcount
