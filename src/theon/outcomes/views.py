"""The present states as views, for readers: `theon.outcome_<state>`, by row-level security."""

import hashlib

from psycopg import sql
from sqlalchemy import Connection, text

from theon.outcomes.states import facts_sql, state_queries
from theon.store.scope import app_role, run_definition

_SOURCE = (
    "SELECT f.*, timezone(c.timezone, f.occurred_at) AS local_at"
    " FROM theon.outcome_facts AS f JOIN theon.campuses AS c ON c.id = f.campus_id"
)


def _definitions() -> dict[str, tuple[str, str]]:
    """View name to its SQL, and a hash of that."""
    found = {}
    for name, query in state_queries().items():
        body = f"WITH facts AS ({facts_sql(_SOURCE)}) {query}"
        found[f"outcome_{name}"] = (body, hashlib.sha256(body.encode()).hexdigest()[:16])
    return found


def missing_views(conn: Connection) -> list[str]:
    """The views that are not there as they should be."""
    rows = conn.execute(
        text(
            "SELECT c.relname, obj_description(c.oid) FROM pg_class c JOIN pg_namespace n"
            " ON n.oid = c.relnamespace WHERE n.nspname = 'theon' AND c.relkind = 'v'"
        )
    )
    there = {str(name): comment for name, comment in rows}
    return [name for name, (_, digest) in _definitions().items() if there.get(name) != digest]


def make_views(conn: Connection, names: list[str]) -> None:
    """Make some of the views, anew if need be; in a transaction of the owner."""
    for name in names:
        body, digest = _definitions()[name]
        view = {"view": sql.Identifier("theon", name)}
        conn.execute(text(f"DROP VIEW IF EXISTS theon.{name}"))
        # security_invoker: the view reads with the rights, and the scope, of who asks.
        conn.execute(text(f"CREATE VIEW theon.{name} WITH (security_invoker = true) AS {body}"))
        app = {"app": sql.Identifier(app_role(conn))}
        run_definition(conn, "COMMENT ON VIEW {view} IS {hash}", **view, hash=sql.Literal(digest))
        run_definition(conn, "GRANT SELECT ON {view} TO {app}", **view, **app)


def course_structures(conn: Connection, campus_id: int) -> dict[str, str | None]:
    """Course to the ids of its activities that can be completed, as facts hold them (`items`).

    Needs no view, so it is there before any metric's table.
    """
    query = state_queries()["structures"]
    source = f"{_SOURCE} WHERE f.campus_id = :campus AND f.kind = 'structure'"
    found = conn.execute(
        text(f"WITH facts AS ({facts_sql(source)}) SELECT course_id, items FROM ({query}) AS s"),
        {"campus": campus_id},
    )
    return {row.course_id: row.items for row in found}
