"""The rows of a metric: a definition run over days, all of them or those that changed."""

from collections.abc import Iterator
from datetime import date, timedelta

import pyarrow as pa

from theon.metrics import derive, kernel
from theon.metrics.catalog import Metric
from theon.metrics.manifest import Manifest, membership
from theon.metrics.window import EPOCH, first_day, last_day

CHUNK_DAY_ROWS = 250_000
# More than this is not kept in the engine between metrics: about 200 MB.
KEPT_DAY_ROWS = 2_000_000


def keep_days(bench: derive.Workbench, metrics: list[Metric], days: Manifest) -> bool:
    """Read what all metrics' changed rows rest on once, into the table `kept_days`.

    Every metric reads much the same days: all of a week, all of a month.

    Returns:
        False if that is too much to keep; each metric then reads for itself.
    """
    found = bench.engine.sql("SELECT DISTINCT day FROM changed_days").fetchall()
    changed = [EPOCH + timedelta(days=day) for (day,) in found]
    wanted: set[int] = set()
    for period in {metric.period for metric in metrics}:
        wanted |= _days_of_periods({first_day(day, period) for day in changed}, period)
    source = days.live_sql(bench.home, wanted)
    if source is None or days.rows(wanted) > KEPT_DAY_ROWS:
        return False
    bench.engine.execute(f"CREATE OR REPLACE TEMP TABLE kept_days AS {source}").fetchall()
    return True


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
    starts = set(keys[metric.period_column].unique().to_pylist())
    return _days_of_periods({s for s in starts if s is not None}, metric.period)


def _days_of_periods(starts: set[date], period: str) -> set[int]:
    days: set[int] = set()
    for start in starts:
        first = (start - EPOCH).days
        days.update(range(first, (last_day(start, period) - EPOCH).days + 1))
    return days


def metric_sql(bench: derive.Workbench, metric: Metric, days: str, *, restricted: bool) -> str:
    """SQL of a definition over `days` (SQL), or over those that agree with `keys_`.

    Returns:
        A SELECT of the grain without campus and the activity columns.
    """
    view = kernel.days_view_sql(days, bench.campus.slug, bench.rules)
    # Who only goes by period has every row of the periods that are read.
    if restricted and metric.keys != [metric.period_column]:
        view = f"SELECT d.* FROM ({view}) d SEMI JOIN keys_ USING ({', '.join(metric.keys)})"
    return f"WITH days AS ({view}) SELECT {', '.join(_columns(metric))} FROM ({metric.sql})"


def metric_rows(
    bench: derive.Workbench,
    metric: Metric,
    days: Manifest,
    wanted: set[int] | None,
    *,
    kept: bool = False,
) -> pa.RecordBatchReader:
    """The rows of a metric, whole periods at a time, so that memory does not grow with history.

    Args:
        bench: the shared state.
        metric: the definition.
        days: where the days are.
        wanted: the days of the periods in the table `keys_`, to which the rows are restricted;
            None: all days, all rows.
        kept: these days are in the table `kept_days`.
    """
    schema = pa.schema([metric.schema().field(n) for n in _columns(metric)])

    def sources() -> Iterator[str | None]:
        if kept:
            live = sorted(wanted & days.parts.keys()) if wanted else []
            if live:
                yield f"SELECT * FROM kept_days WHERE {membership('day', live)}"
        else:
            for chunk in _whole_periods(metric, days, wanted):
                yield days.live_sql(bench.home, chunk)

    def batches() -> Iterator[pa.RecordBatch]:
        for source in sources():
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
