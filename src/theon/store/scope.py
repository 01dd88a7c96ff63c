"""Scope: whose rows a transaction sees. PostgreSQL enforces it, this module declares it.

A transaction names a campus (`theon.scope`); `theon.visible_campus_ids()` says which campus
ids that makes visible: this campus and all below it in the tree. Every table with a campus
column has a policy on that column, made by `protect`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from psycopg import sql
from sqlalchemy import Connection, TextClause, text

from theon.errors import InputError

DISTRICT = "district"  # the root of the tree, made by the first migration


@dataclass(frozen=True)
class Scope:
    """A campus and all below it, named by the campus's slug."""

    campus: str

    @classmethod
    def district(cls) -> "Scope":
        """The root of the tree: every campus."""
        return cls(DISTRICT)


def set_scope(
    conn: Connection, scope: Scope, settings: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Give the current transaction, and it alone, this scope and settings of PostgreSQL's."""
    given = {"theon.scope": scope.campus, **settings}
    values: dict[str, str] = {}
    for number, (name, value) in enumerate(given.items()):
        values |= {f"n{number}": name, f"v{number}": value}
    conn.execute(_setting(len(given)), values)


@cache
def _setting(count: int) -> TextClause:
    calls = (f"set_config(:n{number}, :v{number}, true)" for number in range(count))
    return text(f"SELECT {', '.join(calls)}")


def protect(conn: Connection, table: str, column: str = "campus_id") -> None:
    """Put `table` under row-level security by campus and open it to the application.

    The application's role may then read and write the rows of the campuses in its scope, and
    no others. Applying it twice changes nothing.

    Args:
        conn: a connection of the owner (a migration's, or `Store.owner_transaction`).
        table: the table with its schema, `schema.name`.
        column: the `int` column that holds the campus's id.

    Raises:
        InputError: `table` has no schema.
    """
    schema, dot, name = table.partition(".")
    if not dot or not name:
        raise InputError(
            f"table {table!r} is named without its schema",
            where="protect",
            next_step="Name it as schema.table.",
        )
    parts = {
        "table": sql.Identifier(schema, name),
        "column": sql.Identifier(column),
        "app": sql.Identifier(app_role(conn)),
    }
    for statement in (
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        "DROP POLICY IF EXISTS in_scope ON {table}",
        # The function stands in a sub-query so that it is called once per statement.
        "CREATE POLICY in_scope ON {table}"
        " USING ({column} = ANY ((SELECT theon.visible_campus_ids())::int[]))"
        " WITH CHECK ({column} = ANY ((SELECT theon.visible_campus_ids())::int[]))",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {app}",
    ):
        run_definition(conn, statement, **parts)


def run_definition(conn: Connection, statement: str, **parts: sql.Composable) -> None:
    """Run a statement that defines something, with names and literals put in its `{braces}`.

    PostgreSQL takes parameters in queries only; here names and values are quoted instead.
    """
    composed = sql.SQL(statement).format(**parts).as_string()
    conn.exec_driver_sql(composed.replace("%", "%%"))  # the driver reads % as a placeholder


def app_role(conn: Connection) -> str:
    """The name of the application's role, as the owner's connection knows it."""
    return str(conn.execute(text("SELECT current_setting('theon.app_role')")).scalar_one())
