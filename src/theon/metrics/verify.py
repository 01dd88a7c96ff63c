"""Verify: compute everything again from the events, another way, and compare.

The published numbers come from cells, merged. Here each month's events are read once more,
the gaps found in one window pass over all of them in order, the definitions run over the
result, and every published row compared. Only the activity rules and the definitions are shared.

The outcome columns come from facts in PostgreSQL, learner by learner. Here the facts are derived
from the lake's events once more, and another engine works out all rows from them at once.
"""

from dataclasses import dataclass, field
from datetime import date, timedelta

import duckdb

from theon.events import outcomes
from theon.events.activity import load_rules
from theon.events.outcomes import FACT_SCHEMA
from theon.lake.engine import open_engine
from theon.lake.table import EventLake
from theon.metrics import kernel
from theon.metrics.catalog import Column, Metric, load_catalog
from theon.metrics.export import published_rows
from theon.metrics.outcomes import lake_facts
from theon.metrics.window import Window
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.outcomes.states import states_sql
from theon.roster.campuses import Campus, list_campuses
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

SHOWN_DIFFERENCES = 20


@dataclass(frozen=True)
class Difference:
    """One published row that is not what the events say.

    Attributes:
        metric: the definition's name.
        key: the row's grain.
        column: the first column that differs; empty when the whole row is missing or too many.
        published: its published value, None when the row is missing.
        expected: its value from the events, None when there should be no row.
    """

    metric: str
    key: dict[str, str]
    column: str
    published: object
    expected: object

    def sentence(self) -> str:
        """The difference in words."""
        where = ", ".join(f"{k} {v}" for k, v in self.key.items())
        if not self.column:
            state = "is missing" if self.published is None else "should not be there"
            return f"{self.metric}: the row {where} {state}"
        return (
            f"{self.metric}: {self.column} of {where} is {self.published}, "
            f"the events say {self.expected}"
        )


@dataclass
class VerifyReport:
    """What verification found.

    Attributes:
        rows_compared: published and expected rows, each key once.
        rows_different: how many of them differ.
        differences: the first `SHOWN_DIFFERENCES` per metric and campus.
    """

    rows_compared: int = 0
    rows_different: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every row is right."""
        return self.rows_different == 0


def verify(
    store: Store,
    lake: EventLake,
    settings: Settings,
    *,
    campus: str | None = None,
    catalog: dict[str, Metric] | None = None,
    progress: ProgressReporter | None = None,
) -> VerifyReport:
    """Compare what is published with what the events say; changes nothing.

    Events that arrived since the last refresh show as differences: refresh first. So do outcomes
    whose events are accepted and not in the lake yet, for a moment.
    """
    report = VerifyReport()
    catalog = catalog or load_catalog()
    campuses = [c for c in list_campuses(store, Scope.district()) if campus in (None, c.slug)]
    for found in campuses:
        with open_engine(settings) as engine:
            _recompute_days(engine, lake, settings, found, progress or SilentProgress())
            _recompute_outcomes(engine, lake, found)
            for metric in catalog.values():
                _compare(engine, store, found, metric, "activity", report)
                if metric.family("outcome"):
                    _compare(engine, store, found, metric, "outcome", report)
    return report


def _recompute_days(
    engine: duckdb.DuckDBPyConnection,
    lake: EventLake,
    settings: Settings,
    campus: Campus,
    progress: ProgressReporter,
) -> None:
    """Fill the temp table `days_` of one campus, a fortnight at a time to bound memory."""
    rules = load_rules()
    files = lake.files(campus.slug)
    engine.execute(
        "CREATE TEMP TABLE days_ (day INTEGER, user_id VARCHAR, course_id VARCHAR, "
        "total_actions INTEGER, time_spent_s INTEGER, "
        + "".join(f"{name} INTEGER, " for name in rules.measures)
        + "first_s BIGINT, last_s BIGINT)"
    ).fetchall()
    if not files:
        return
    first = min(f.first_at for f in files).date() - timedelta(days=1)
    last = max(f.last_at for f in files).date() + timedelta(days=1)
    starts = [first + timedelta(days=n) for n in range(0, (last - first).days + 1, 14)]
    with progress.step(
        f"Recomputing {campus.slug} from its events", len(starts), "fortnights"
    ) as step:
        for start in starts:
            end = min(start + timedelta(days=13), last)
            window = Window(campus, start, end, settings.session_limit_s)
            window.make_slot_days(engine)
            events = window.events_sql(engine, lake, kernel.EVENT_COLUMNS)
            days = kernel.one_pass_days_sql(events, rules, settings.session_limit_s)
            engine.execute(f"INSERT INTO days_ BY NAME {days}").fetchall()
            step.advance()


def _recompute_outcomes(engine: duckdb.DuckDBPyConnection, lake: EventLake, campus: Campus) -> None:
    """Fill the temp table `facts_` of one campus with what its events say of outcomes."""
    engine.register("part_", FACT_SCHEMA.empty_table())
    local = f"timezone('{campus.timezone}', occurred_at::TIMESTAMPTZ) AS local_at"
    told = f"SELECT *, 0 AS campus_id, {local} FROM part_"
    engine.execute(f"CREATE TEMP TABLE facts_ AS {told}").fetchall()
    for part in lake_facts(engine, lake.files(campus.slug), outcomes.load_rules()):
        engine.register("part_", part)
        engine.execute(f"INSERT INTO facts_ {told}").fetchall()
    engine.unregister("part_")


def _expected_sql(metric: Metric, campus: Campus, family: str) -> str:
    """A WITH clause whose last table, `expected`, is what the rows should be."""
    if family == "outcome":
        states = states_sql("SELECT * FROM facts_", metric.outcome_sql)
        rows = f"SELECT '{campus.slug}' AS campus, * FROM ({metric.outcome_sql})"
        return f"WITH {states}, expected AS ({rows})"
    days = kernel.days_view_sql("FROM days_", campus.slug, load_rules())
    return f"WITH days AS ({days}), expected AS ({metric.sql})"


def _compare(
    engine: duckdb.DuckDBPyConnection,
    store: Store,
    campus: Campus,
    metric: Metric,
    family: str,
    report: VerifyReport,
) -> None:
    values = metric.family(family)
    columns = [c.name for c in values]
    names = [*metric.grain, *columns]
    published = published_rows(store, metric, Scope(campus.slug)).select(names)
    engine.register("published_", published)
    # A row may have only activity, or only outcomes; of the other there is nothing to expect.
    some = " OR ".join(f"{c} IS NOT NULL" for c in columns)
    differs = " OR ".join(_differs_sql(c) for c in values)
    engine.execute(
        f"CREATE OR REPLACE TEMP TABLE compared_ AS "
        f"{_expected_sql(metric, campus, family)}, "
        f"published AS (SELECT * FROM published_ WHERE campus = '{campus.slug}' AND ({some})) "
        f"SELECT {', '.join(f'coalesce(e.{k}, p.{k}) AS {k}' for k in metric.grain)}, "
        f"{', '.join(f'e.{c} AS expected_{c}, p.{c} AS published_{c}' for c in columns)}, "
        f"e.campus IS NULL AS unexpected_, p.campus IS NULL AS missing_, "
        f"{differs} AS differs_ FROM expected e FULL JOIN published p ON "
        + " AND ".join(f"e.{k} = p.{k}" for k in metric.grain)
    ).fetchall()
    [(compared, different)] = engine.sql(
        "SELECT count(*), count(*) FILTER (differs_) FROM compared_"
    ).fetchall()
    report.rows_compared += compared
    report.rows_different += different
    if different:
        rows = engine.sql(
            f"SELECT * FROM compared_ WHERE differs_ "
            f"ORDER BY {', '.join(metric.grain)} LIMIT {SHOWN_DIFFERENCES}"
        ).to_arrow_table()
        report.differences += [_difference(metric, row, columns) for row in rows.to_pylist()]
    engine.unregister("published_")


def _differs_sql(column: Column) -> str:
    """SQL: the values differ. Two engines may round the last digit of a number differently."""
    expected, published = f"e.{column.name}", f"p.{column.name}"
    same = f"{expected} IS NOT DISTINCT FROM {published}"
    if column.type == "number":
        same += f" OR coalesce(abs({expected} - {published}) < 1e-9, false)"
    return f"NOT ({same})"


def _difference(metric: Metric, row: dict[str, object], columns: list[str]) -> Difference:
    key = {k: _text(row[k]) for k in metric.grain}
    if row["missing_"] or row["unexpected_"]:
        return Difference(
            metric.name,
            key,
            "",
            None if row["missing_"] else "row",
            None if row["unexpected_"] else "row",
        )
    column = next(a for a in columns if row[f"expected_{a}"] != row[f"published_{a}"])
    return Difference(
        metric.name, key, column, row[f"published_{column}"], row[f"expected_{column}"]
    )


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)
