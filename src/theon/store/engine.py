"""The store: PostgreSQL, embedded or the operator's own, opened once per process."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType, TracebackType
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import PoolResetState

from theon.errors import UnavailableError
from theon.settings import Settings
from theon.store.embedded import EmbeddedServer
from theon.store.schema import prepare
from theon.store.scope import Scope, set_scope
from theon.store.secrets import make_secret
from theon.store.urls import CONNECT_LIMIT_S, place, read_url

NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


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
        return cls._open(settings, read_url(settings.postgres_url, "POSTGRES_URL"), None)

    @classmethod
    def _open(cls, settings: Settings, owner: URL, server: EmbeddedServer | None) -> "Store":
        given = settings.postgres_app_url if server is None else None
        app = read_url(given, "POSTGRES_APP_URL") if given else _own_app_url(settings, owner)
        role = str(app.username).replace("\\", "\\\\").replace(" ", "\\ ")
        owner_engine = _engine(owner, f"-c theon.app_role={role}", pool_size=1)
        app_engine = _engine(app, "", pool_size=10)
        try:
            with _reachable(owner):
                prepare(owner_engine, app, make_role=given is None)
            with _reachable(app), app_engine.connect():
                pass
        except BaseException:
            owner_engine.dispose()
            app_engine.dispose()
            raise
        return cls(owner_engine, app_engine, server)

    @contextmanager
    def transaction(
        self, scope: Scope, settings: Mapping[str, str] = NO_SETTINGS
    ) -> Iterator[Connection]:
        """A transaction of the application that sees the rows of `scope` and no others.

        Commits when the block ends, rolls back when it raises. An unknown campus as scope
        sees nothing. `settings` are PostgreSQL's, for this transaction.

        Raises:
            UnavailableError: the database is not there, or went away inside the block.
        """
        with self._begin(self._app, scope, settings) as conn:
            yield conn

    @contextmanager
    def owner_transaction(self) -> Iterator[Connection]:
        """A transaction of the owner, for defining tables only: it sees no campus's rows.

        Raises:
            UnavailableError: the database is not there, or went away inside the block.
        """
        with self._begin(self._owner, None) as conn:
            yield conn

    def listen(
        self, channel: str, *, timeout_s: Callable[[], float], latest: bool = False
    ) -> Iterator[str | None]:
        """Notifications of `channel`, for as long as the caller iterates.

        Uses a connection outside the pool. One that breaks is replaced; what was notified
        meanwhile is lost, so None also means "look for yourself".

        Args:
            channel: its name, as given to `pg_notify`.
            timeout_s: says, before each wait, after how long without a notification None is
                given.
            latest: of notifications that came while the caller was busy only the last is given.

        Yields:
            The text of a notification, or None.
        """
        while True:
            try:
                conn = self._begun(self._app, None)
            except UnavailableError:
                time.sleep(timeout_s())
                yield None
                continue
            try:
                conn.rollback()
                driver: Any = conn.connection.driver_connection  # a detached one does not tell it
                conn.detach()
                driver.autocommit = True
                driver.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                yield None  # what came before it listened was not heard
                while True:
                    heard = [n.payload for n in driver.notifies(timeout=timeout_s(), stop_after=1)]
                    yield from (heard[-1:] if latest else heard) or [None]
            except (DBAPIError, psycopg.Error):
                yield None
            finally:
                with suppress(DBAPIError, psycopg.Error):
                    conn.close()

    @contextmanager
    def _begin(
        self, engine: Engine, scope: Scope | None, settings: Mapping[str, str] = NO_SETTINGS
    ) -> Iterator[Connection]:
        try:
            with self._begun(engine, scope, settings) as conn:
                transaction = conn.get_transaction()
                assert transaction is not None  # noqa: S101 - `_start` began it
                with transaction:
                    yield conn
        except (DBAPIError, psycopg.OperationalError) as error:
            # Bulk loads speak to the driver directly, so its own errors come here as well.
            if isinstance(error, DBAPIError) and not error.connection_invalidated:
                raise
            raise _gone(engine.url, error) from error

    def _begun(
        self, engine: Engine, scope: Scope | None, settings: Mapping[str, str] = NO_SETTINGS
    ) -> Connection:
        """A connection in a transaction; a dead server or connection is replaced once.

        Nothing was done yet, so a second attempt is safe. A pooled connection may look alive
        and not be: a killed server's children end a moment after it.
        """
        try:
            return _start(engine, scope, settings)
        except (OperationalError, InterfaceError) as error:
            if self._server is None and not error.connection_invalidated:
                raise _unreachable(engine.url, error) from error
        if self._server is not None:
            self._server.start()  # finds it, or starts it again: same socket, same passwords
        with _reachable(engine.url):
            return _start(engine, scope, settings)

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


def _start(engine: Engine, scope: Scope | None, settings: Mapping[str, str]) -> Connection:
    conn = engine.connect()
    try:
        conn.begin()
        # The first statement also shows whether a pooled connection still has its server.
        if scope is None:
            conn.execute(text("SELECT 1"))
        else:
            set_scope(conn, scope, settings)
    except BaseException:
        conn.close()
        raise
    return conn


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
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=4,
        pool_reset_on_return=None,  # `_leave_nothing` does it
        connect_args={
            "connect_timeout": CONNECT_LIMIT_S,
            # A prepared statement keeps a plan that was made when the table was small.
            "prepare_threshold": None,
            "application_name": "theon",
            "options": f"{given} -c timezone=UTC {options}".strip(),
        },
    )
    event.listen(engine, "reset", _leave_nothing)
    return engine


def _leave_nothing(
    connection: psycopg.Connection[Any], _record: object, state: PoolResetState
) -> None:
    """Make a connection as new before it is used again: the next use may have another scope.

    A temporary table or a setting that outlived its transaction would carry rows, or the
    scope itself, across.
    """
    if state.terminate_only or connection.closed:
        return
    connection.rollback()
    connection.autocommit = True
    connection.execute("RESET ALL; DISCARD TEMP")
    connection.autocommit = False


@contextmanager
def _reachable(url: URL) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise _unreachable(url, error) from error


def _unreachable(url: URL, error: DBAPIError) -> UnavailableError:
    return UnavailableError(
        f"the database cannot be reached: {str(error.orig or error).strip()}",
        where=place(url),
        next_step="Check that the server runs and that host, port, user and password in "
        "POSTGRES_URL are right; unset it to use the embedded PostgreSQL.",
    )


def _gone(url: URL, error: DBAPIError | psycopg.Error) -> UnavailableError:
    reason = str(getattr(error, "orig", error)).strip()
    return UnavailableError(
        f"the database went away in the middle of a transaction: {reason}",
        where=place(url),
        next_step="Nothing of this transaction was kept; run the command again.",
    )
