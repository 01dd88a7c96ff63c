"""Bulk loads: what goes in comes out."""

import datetime as dt

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from theon.store.bulk import copy_in, read_arrow
from theon.store.engine import Store
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
    conn.exec_driver_sql(f"CREATE TEMPORARY TABLE t ({COLUMNS}, o serial)")
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
