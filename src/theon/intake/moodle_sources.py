"""A Moodle database, PostgreSQL or MySQL, read as CSV: the server itself writes the rows.

Every statement runs in a read-only transaction of its own, so that no snapshot is held
longer than a chunk takes. Nothing here can write.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, LiteralString, Protocol, cast

import psycopg
import pymysql
from psycopg import sql
from pymysql.constants import CLIENT
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from theon.errors import InputError, UnavailableError

CONNECT_LIMIT_S = 10
LOG_TABLE = "logstore_standard_log"
# Rows that MySQL joins to one value of its answer; fewer where they are long.
JOINED_ROWS = 2_000
JOINED_BYTES = 1 << 30

_URL_HELP = (
    "Write it as postgresql://user:password@host/moodle or mysql://user:password@host/moodle."
)


@dataclass(frozen=True)
class Since:
    """Rows in which a column of epoch seconds has this value or a later one."""

    column: str
    value: int


class MoodleSource(Protocol):
    """What is asked of a Moodle database. Table and column names are Moodle's own."""

    def tables(self) -> list[str]:
        """The tables whose name ends as the log's."""

    def columns(self, table: str) -> list[str]:
        """The columns of a table."""

    def setting(self, table: str, name: str) -> str | None:
        """A value of Moodle's config table."""

    def chunk_end(self, table: str, after: int, rows: int) -> int | None:
        """The highest of the next `rows` ids after `after`; None if there is none."""

    def copy(
        self,
        table: str,
        columns: Sequence[str],
        after: int,
        upto: int,
        file: Path,
        since: Since | None = None,
    ) -> None:
        """Write the rows with `after` < id <= `upto` to a CSV file with header, by id.

        Of these only those whose column `since.column` is `since.value` or more, if given.
        """

    def sums(
        self, table: str, after: int, upto: int, width: int
    ) -> list[tuple[int, int, int, int]]:
        """What the ids with `after` < id <= `upto` add up to, per `width` of them.

        Returns:
            (id // width, rows, sum of id % width, sum of its squares) where there are rows.
        """

    def ids(self, table: str, after: int, upto: int) -> list[int]:
        """The ids with `after` < id <= `upto`, in order."""


@contextmanager
def open_source(location: str) -> Iterator[MoodleSource]:
    """Open the Moodle database at a URL.

    Raises:
        InputError: the URL is none of a database that is supported.
        UnavailableError: the database does not answer, now or later.
    """
    try:
        url = make_url(location)
    except (ArgumentError, ValueError) as error:
        raise InputError(
            "this is no URL of a database", where="location", next_step=_URL_HELP
        ) from error
    openers: dict[str, Any] = {
        "postgresql": _open_postgres,
        "postgres": _open_postgres,
        "mysql": _open_mysql,
        "mariadb": _open_mysql,
    }
    opener = openers.get(url.get_backend_name())
    if opener is None or not url.database:
        raise InputError(
            f"a Moodle database is PostgreSQL or MySQL; this is {url.get_backend_name()!r}"
            if opener is None
            else "the URL names no database",
            where=shown(url),
            next_step=_URL_HELP,
        )
    with cast(AbstractContextManager[MoodleSource], opener(url)) as source:
        yield source


def shown(url: URL) -> str:
    """The URL without its password and options."""
    return url.set(query={}).render_as_string(hide_password=True)


def _gone(url: URL, error: Exception) -> UnavailableError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    progress = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
    return UnavailableError(
        f"the Moodle database does not answer: {reason}{progress}",
        where=shown(url),
        next_step="Check that it runs and that address, user and password are right; then run "
        "the same command again. What was read is kept, and it goes on from there.",
    )


def _refused(url: URL, error: Exception) -> InputError:
    return InputError(
        f"the Moodle database refused: {str(error).strip().splitlines()[0]}",
        where=shown(url),
        next_step="The user needs the right to read the tables of Moodle (SELECT).",
    )


@contextmanager
def _open_postgres(url: URL) -> Iterator["PostgresSource"]:
    try:
        with psycopg.connect(**_libpq(url)) as conn:
            conn.read_only = True
            yield PostgresSource(conn)
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise _gone(url, error) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise _refused(url, error) from error


def _libpq(url: URL) -> dict[str, Any]:
    named = url.translate_connect_args(username="user", database="dbname")
    given = {"connect_timeout": CONNECT_LIMIT_S, "application_name": "theon intake"}
    return {**given, **named, **dict(url.query)}


class PostgresSource:
    """Moodle on PostgreSQL: COPY writes the rows."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        """Read by a connection whose transactions are read-only."""
        self._conn = conn

    def tables(self) -> list[str]:
        """See `MoodleSource`."""
        return self._column(
            "SELECT table_name::text FROM information_schema.tables WHERE table_schema = "
            "ANY (current_schemas(false)) AND right(table_name, %s) = %s ORDER BY 1",
            [len(LOG_TABLE), LOG_TABLE],
        )

    def columns(self, table: str) -> list[str]:
        """See `MoodleSource`."""
        return self._column(
            "SELECT column_name::text FROM information_schema.columns WHERE table_schema = "
            "ANY (current_schemas(false)) AND table_name = %s ORDER BY ordinal_position",
            [table],
        )

    def setting(self, table: str, name: str) -> str | None:
        """See `MoodleSource`."""
        query = sql.SQL("SELECT value FROM {} WHERE name = %s").format(sql.Identifier(table))
        return next(iter(self._column(query, [name])), None)

    def chunk_end(self, table: str, after: int, rows: int) -> int | None:
        """See `MoodleSource`."""
        query = sql.SQL(
            "SELECT max(id) FROM (SELECT id FROM {} WHERE id > %s ORDER BY id LIMIT %s) AS next"
        ).format(sql.Identifier(table))
        return cast("int | None", self._column(query, [after, rows])[0])

    def copy(
        self,
        table: str,
        columns: Sequence[str],
        after: int,
        upto: int,
        file: Path,
        since: Since | None = None,
    ) -> None:
        """See `MoodleSource`."""
        changed: sql.Composable = sql.SQL("true")
        if since is not None:
            changed = sql.SQL("{} >= {}").format(
                sql.Identifier(since.column), sql.Literal(since.value)
            )
        query = sql.SQL(
            "COPY (SELECT {} FROM {} WHERE id > {} AND id <= {} AND {} ORDER BY id) "
            "TO STDOUT (FORMAT csv, HEADER, ENCODING 'UTF8')"
        ).format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.Identifier(table),
            sql.Literal(after),
            sql.Literal(upto),
            changed,
        )
        with (
            self._conn.transaction(),
            self._conn.cursor() as cursor,
            file.open("wb") as out,
            cursor.copy(query) as copy,
        ):
            out.writelines(copy)

    def sums(
        self, table: str, after: int, upto: int, width: int
    ) -> list[tuple[int, int, int, int]]:
        """See `MoodleSource`."""
        query = sql.SQL(
            "SELECT id / {0}, count(*), sum(id %% {0})::bigint,"
            " sum((id %% {0}) * (id %% {0}))::bigint"
            " FROM {1} WHERE id > %s AND id <= %s GROUP BY 1 ORDER BY 1"
        ).format(sql.Literal(width), sql.Identifier(table))
        return [tuple(map(int, row)) for row in self._rows(query, [after, upto])]  # type: ignore[misc]

    def ids(self, table: str, after: int, upto: int) -> list[int]:
        """See `MoodleSource`."""
        query = sql.SQL("SELECT id FROM {} WHERE id > %s AND id <= %s ORDER BY id")
        return self._column(query.format(sql.Identifier(table)), [after, upto])

    def _column(self, query: LiteralString | sql.Composed, values: Sequence[object]) -> list[Any]:
        return [row[0] for row in self._rows(query, values)]

    def _rows(
        self, query: LiteralString | sql.Composed, values: Sequence[object]
    ) -> list[tuple[Any, ...]]:
        statement = sql.SQL(query) if isinstance(query, str) else query
        with self._conn.transaction(), self._conn.cursor() as cursor:
            return cursor.execute(statement, values).fetchall()


@contextmanager
def _open_mysql(url: URL) -> Iterator["MysqlSource"]:
    socket = url.query.get("unix_socket")
    try:
        conn = pymysql.connect(
            host=url.host or "localhost",
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            database=url.database,
            unix_socket=str(socket) if socket else None,
            charset="utf8mb4",
            connect_timeout=CONNECT_LIMIT_S,
            client_flag=CLIENT.MULTI_RESULTS,
        )
    except pymysql.err.Error as error:
        raise _gone(url, error) from error
    try:
        yield MysqlSource(conn)
    except (pymysql.err.OperationalError, pymysql.err.InterfaceError) as error:
        denied = error.args and error.args[0] in (1044, 1142, 1143)
        raise (_refused if denied else _gone)(url, error) from error
    finally:
        if conn.open:
            conn.close()


class MysqlSource:
    """Moodle on MySQL or MariaDB.

    Neither can send CSV, but both can build it: GROUP_CONCAT joins the rows of a range of
    ids to one value, so no row passes through Python by itself.
    """

    def __init__(self, conn: "pymysql.connections.Connection[Any]") -> None:
        """Read by a connection; every transaction here is started as read-only."""
        self._conn = conn
        with conn.cursor() as cursor:
            # Of this connection only. The server's max_allowed_packet limits it further.
            cursor.execute("SET SESSION group_concat_max_len = %s", [JOINED_BYTES])

    def tables(self) -> list[str]:
        """See `MoodleSource`."""
        return self._column(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() "
            "AND right(table_name, %s) = %s ORDER BY 1",
            [len(LOG_TABLE), LOG_TABLE],
        )

    def columns(self, table: str) -> list[str]:
        """See `MoodleSource`."""
        return self._column(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() "
            "AND table_name = %s ORDER BY ordinal_position",
            [table],
        )

    def setting(self, table: str, name: str) -> str | None:
        """See `MoodleSource`."""
        found = self._column(f"SELECT value FROM {_quoted(table)} WHERE name = %s", [name])
        return next(iter(found), None)

    def chunk_end(self, table: str, after: int, rows: int) -> int | None:
        """See `MoodleSource`."""
        found = self._column(
            f"SELECT max(id) FROM (SELECT id FROM {_quoted(table)} WHERE id > %s "
            f"ORDER BY id LIMIT %s) AS following",
            [after, rows],
        )
        return cast("int | None", found[0])

    def copy(
        self,
        table: str,
        columns: Sequence[str],
        after: int,
        upto: int,
        file: Path,
        since: Since | None = None,
    ) -> None:
        """See `MoodleSource`."""
        fields = ", ".join(
            f"""IFNULL(CONCAT('"', REPLACE({_quoted(c)}, '"', '""'), '"'), '')""" for c in columns
        )
        rows = _quoted(table)
        if since is not None:
            # The value is a whole number of ours.
            rows = f"(SELECT * FROM {rows} WHERE {_quoted(since.column)} >= {since.value:d}) AS t"
        with file.open("wb") as out, self._read_only():
            out.write((",".join(columns) + "\n").encode())
            while after < upto:
                end = self._part_end(rows, after, upto, JOINED_ROWS)
                self._join(rows, fields, after, end, out)
                after = end

    def sums(
        self, table: str, after: int, upto: int, width: int
    ) -> list[tuple[int, int, int, int]]:
        """See `MoodleSource`."""
        rows = self._rows(
            "SELECT id DIV %s, count(*), sum(id MOD %s), sum((id MOD %s) * (id MOD %s))"
            f" FROM {_quoted(table)} WHERE id > %s AND id <= %s GROUP BY 1 ORDER BY 1",
            [width] * 4 + [after, upto],
        )
        return [tuple(map(int, row)) for row in rows]  # type: ignore[misc]

    def ids(self, table: str, after: int, upto: int) -> list[int]:
        """See `MoodleSource`."""
        return self._column(
            f"SELECT id FROM {_quoted(table)} WHERE id > %s AND id <= %s ORDER BY id",
            [after, upto],
        )

    def _part_end(self, rows: str, after: int, upto: int, limit: int) -> int:
        (end,) = self._one(
            f"SELECT max(id) FROM (SELECT id FROM {rows} WHERE id > %s AND id <= %s "
            f"ORDER BY id LIMIT %s) AS following",
            [after, upto, limit],
        )
        return upto if end is None else int(end)

    def _join(self, rows: str, fields: str, after: int, upto: int, out: BinaryIO) -> None:
        count, size, joined = self._one(
            f"SELECT count(*), sum(octet_length(line)) + count(*) - 1, "
            f"GROUP_CONCAT(line ORDER BY id SEPARATOR '\\n') FROM "
            f"(SELECT id, CONCAT_WS(',', {fields}) AS line FROM {rows} "
            f"WHERE id > %s AND id <= %s) AS rows_",
            [after, upto],
        )
        if not count:
            return
        block = (joined or "").encode()
        if len(block) == size:
            out.write(block + b"\n")
            return
        if count == 1:
            raise InputError(
                f"the row is longer than the server may send ({size} bytes)",
                where=f"{rows}, id {upto}",
                next_step="Raise max_allowed_packet of the MySQL server.",
            )
        # The server cut the value at its packet size: take the range in two halves.
        middle = self._part_end(rows, after, upto, count // 2)
        self._join(rows, fields, after, middle, out)
        self._join(rows, fields, middle, upto, out)

    @contextmanager
    def _read_only(self) -> Iterator[None]:
        self._one_way("START TRANSACTION READ ONLY")
        yield
        self._one_way("COMMIT")

    def _one_way(self, statement: str) -> None:
        with self._conn.cursor() as cursor:
            cursor.execute(statement)

    def _one(self, query: str, values: Sequence[object]) -> tuple[Any, ...]:
        with self._conn.cursor() as cursor:
            cursor.execute(query, values)
            row = cursor.fetchone()
        return tuple(row or ())

    def _column(self, query: str, values: Sequence[object]) -> list[Any]:
        return [row[0] for row in self._rows(query, values)]

    def _rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._read_only(), self._conn.cursor() as cursor:
            cursor.execute(query, values)
            return list(cursor.fetchall())


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
