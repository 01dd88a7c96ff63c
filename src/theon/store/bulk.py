"""Arrow to PostgreSQL and back, by COPY, batch by batch.

In goes the binary format. Out comes CSV, in which a quoted empty field is an empty string
and an unquoted one a null, so the two never mix. PostgreSQL's text cannot hold the character
NUL; a string with one in it is refused.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg import sql
from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.store.pgcopy import HEADER, TRAILER, encoder

READ_BLOCK_BYTES = 4 << 20
WRITE_BLOCK_BYTES = 16 << 20
WRITE_BLOCK_ROWS = 65_536

_REFUSALS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    pa.ArrowInvalid,
    pa.ArrowNotImplementedError,
)


def copy_in(conn: Connection, table: str, reader: pa.RecordBatchReader | pa.Table) -> int:
    """Append all rows of `reader` to `table`, in the transaction of `conn`.

    The table must not be under row-level security (PostgreSQL refuses COPY there): load a
    temporary table and insert from it. Columns go by name and are cast to the table's types,
    refusing what would lose something; the table may have more columns.

    Args:
        conn: a connection inside a transaction.
        table: a temporary table's name, or `schema.name`.
        reader: rows to append; a timestamp with a time zone goes into `timestamptz`, one
            without into `timestamp`.

    Returns:
        The number of rows.

    Raises:
        InputError: a column is unknown, its type has no counterpart, or a value does not fit.
    """
    columns = _target_columns(conn, table, reader.schema)
    encode = _encoder(columns, table)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(*table.split(".")),
        sql.SQL(", ").join(sql.Identifier(name) for name, _ in columns),
    )
    batches = reader.to_batches() if isinstance(reader, pa.Table) else reader
    rows = 0
    try:
        with _driver(conn).cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(HEADER)
            for batch in batches:
                for part in _slices(batch):
                    copy.write(encode(part))
                rows += batch.num_rows
            copy.write(TRAILER)
    except _REFUSALS as error:
        raise InputError(
            f"a value does not fit: {str(error).strip()}",
            where=f"table {table}",
            next_step="Mend or leave out the row that has it; nothing of this load was kept.",
        ) from error
    return rows


def _target_columns(conn: Connection, table: str, schema: pa.Schema) -> list[tuple[str, str]]:
    """Name and PostgreSQL type of the columns to fill, in the order of `schema`."""
    found = conn.execute(
        text(
            "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute"
            " WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped"
        ),
        {"table": sql.Identifier(*table.split(".")).as_string()},
    )
    types = {str(name): str(kind) for name, kind in found.all()}
    unknown = [name for name in schema.names if name not in types]
    if unknown:
        raise InputError(
            f"there is no column {', '.join(unknown)}" if types else "there is no such table",
            where=f"table {table}",
            next_step=f"It has: {', '.join(types)}." if types else "Make it first.",
        )
    for field in schema:
        naive = pa.types.is_timestamp(field.type) and field.type.tz is None
        aware = pa.types.is_timestamp(field.type) and field.type.tz is not None
        if (naive and types[field.name] == "timestamp with time zone") or (
            aware and types[field.name] == "timestamp without time zone"
        ):
            raise InputError(
                f"column {field.name!r} is {types[field.name]}, the rows have {field.type}",
                where=f"table {table}",
                next_step="Say in the rows which time zone these times are in, or that none is.",
            )
    return [(name, types[name]) for name in schema.names]


def _encoder(columns: list[tuple[str, str]], table: str) -> Callable[[pa.RecordBatch], memoryview]:
    try:
        return encoder(columns)
    except KeyError as error:
        name = error.args[0]
        raise InputError(
            f"column {name!r} has the type {dict(columns)[name]}, which cannot be loaded in bulk",
            where=f"table {table}",
            next_step="Load it as text or a number and convert it in the database.",
        ) from error


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in parts whose encoding takes tens of megabytes, not more."""
    share = WRITE_BLOCK_BYTES / max(batch.nbytes, 1)
    rows = max(1, min(WRITE_BLOCK_ROWS, int(batch.num_rows * share)))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def read_arrow(
    conn: Connection,
    query: str,
    params: Sequence[object] | Mapping[str, object] | None,
    schema: pa.Schema,
) -> pa.RecordBatchReader:
    """Stream the result of `query` as Arrow, in the transaction of `conn`.

    Memory holds a few blocks of text (`READ_BLOCK_BYTES`) and their rows, however long the
    result is. Read it to its end, or close it, before the connection is used again.

    Args:
        conn: a connection inside a transaction.
        query: SQL with placeholders `%s` or `%(name)s`, without a trailing semicolon.
        params: the placeholders' values, or None.
        schema: names and types of the result's columns, in their order.

    Raises:
        InputError: a column's type cannot be read back.
        pyarrow.ArrowInvalid: a value does not fit `schema`.
    """
    flat = _flat(schema)
    inner = sql.SQL(query)  # our own SQL; its values are parameters
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)").format(inner)
    return pa.RecordBatchReader.from_batches(flat, _read(_driver(conn), statement, params, flat))


def _read(
    connection: psycopg.Connection[Any],
    statement: sql.Composed,
    params: Sequence[object] | Mapping[str, object] | None,
    schema: pa.Schema,
) -> Iterator[pa.RecordBatch]:
    with connection.cursor() as cursor, cursor.copy(statement, params) as copy:
        for block in _blocks(copy):
            yield from pacsv.read_csv(
                io.BytesIO(block),
                read_options=pacsv.ReadOptions(
                    column_names=schema.names, block_size=len(block) + 1, use_threads=False
                ),
                parse_options=pacsv.ParseOptions(newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types=schema,
                    null_values=[""],
                    true_values=["t"],
                    false_values=["f"],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ).to_batches()


def _blocks(copy: psycopg.Copy) -> Iterator[bytes]:
    """The COPY data in blocks of whole rows: the protocol sends one message per row."""
    parts: list[bytes] = []
    size = 0
    for part in copy:
        parts.append(bytes(part))
        size += len(part)
        if size >= READ_BLOCK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _flat(schema: pa.Schema) -> pa.Schema:
    """The schema as CSV can carry it: dictionaries as their values; nothing nested."""
    fields = []
    for field in schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        naive = pa.types.is_timestamp(kind) and kind.tz is None
        if naive or pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise InputError(
                f"column {field.name!r} has the type {kind}, which cannot be loaded"
                + (": a timestamp must say its time zone" if naive else ""),
                where="bulk load",
                next_step="Cast it before it is loaded.",
            )
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _driver(conn: Connection) -> psycopg.Connection[Any]:
    connection = conn.connection.driver_connection
    if not isinstance(connection, psycopg.Connection):
        raise TypeError("the store speaks psycopg")
    return connection
