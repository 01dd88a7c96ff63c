"""The published tables of the metrics: made from their definitions, one per version.

Readers use the view `metrics.<name>`. A definition with a raised version gets a table of its
own; the view moves to it once every campus has been published there, so nobody ever reads a
half-computed history.

Outcome columns have a table of their own beside that of the activity: a refresh, which may hold
its rows for long, and an observer, which must not wait, never meet. The view puts them together;
`metrics.<name>_outcomes` shows them alone, for whoever wants all of a period at once.
"""

from sqlalchemy import Connection, text

from theon.metrics.catalog import Metric
from theon.outcomes.columns import (
    OutcomeColumns,
    forget_columns,
    register_columns,
    registered_columns,
)
from theon.outcomes.views import make_views, missing_views
from theon.store.engine import Store
from theon.store.scope import Scope, app_role, protect


def ensure_tables(store: Store, catalog: dict[str, Metric]) -> None:
    """Make the tables of each metric's version, and its view where there is none yet.

    Observers write the outcome columns of all of them from then on.
    """
    with store.transaction(Scope.district()) as conn:
        found = conn.execute(
            text(
                "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = 'metrics'"
            )
        )
        existing = {str(name) for (name,) in found}
        views = current_versions(conn)
        observed = registered_columns(conn)
        states = missing_views(conn)
    missing = [
        m
        for m in catalog.values()
        if m.table not in existing or m.name not in views or _lacks_outcome_view(m, views)
    ]
    unobserved = [
        m
        for m in catalog.values()
        if m.family("outcome") and observed.get((m.name, m.version)) != m.hash
    ]
    if not missing and not unobserved and not states:
        return
    with store.owner_transaction() as conn:
        conn.execute(text("SELECT pg_advisory_xact_lock(hashtext('theon.metrics.tables'))"))
        make_views(conn, states)
        for metric in missing:
            _create(conn, metric)
            if metric.name not in views or _lacks_outcome_view(metric, views):
                _point_view(conn, metric)
        for metric in unobserved:
            register_columns(conn, outcome_columns(metric))


def _lacks_outcome_view(metric: Metric, views: dict[str, int]) -> bool:
    # While the view still shows an older version, this one comes when it moves.
    shown = views.get(metric.name) == metric.version
    return bool(metric.family("outcome")) and shown and f"{metric.name}_outcomes" not in views


def outcome_columns(metric: Metric) -> OutcomeColumns:
    """What observers are to write of a metric that has outcome columns."""
    return OutcomeColumns(
        metric=metric.name,
        version=metric.version,
        table=metric.outcome_table,
        keys=tuple(metric.keys),
        columns=tuple(c.name for c in metric.family("outcome")),
        query=metric.outcome_sql,
        hash=metric.hash,
    )


def current_versions(conn: Connection) -> dict[str, int]:
    """Metric name to the version its view shows."""
    found = conn.execute(
        text(
            "SELECT c.relname, obj_description(c.oid) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = 'metrics' AND c.relkind = 'v'"
        )
    )
    return {str(name): int(version) for name, version in found}


def swap_views(store: Store, catalog: dict[str, Metric]) -> list[str]:
    """Move the views of raised versions that every published campus has; returns their names."""
    with store.transaction(Scope.district()) as conn:
        shown = current_versions(conn)
        # A campus that never published anything, such as the district itself, is waited for by
        # nobody.
        published = conn.execute(
            text("SELECT campus_id, metric, version FROM theon.metric_versions")
        ).all()
    campuses = {campus for campus, _, _ in published}
    ready = {(campus, metric, version) for campus, metric, version in published}
    swap = [
        m
        for m in catalog.values()
        if shown.get(m.name) != m.version
        and all((campus, m.name, m.version) in ready for campus in campuses)
    ]
    for metric in swap:
        with store.owner_transaction() as conn:
            _point_view(conn, metric)
            old = f"metrics.{metric.name}_v{shown[metric.name]}"
            forget_columns(conn, metric.name, shown[metric.name])
            conn.execute(text(f"DROP TABLE IF EXISTS {old}, {old}_outcomes"))
    return [m.name for m in swap]


def analyze_tables(store: Store, metrics: list[Metric]) -> None:
    """Tell the planner what tables hold that were just filled: it must find single rows in them.

    PostgreSQL would do so by itself within minutes, which the next refresh may not wait for.
    """
    if metrics:
        with store.owner_transaction() as conn:
            for metric in metrics:
                conn.execute(text(f"ANALYZE {metric.table}"))


def _create(conn: Connection, metric: Metric) -> None:
    _create_table(conn, metric, metric.table, "activity")
    if metric.family("outcome"):
        _create_table(conn, metric, metric.outcome_table, "outcome")


def _create_table(conn: Connection, metric: Metric, table: str, family: str) -> None:
    columns = ["campus_id int NOT NULL REFERENCES theon.campuses (id)"]
    for column in metric.columns:
        if column.name != "campus" and column.family in ("key", family):
            null = " NOT NULL" if column.family == "key" else ""
            columns.append(f"{column.name} {column.postgres_type}{null}")
    # Activity comes period by period, outcomes learner by learner.
    last = family == "outcome"
    keys = sorted(metric.keys, key=lambda k: (k == metric.period_column) == last)
    columns.append(f"PRIMARY KEY (campus_id, {', '.join(keys)})")
    conn.execute(text(f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(columns)})"))
    if last:
        # The period comes first: of a table that has just begun to grow the planner knows nothing,
        # and would find a learner by the campus alone in an index that begins with it.
        index = f"{table.partition('.')[2]}_of_period"
        by_period = f"({metric.period_column}, campus_id)"
        conn.execute(text(f"DROP INDEX IF EXISTS {table}_period"))
        conn.execute(text(f"CREATE INDEX IF NOT EXISTS {index} ON {table} {by_period}"))
    protect(conn, table)


def _point_view(conn: Connection, metric: Metric) -> None:
    views = {metric.name: _view_sql(metric)}
    if metric.family("outcome"):
        views[f"{metric.name}_outcomes"] = f"SELECT * FROM {metric.outcome_table}"
    for name, query in views.items():
        # security_invoker: the view reads with the rights, and the scope, of who asks.
        conn.execute(text(f"DROP VIEW IF EXISTS metrics.{name}"))
        conn.execute(text(f"CREATE VIEW metrics.{name} WITH (security_invoker = true) AS {query}"))
        conn.execute(text(f"COMMENT ON VIEW metrics.{name} IS '{metric.version}'"))
        conn.execute(text(f'GRANT SELECT ON metrics.{name} TO "{app_role(conn)}"'))


def _view_sql(metric: Metric) -> str:
    if not metric.family("outcome"):
        return f"SELECT * FROM {metric.table}"
    columns = [c for c in metric.columns if c.name != "campus"]
    same = " AND ".join(f"a.{k} = o.{k}" for k in ["campus_id", *metric.keys])
    both = [f"{'o' if c.family == 'outcome' else 'a'}.{c.name}" for c in columns]
    alone = [
        f"NULL::{c.postgres_type} AS {c.name}" if c.family == "activity" else f"o.{c.name}"
        for c in columns
    ]
    # Not a full join: what is asked for of a key must reach both tables' indexes.
    return (
        f"SELECT a.campus_id, {', '.join(both)} FROM {metric.table} AS a "
        f"LEFT JOIN {metric.outcome_table} AS o ON {same} UNION ALL "
        f"SELECT o.campus_id, {', '.join(alone)} FROM {metric.outcome_table} AS o "
        f"WHERE NOT EXISTS (SELECT 1 FROM {metric.table} AS a WHERE {same})"
    )
