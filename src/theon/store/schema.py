"""Brings a database up to date: the application's role, then Alembic's migrations.

All of it is one transaction under one lock of the database, so processes that start at the
same moment wait for the first and find everything done.
"""

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import ProgrammingError

from theon.errors import ConflictError, InputError, UnavailableError
from theon.store.scope import run_definition
from theon.store.urls import place, why_no_login

POSTGRES_MAJOR = 15

_LOCK = 7_306_086_967  # any number, the same in every version of Theon


def prepare(owner: Engine, app: URL, *, make_role: bool) -> None:
    """Make or check the application's role and bring the schemas up to date.

    Args:
        owner: connects as the owner of the schemas.
        app: how the application connects (its user name and password are used).
        make_role: whether Theon makes and keeps the role (else the operator did).

    Raises:
        UnavailableError: the server is older than PostgreSQL 15, or the owner may not make roles.
        ConflictError: the role exists with a password that is not in this home's secrets.
        InputError: the operator's role could read past its scope.
    """
    try:
        _prepare(owner, app, make_role=make_role)
    except ProgrammingError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        raise UnavailableError(
            f"the owner lacks a right: {str(error.orig).strip()}",
            where=place(owner.url),
            next_step=f"Have an administrator run GRANT CREATE ON DATABASE {owner.url.database} "
            f"TO {owner.url.username}; or let that user own the database.",
        ) from error


def _prepare(owner: Engine, app: URL, *, make_role: bool) -> None:
    with owner.begin() as conn:
        _check_version(conn)
        conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if make_role:
            _make_role(conn, app)
        _check_role(conn, str(app.username))
        conn.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS theon")
        _migrate(conn)
        _grant(conn, str(app.username))


def _check_version(conn: Connection) -> None:
    number = int(str(conn.execute(text("SHOW server_version_num")).scalar_one()))
    if number < POSTGRES_MAJOR * 10_000:
        raise UnavailableError(
            f"PostgreSQL {number // 10_000} is too old",
            where=place(conn.engine.url),
            next_step=f"Point POSTGRES_URL to PostgreSQL {POSTGRES_MAJOR} or newer, or unset it "
            "to use the embedded one.",
        )


def _make_role(conn: Connection, app: URL) -> None:
    name = str(app.username)
    known = conn.execute(text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": name})
    if known.first() is not None:
        # Made whole in the transaction of its maker, so it can log in or is somebody else's.
        reason = why_no_login(app)
        if reason is not None:
            raise ConflictError(
                f"the role {name!r} exists and does not let this home in: {reason}",
                where=place(conn.engine.url),
                next_step="Copy the folder `secrets` of the THEON_HOME that made it, or have an "
                f"administrator run DROP OWNED BY {name}; DROP ROLE {name}; and start again.",
            )
        return
    may = conn.execute(
        text("SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user")
    )
    if not may.scalar_one():
        raise UnavailableError(
            f"this user may not create the application's role {name!r}",
            where=place(conn.engine.url),
            next_step="Give it CREATEROLE, or make a role without rights yourself and set "
            "POSTGRES_APP_URL to log in as it.",
        )
    run_definition(
        conn,
        "CREATE ROLE {name} LOGIN PASSWORD {password}",
        name=sql.Identifier(name),
        password=sql.Literal(app.password),
    )


def _check_role(conn: Connection, name: str) -> None:
    """Refuse a role that could read past its scope."""
    row = conn.execute(
        text(
            "SELECT rolsuper, rolbypassrls, pg_has_role(rolname, current_user, 'MEMBER')"
            " FROM pg_roles WHERE rolname = :name"
        ),
        {"name": name},
    ).first()
    if row is None:
        raise InputError(
            f"there is no role {name!r} in this database",
            where="POSTGRES_APP_URL",
            next_step=f"Have an administrator run CREATE ROLE {name} LOGIN PASSWORD '…';",
        )
    faults = ("is a superuser", "may bypass row-level security", "is the owner or its member")
    for fault, found in zip(faults, row, strict=True):
        if found:
            raise InputError(
                f"the application's role {name!r} {fault}, so scopes would not hold",
                where="POSTGRES_APP_URL",
                next_step="Use a role without rights of its own; Theon grants it what it needs.",
            )


def _migrate(conn: Connection) -> None:
    config = Config()
    here = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", here.replace("%", "%%"))
    config.attributes["connection"] = conn
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        if not isinstance(error.__cause__, ResolutionError):
            raise
        raise ConflictError(
            f"a newer Theon has used this database: {error}",
            where=place(conn.engine.url),
            next_step="Use that version of Theon, or a newer one; nothing was changed.",
        ) from error


def _grant(conn: Connection, name: str) -> None:
    """Let the application in, also one that is new to tables which exist already."""
    app = {"app": sql.Identifier(name)}
    database = {"database": sql.Identifier(str(conn.engine.url.database))}
    connects = conn.execute(
        text(
            "SELECT has_database_privilege(:name, current_database(), 'CONNECT')"
            " AND has_database_privilege(:name, current_database(), 'TEMPORARY')"
        ),
        {"name": name},
    )
    if not connects.scalar_one():
        statement = "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {app}"
        run_definition(conn, statement, **app, **database)
    granted = conn.execute(
        text("SELECT has_schema_privilege(:name, 'metrics', 'USAGE')"), {"name": name}
    )
    if granted.scalar_one():
        return
    for statement in (
        "GRANT USAGE ON SCHEMA theon, metrics TO {app}",
        "GRANT EXECUTE ON FUNCTION theon.visible_campus_ids() TO {app}",
        # A campus may be renamed, not moved: the tree decides who sees what.
        "GRANT SELECT, INSERT, UPDATE (name, timezone) ON theon.campuses TO {app}",
        "GRANT USAGE ON SEQUENCE theon.jobs_id_seq, theon.event_batches TO {app}",
        "GRANT SELECT ON theon.outcome_columns TO {app}",
    ):
        run_definition(conn, statement, **app)
    tables = conn.execute(
        text(
            "SELECT schemaname, tablename FROM pg_policies WHERE policyname = 'in_scope'"
            " AND schemaname IN ('theon', 'metrics') AND tablename <> 'campuses'"
        )
    )
    for schema, table in tables.all():
        target = sql.Identifier(schema, table)
        statement = "GRANT SELECT, INSERT, UPDATE, DELETE ON {target} TO {app}"
        run_definition(conn, statement, target=target, **app)
