"""The store: PostgreSQL, embedded or the operator's own, opened once per process."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from theon.errors import InputError, UnavailableError
from theon.settings import Settings
from theon.store.embedded import EmbeddedServer
from theon.store.schema import prepare
from theon.store.scope import Scope, set_scope
from theon.store.secrets import make_secret

DRIVER = "postgresql+psycopg"
CONNECT_LIMIT_S = 10


class Store:
    """An open database. Everything that reads or writes rows does so in a `transaction`."""

    def __init__(self, owner: Engine, app: Engine, server: EmbeddedServer | None) -> None:
        """Use `Store.open`."""
        self._owner = owner
        self._app = app
        self._server = server

    @classmethod
    def open(cls, settings: Settings, *, server: dict[str, str] | None = None) -> "Store":
        """Open the embedded PostgreSQL of `settings.home`, or the one of `settings.postgres_url`.

        Makes the application's role and brings the schemas up to date, if need be. Processes
        may do this at the same time. `server` replaces settings of an embedded server that
        this call starts.

        Raises:
            UnavailableError: no server answers, or it cannot be started.
            InputError: a URL cannot be read, or the application's role has too many rights.
            ConflictError: the application's role belongs to another home.
        """
        if settings.postgres_url is None:
            embedded = EmbeddedServer(settings.home_dir, configuration=server)
            try:
                return cls._open(settings, embedded.start(), embedded)
            except BaseException:
                embedded.release()
                raise
        return cls._open(settings, _read_url(settings.postgres_url, "POSTGRES_URL"), None)

    @classmethod
    def _open(cls, settings: Settings, owner: URL, server: EmbeddedServer | None) -> "Store":
        given = settings.postgres_app_url
        if given is None or server is not None:
            app = _own_app_url(settings, owner)
        else:
            app = _read_url(given, "POSTGRES_APP_URL")
        owner_engine = _engine(owner, f"-c theon.app_role={app.username}", pool_size=1)
        app_engine = _engine(app, "", pool_size=4)
        try:
            can_log_in = _logs_in(app)
            with _reachable(owner):
                prepare(
                    owner_engine,
                    app,
                    make_role=given is None or server is not None,
                    can_log_in=can_log_in,
                )
            with _reachable(app), app_engine.connect():
                pass
        except BaseException:
            owner_engine.dispose()
            app_engine.dispose()
            raise
        return cls(owner_engine, app_engine, server)

    @contextmanager
    def transaction(self, scope: Scope) -> Iterator[Connection]:
        """A transaction of the application that sees the rows of `scope` and no others.

        Commits when the block ends, rolls back when it raises. An unknown campus as scope
        sees nothing.

        Raises:
            UnavailableError: the database is not there, or went away inside the block.
        """
        with self._begin(self._app) as conn:
            set_scope(conn, scope)
            yield conn

    @contextmanager
    def owner_transaction(self) -> Iterator[Connection]:
        """A transaction of the owner, for defining tables only: it sees no campus's rows.

        Raises:
            UnavailableError: the database is not there, or went away inside the block.
        """
        with self._begin(self._owner) as conn:
            yield conn

    @contextmanager
    def _begin(self, engine: Engine) -> Iterator[Connection]:
        try:
            with self._connect(engine) as conn, conn.begin():
                yield conn
        except DBAPIError as error:
            if error.connection_invalidated:
                raise _gone(engine.url, error) from error
            raise

    def _connect(self, engine: Engine) -> Connection:
        try:
            return engine.connect()
        except OperationalError as error:
            if self._server is None:
                raise _unreachable(engine.url, error) from error
        self._server.start()  # it died since this store was opened; same socket, same passwords
        with _reachable(engine.url):
            return engine.connect()

    def close(self) -> None:
        """Close the connections; the last user of an embedded server stops it."""
        self._app.dispose()
        self._owner.dispose()
        if self._server is not None:
            self._server.release()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def libpq_arguments(url: URL) -> dict[str, Any]:
    """The URL as arguments for `psycopg.connect`."""
    named = url.translate_connect_args(username="user", database="dbname")
    return {"connect_timeout": CONNECT_LIMIT_S, **named, **dict(url.query)}


def _read_url(text: str, variable: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in ("postgresql", "postgres"):
        raise InputError(
            "this is not a PostgreSQL URL",
            where=variable,
            next_step="Write it as postgresql://user:password@host:5432/database.",
        )
    if not url.username or not url.database:
        raise InputError(
            "the URL names no user or no database",
            where=variable,
            next_step="Write it as postgresql://user:password@host:5432/database.",
        )
    return url.set(drivername=DRIVER)


def _own_app_url(settings: Settings, owner: URL) -> URL:
    """The role that Theon makes: one per database, for roles belong to the whole server."""
    name = f"theon_app_{owner.database}"
    if len(name.encode()) > 63:
        name = "theon_app_" + hashlib.sha256(name.encode()).hexdigest()[:16]
    place = f"{owner.host or 'local'}-{owner.port or ''}-{owner.database}"
    key = hashlib.sha256(place.encode()).hexdigest()[:16]
    return owner.set(username=name, password=make_secret(settings.home_dir, f"postgres-app-{key}"))


def _engine(url: URL, options: str, *, pool_size: int) -> Engine:
    given = str(url.query.get("options", ""))
    return create_engine(
        url,
        pool_size=pool_size,
        max_overflow=4,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_LIMIT_S,
            "application_name": "theon",
            "options": f"{given} -c timezone=UTC {options}".strip(),
        },
    )


def _logs_in(url: URL) -> bool:
    try:
        psycopg.connect(**libpq_arguments(url)).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def _reachable(url: URL) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise _unreachable(url, error) from error


def _place(url: URL) -> str:
    return url.render_as_string(hide_password=True).replace(f"{DRIVER}://", "postgresql://")


def _reason(error: DBAPIError) -> str:
    return str(error.orig).strip() or type(error.orig).__name__


def _unreachable(url: URL, error: DBAPIError) -> UnavailableError:
    return UnavailableError(
        f"the database cannot be reached: {_reason(error)}",
        where=_place(url),
        next_step="Check that the server runs and that host, port, user and password in "
        "POSTGRES_URL are right; unset it to use the embedded PostgreSQL.",
    )


def _gone(url: URL, error: DBAPIError) -> UnavailableError:
    return UnavailableError(
        f"the database went away in the middle of a transaction: {_reason(error)}",
        where=_place(url),
        next_step="Nothing of this transaction was kept; run the command again.",
    )
