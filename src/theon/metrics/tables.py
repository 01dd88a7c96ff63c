"""The published tables of the metrics: made from their definitions, one per version.

Readers use the view `metrics.<name>`. A definition with a raised version gets a table of its
own; the view moves to it once every campus has been published there, so nobody ever reads a
half-computed history.
"""

from sqlalchemy import Connection, text

from theon.metrics.catalog import Metric
from theon.store.engine import Store
from theon.store.scope import Scope, app_role, protect


def ensure_tables(store: Store, catalog: dict[str, Metric]) -> None:
    """Make the table of each metric's version, and its view where there is none yet."""
    with store.transaction(Scope.district()) as conn:
        found = conn.execute(
            text(
                "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname = 'metrics'"
            )
        )
        existing = {str(name) for (name,) in found}
        views = current_versions(conn)
    missing = [m for m in catalog.values() if m.table not in existing or m.name not in views]
    if not missing:
        return
    with store.owner_transaction() as conn:
        conn.execute(text("SELECT pg_advisory_xact_lock(hashtext('theon.metrics.tables'))"))
        for metric in missing:
            _create(conn, metric)
            if metric.name not in views:
                _point_view(conn, metric)


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
            conn.execute(text(f"DROP TABLE IF EXISTS metrics.{metric.name}_v{shown[metric.name]}"))
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
    columns = ["campus_id int NOT NULL REFERENCES theon.campuses (id)"]
    for column in metric.columns:
        if column.name != "campus":
            null = " NOT NULL" if column.family == "key" else ""
            columns.append(f"{column.name} {column.postgres_type}{null}")
    keys = sorted(metric.keys, key=lambda k: k != metric.period_column)
    columns.append(f"PRIMARY KEY (campus_id, {', '.join(keys)})")
    conn.execute(text(f"CREATE TABLE IF NOT EXISTS {metric.table} ({', '.join(columns)})"))
    protect(conn, metric.table)


def _point_view(conn: Connection, metric: Metric) -> None:
    # security_invoker: the view reads with the rights, and the scope, of who asks.
    conn.execute(text(f"DROP VIEW IF EXISTS metrics.{metric.name}"))
    conn.execute(
        text(
            f"CREATE VIEW metrics.{metric.name} WITH (security_invoker = true) AS "
            f"SELECT * FROM {metric.table}"
        )
    )
    conn.execute(text(f"COMMENT ON VIEW metrics.{metric.name} IS '{metric.version}'"))
    conn.execute(text(f'GRANT SELECT ON metrics.{metric.name} TO "{app_role(conn)}"'))
