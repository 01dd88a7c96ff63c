"""Export a published metric as CSV, JSON or Parquet, under a scope."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import pyarrow as pa

from theon.errors import InputError
from theon.lake.engine import open_scratch, sql_text
from theon.metrics.catalog import Metric
from theon.store.bulk import read_arrow
from theon.store.engine import Store
from theon.store.scope import Scope

# How each format is written.
FORMATS = {
    "csv": "FORMAT csv, HEADER",
    "json": "FORMAT json, ARRAY true",
    "parquet": "FORMAT parquet, COMPRESSION zstd",
}


def published_rows(store: Store, metric: Metric, scope: Scope) -> pa.Table:
    """The published rows of `metric` in `scope`, columns in order, sorted by key.

    Ids that are numbers sort as numbers.
    """
    schema = metric.schema()
    columns = ", ".join("c.slug" if f.name == "campus" else f"m.{f.name}" for f in schema)
    query = (
        f"SELECT {columns} FROM metrics.{metric.name} m"  # our own names
        " JOIN theon.campuses c ON c.id = m.campus_id"
    )
    with store.transaction(scope) as conn:
        table = read_arrow(conn, query, None, schema).read_all()
    order = ", ".join(
        f"{k}" if metric.schema().field(k).type != pa.string() else f"try_cast({k} AS BIGINT), {k}"
        for k in metric.grain
    )
    with open_scratch() as engine:
        engine.register("rows_", table)
        ordered: pa.Table = engine.sql(f"SELECT * FROM rows_ ORDER BY {order}").to_arrow_table()
    return ordered.cast(schema)


def export(
    store: Store,
    metric: Metric,
    *,
    scope: Scope,
    format: str,
    out: BinaryIO,
) -> int:
    """Write the published rows of `metric` in `scope` to `out`.

    CSV has a header line, UTF-8, dates and times in ISO 8601 (UTC, with `Z`), and nothing
    between the commas where there is no value. JSON is an array of objects. Parquet keeps types.

    Returns:
        The number of rows.

    Raises:
        InputError: the format is none of `FORMATS`.
    """
    if format not in FORMATS:
        raise InputError(
            f"there is no export format {format!r}", next_step=f"Formats: {', '.join(FORMATS)}."
        )
    table = published_rows(store, metric, scope)
    query = "SELECT * FROM rows_" if format == "parquet" else _times_as_text_sql(table.schema)
    with open_scratch() as engine, TemporaryDirectory() as folder:
        engine.register("rows_", table)
        path = Path(folder) / "rows"
        engine.execute(f"COPY ({query}) TO {sql_text(path)} ({FORMATS[format]})").fetchall()
        with path.open("rb") as file:
            shutil.copyfileobj(file, out)
    return table.num_rows


def _times_as_text_sql(schema: pa.Schema) -> str:
    """Timestamps as ISO 8601 text: whole seconds unless there are parts of one."""
    columns = []
    for column in schema:
        if pa.types.is_timestamp(column.type):
            form = "%Y-%m-%dT%H:%M:%S"
            columns.append(
                f"CASE WHEN epoch_us({column.name}) % 1000000 = 0 "
                f"THEN strftime({column.name}, '{form}Z') "
                f"ELSE strftime({column.name}, '{form}.%fZ') END AS {column.name}"
            )
        else:
            columns.append(column.name)
    return f"SELECT {', '.join(columns)} FROM rows_"
