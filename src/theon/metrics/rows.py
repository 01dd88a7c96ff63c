"""The rows of a metric: a definition run over days, all of them or those that changed."""

from collections.abc import Iterator
from datetime import date, timedelta

import pyarrow as pa

from theon.metrics import derive, kernel
from theon.metrics.catalog import Metric
from theon.metrics.manifest import Manifest
from theon.metrics.window import EPOCH, first_day, last_day

CHUNK_DAY_ROWS = 250_000


def affected_keys(bench: derive.Workbench, metric: Metric) -> pa.Table:
    """The grain (without campus) of the metric's rows that rest on a changed day.

    Leaves them in the engine as the table `keys_`.
    """
    bench.engine.execute(
        f"CREATE OR REPLACE TEMP TABLE keys_ AS SELECT DISTINCT {', '.join(metric.keys)} FROM ("
        "SELECT user_id, course_id, DATE '1970-01-01' + day AS day, "
        "date_trunc('week', DATE '1970-01-01' + day)::DATE AS week_start, "
        "date_trunc('month', DATE '1970-01-01' + day)::DATE AS month_start FROM changed_days)"
    ).fetchall()
    keys: pa.Table = bench.engine.sql("SELECT * FROM keys_").to_arrow_table()
    return keys


def days_of_keys(metric: Metric, keys: pa.Table) -> set[int]:
    """Every day (since 1970) of the periods in `keys`."""
    days: set[int] = set()
    for start in keys[metric.period_column].unique().to_pylist():
        assert start is not None  # noqa: S101 - a key column
        first = (start - EPOCH).days
        days.update(range(first, (last_day(start, metric.period) - EPOCH).days + 1))
    return days


def metric_sql(bench: derive.Workbench, metric: Metric, days: str, *, restricted: bool) -> str:
    """SQL of a definition over `days` (SQL), or over those that agree with `keys_`.

    Returns:
        A SELECT of the grain without campus and the activity columns.
    """
    view = kernel.days_view_sql(days, bench.campus.slug, bench.rules)
    if restricted:
        view = f"SELECT d.* FROM ({view}) d SEMI JOIN keys_ USING ({', '.join(metric.keys)})"
    return f"WITH days AS ({view}) SELECT {', '.join(_columns(metric))} FROM ({metric.sql})"


def metric_rows(
    bench: derive.Workbench, metric: Metric, days: Manifest, wanted: set[int] | None
) -> pa.RecordBatchReader:
    """The rows of a metric, whole periods at a time, so that memory does not grow with history.

    Args:
        bench: the shared state.
        metric: the definition.
        days: where the days are.
        wanted: the days of the periods in the table `keys_`, to which the rows are restricted;
            None: all days, all rows.
    """
    schema = pa.schema([metric.schema().field(n) for n in _columns(metric)])

    def batches() -> Iterator[pa.RecordBatch]:
        for chunk in _whole_periods(metric, days, wanted):
            source = days.live_sql(bench.home, chunk)
            if source is not None:
                query = metric_sql(bench, metric, source, restricted=wanted is not None)
                reader: pa.RecordBatchReader = bench.engine.sql(query).to_arrow_reader(65_536)
                yield from reader.cast(schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _whole_periods(metric: Metric, days: Manifest, wanted: set[int] | None) -> list[set[int]]:
    """The days that have rows, in runs of whole periods of about `CHUNK_DAY_ROWS` rows."""
    by_period: dict[date, set[int]] = {}
    for day in days.parts:
        if wanted is None or day in wanted:
            start = first_day(EPOCH + timedelta(days=day), metric.period)
            by_period.setdefault(start, set()).add(day)
    chunks: list[set[int]] = []
    rows = CHUNK_DAY_ROWS
    for _, members in sorted(by_period.items()):
        size = days.rows(members)
        if rows + size > CHUNK_DAY_ROWS:
            chunks.append(set())
            rows = 0
        chunks[-1] |= members
        rows += size
    return chunks


def _columns(metric: Metric) -> list[str]:
    return [*metric.keys, *(c.name for c in metric.family("activity"))]
