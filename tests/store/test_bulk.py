"""Bulk loads: what goes in comes out."""

import datetime as dt
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from theon.errors import InputError
from theon.store.bulk import READ_BLOCK_BYTES, copy_in, read_arrow
from theon.store.engine import Store
from theon.store.pgcopy import HEADER, TRAILER, encoder
from theon.store.scope import Scope

SCHEMA = pa.schema(
    [
        pa.field("n", pa.int64()),
        pa.field("small", pa.int16()),
        pa.field("words", pa.string()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("day", pa.date32()),
        pa.field("x", pa.float64()),
        pa.field("yes", pa.bool_()),
    ]
)
COLUMNS = "n bigint, small smallint, words text, at timestamptz, day date, x float8, yes boolean"

# PostgreSQL's text holds every character but NUL; a lone surrogate is no character at all.
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
NASTY = st.sampled_from(
    ["", " ", '"', '""', "a,b", "\n", "\r\n", "\\N", "\\.", "NULL", "t", "é", "😀"]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "small": st.none() | st.integers(-(2**15), 2**15 - 1),
            "words": st.none() | WORDS | NASTY,
            "at": st.none() | st.datetimes(timezones=st.just(dt.UTC)),
            "day": st.none() | st.dates(dt.date(1, 1, 1), dt.date(9999, 12, 31)),
            "x": st.none() | st.floats(allow_nan=False),
            "yes": st.none() | st.booleans(),
        }
    ),
    max_size=12,
)


def through_postgres(conn: Connection, rows: pa.Table) -> pa.Table:
    conn.exec_driver_sql("DROP TABLE IF EXISTS pg_temp.t")
    conn.exec_driver_sql(f"CREATE TEMPORARY TABLE t ({COLUMNS}, o serial) ON COMMIT DROP")
    assert copy_in(conn, "t", rows) == rows.num_rows
    names = ", ".join(rows.schema.names)
    return read_arrow(conn, f"SELECT {names} FROM t ORDER BY o", None, rows.schema).read_all()


@given(rows=ROWS, cut=st.integers(1, 5))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_goes_in_comes_out(
    shared_store: Store, rows: list[dict[str, object]], cut: int
) -> None:
    """Nulls, empty strings, quotes, line ends, any character, times, floats: all come back."""
    table = pa.Table.from_pylist(rows, SCHEMA)
    batches = pa.Table.from_batches(table.to_batches(max_chunksize=cut), SCHEMA)
    with shared_store.transaction(Scope.district()) as conn:
        assert through_postgres(conn, batches).to_pylist() == rows


def test_a_stream_is_loaded_and_read_batch_by_batch(store: Store) -> None:
    """Neither direction holds all rows: batches come and go while the transfer runs."""
    rows, batch_rows = 400_000, 20_000
    made: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, batch_rows):
            made.append(start)
            n = pa.array(range(start, start + batch_rows), pa.int64())
            words = pc.binary_join_element_wise(pc.cast(n, pa.string()), "x" * 30, "-")
            yield pa.record_batch([n, words], names=["n", "words"])

    schema = pa.schema([("n", pa.int64()), ("words", pa.string())])
    with store.transaction(Scope.district()) as conn:
        conn.exec_driver_sql("CREATE TEMPORARY TABLE t (words text, n bigint) ON COMMIT DROP")
        assert copy_in(conn, "t", pa.RecordBatchReader.from_batches(schema, batches())) == rows
        assert len(made) == rows // batch_rows
        reader = read_arrow(
            conn, "SELECT n, words FROM t WHERE n >= %(least)s ORDER BY n", {"least": 10}, schema
        )
        before, largest, seen, total = pa.total_allocated_bytes(), 0, 0, 0
        for batch in reader:
            largest = max(largest, pa.total_allocated_bytes() - before)
            seen += batch.num_rows
            total += pc.sum(batch["n"]).as_py()
            assert pc.all(pc.ends_with(batch["words"], "-" + "x" * 30)).as_py()
    assert seen == rows - 10
    assert total == sum(range(10, rows))
    assert largest < 4 * READ_BLOCK_BYTES


def test_a_load_into_a_table_is_part_of_its_transaction(store: Store) -> None:
    """What fails later takes the loaded rows with it, and scopes hold for what is inserted."""
    people = pa.table({"user_id": ["1", "2"]})

    def work(scope: Scope, fail: bool) -> None:
        with store.transaction(scope) as conn:
            conn.exec_driver_sql("CREATE TEMPORARY TABLE t (user_id text) ON COMMIT DROP")
            copy_in(conn, "t", people)
            conn.exec_driver_sql(
                "INSERT INTO theon.people (campus_id, user_id) SELECT 1, user_id FROM t"
            )
            if fail:
                raise RuntimeError("after the load")

    with pytest.raises(RuntimeError, match="after the load"):
        work(Scope.district(), fail=True)
    with pytest.raises(ProgrammingError, match="row-level security"):
        work(Scope("nowhere"), fail=False)
    work(Scope.district(), fail=False)
    with store.transaction(Scope.district()) as conn:
        query = "SELECT user_id FROM theon.people ORDER BY 1"
        assert read_arrow(conn, query, None, people.schema).read_all() == people
    with store.transaction(Scope("nowhere")) as conn:
        assert read_arrow(conn, query, None, people.schema).read_all().num_rows == 0


@pytest.mark.parametrize(
    ("columns", "rows", "told"),
    [
        ("n smallint", {"n": pa.array([40_000])}, "40000"),
        ("n int", {"n": pa.array([1.5])}, "1.5|truncated"),
        ("words text", {"words": pa.array(["a", "b\0c"])}, "0x00.*line 2"),
        ("n int", {"m": pa.array([1])}, "no column m.*It has: n"),
        ("n numeric", {"n": pa.array([1])}, "numeric"),
        ("at timestamptz", {"at": pa.array([0], pa.timestamp("us"))}, "time zone"),
        ("at timestamp", {"at": pa.array([0], pa.timestamp("us", "UTC"))}, "time zone"),
        ("n int NOT NULL", {"n": pa.array([None], pa.int32())}, "null"),
        ("n int", {"n": pa.array([[1]])}, "cast|list"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    store: Store, columns: str, rows: dict[str, pa.Array], told: str
) -> None:
    """A value is never bent to fit: the message names table, column or line, and value."""
    with store.transaction(Scope.district()) as conn:
        conn.exec_driver_sql(f"CREATE TEMPORARY TABLE t ({columns}) ON COMMIT DROP")
        with pytest.raises(InputError) as caught:
            copy_in(conn, "t", pa.table(rows))
    assert re.search(told, caught.value.message, re.DOTALL), caught.value.message
    assert "table t" in caught.value.message


def test_a_table_that_is_not_there_is_named(store: Store) -> None:
    """Before anything is sent."""
    with (
        store.transaction(Scope.district()) as conn,
        pytest.raises(InputError, match="no such table"),
    ):
        copy_in(conn, "metrics.nothing", pa.table({"n": [1]}))


def test_encoded_bytes_are_postgresqls_own(store: Store) -> None:
    """For every type, the encoder writes what PostgreSQL writes, nulls and slices included."""
    table = pa.table(
        {
            "b": pa.array([True, None, False]),
            "i2": pa.array([1, -2, None], pa.int16()),
            "i4": pa.array([None, 3, -4], pa.int32()),
            "i8": pa.array([5, None, -(2**63)], pa.int64()),
            "f4": pa.array([0.5, None, -0.0], pa.float32()),
            "f8": pa.array([1e300, float("inf"), None]),
            "d": pa.array([dt.date(1969, 12, 31), None, dt.date(2026, 9, 14)]),
            "tz": pa.array([0, None, -1], pa.timestamp("us", "Europe/London")),
            "ts": pa.array([None, 0, 1], pa.timestamp("ms")),
            "t": pa.array(["", None, "Ωmega\n"]).dictionary_encode(),
            "v": pa.array([None, "", "v"], pa.large_string()),
            "j": pa.array(['{"a": 1}', None, "[]"]),
        }
    )
    types = [
        "boolean", "smallint", "integer", "bigint", "real", "double precision", "date",
        "timestamp with time zone", "timestamp without time zone", "text",
        "character varying", "jsonb",
    ]  # fmt: skip
    names = list(zip(table.schema.names, types, strict=True))
    with store.transaction(Scope.district()) as conn:
        declared = ", ".join(f"{name} {kind}" for name, kind in names)
        conn.exec_driver_sql(f"CREATE TEMPORARY TABLE t ({declared}, o serial) ON COMMIT DROP")
        copy_in(conn, "t", table.slice(0, 1))
        copy_in(conn, "t", table.slice(1))
        connection = conn.connection.driver_connection
        assert connection is not None
        query = f"SELECT {', '.join(table.schema.names)} FROM t ORDER BY o"
        with connection.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT binary)") as copy:
            theirs = b"".join(copy)
    encode = encoder(names)
    batch = table.combine_chunks().to_batches()[0]
    ours = b"".join(bytes(encode(part)) for part in (batch.slice(0, 2), batch.slice(2)))
    assert HEADER + ours + TRAILER == theirs
