"""Arrow to PostgreSQL and back, by COPY, batch by batch.

CSV carries the rows. In it a quoted empty field is an empty string and an unquoted one a
null, in both directions, so the two never mix. PostgreSQL's text cannot hold the character
NUL; a string with one in it is refused.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv as pacsv
from psycopg import sql
from sqlalchemy import Connection

from theon.errors import InputError

READ_BLOCK_BYTES = 4 << 20

_WRITE_OPTIONS = pacsv.WriteOptions(include_header=False, quoting_style="needed")


def copy_in(conn: Connection, table: str, reader: pa.RecordBatchReader | pa.Table) -> int:
    """Append all rows of `reader` to `table`, in the transaction of `conn`.

    The table must not be under row-level security (PostgreSQL refuses COPY there): load a
    temporary table and insert from it. Columns go by name; the table may have others.

    Args:
        conn: a connection inside a transaction.
        table: a temporary table's name, or `schema.name`.
        reader: rows to append; timestamps must carry a time zone.

    Returns:
        The number of rows.

    Raises:
        InputError: a column's type has no counterpart, or PostgreSQL refused a value.
    """
    schema = _flat(reader.schema)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        sql.Identifier(*table.split(".")), sql.SQL(", ").join(map(sql.Identifier, schema.names))
    )
    batches = reader.to_batches() if isinstance(reader, pa.Table) else reader
    rows = 0
    try:
        with _driver(conn).cursor() as cursor, cursor.copy(statement) as copy:
            for batch in batches:
                out = io.BytesIO()
                pacsv.write_csv(batch.cast(schema), out, _WRITE_OPTIONS)
                copy.write(out.getbuffer())
                rows += batch.num_rows
    except psycopg.DataError as error:
        raise InputError(
            f"PostgreSQL refused a value: {str(error).strip()}",
            where=f"table {table}",
            next_step="Mend or leave out the row that it names; nothing of this load was kept.",
        ) from error
    return rows


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
