"""The DuckDB connection every vectorised step works in."""

import atexit
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa

from theon.settings import Settings

_MAKING = threading.Lock()
_SCRATCH: dict[int, duckdb.DuckDBPyConnection] = {}  # of each process, by its id
# Said of `run_to_arrow`. A relation of a statement that is no SELECT copies its rows as well.
warnings.filterwarnings("ignore", "Arrow output on a DB-API result")


def open_engine(settings: Settings, *, ordered: bool = True) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB that spills to `THEON_HOME/tmp` above its memory limit.

    The connection works in UTC and never fetches extensions from outside.

    Args:
        settings: memory (`engine_memory_mb`) and threads (`engine_threads`, or one per core).
        ordered: whether rows must keep the order they were read in; without it files are
            written by all threads at once.
    """
    spill = _spill_folder(settings.home_dir / "tmp")
    connection = duckdb.connect(
        config={
            "memory_limit": f"{settings.engine_memory_mb}MB",
            "temp_directory": str(spill),
            "autoinstall_known_extensions": "false",
            "threads": str(settings.engine_threads or os.cpu_count() or 1),
            "TimeZone": "UTC",
            "preserve_insertion_order": str(ordered).lower(),
            "parquet_metadata_cache": "true",
        }
    )
    connection.execute("SET enable_progress_bar = false")
    return connection


def _spill_folder(root: Path) -> Path:
    """This process's folder below `root`; those of processes that are gone are removed."""
    for folder in root.glob("engine-*"):
        pid = folder.name.removeprefix("engine-")
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    spill = root / f"engine-{os.getpid()}"
    with _MAKING:
        if not spill.is_dir():
            spill.mkdir(parents=True, exist_ok=True)
            atexit.register(shutil.rmtree, spill, ignore_errors=True)
    return spill


def open_scratch() -> duckdb.DuckDBPyConnection:
    """Open a connection, in UTC, to sort or format rows that are in memory anyway.

    All of a process are connections to one in-memory DuckDB: to open one takes 0.4 ms, and a DuckDB
    of its own 20. So no caller may change a setting that is not of its session.
    """
    pid = os.getpid()  # a forked process has none of the threads of the DuckDB it came with
    with _MAKING:
        if pid not in _SCRATCH:
            _SCRATCH[pid] = duckdb.connect(config={"autoinstall_known_extensions": "false"})
        connection = _SCRATCH[pid].cursor()
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def open_single() -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB of its own, in UTC and with one thread.

    For statements over a handful of rows that are planned once and run again and again.
    """
    return duckdb.connect(
        config={"autoinstall_known_extensions": "false", "threads": "1", "TimeZone": "UTC"}
    )


class Given:
    """A name in SQL under which another Arrow table stands for each run of a statement.

    A statement over a table that is registered anew is planned anew, which takes longer than to run
    it over a few rows; over this it is planned once.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema) -> None:
        """Register the name; it stands for no rows until there are some.

        Args:
            connection: that will run the statements.
            name: for them.
            schema: of every table.
        """
        self._schema = schema
        self._table: Any = schema.empty_table()  # pyarrow's stubs do not know the protocol below
        connection.register(name, self)

    @contextmanager
    def holding(self, table: pa.Table) -> Iterator[None]:
        """Let the name stand for a table, whose columns are cast to the schema, in this block."""
        self._table = table.select(self._schema.names).cast(self._schema)
        try:
            yield
        finally:
            self._table = self._schema.empty_table()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """The rows, for the engine, which asks for each scan."""
        return self._table.__arrow_c_stream__(requested_schema)


def run_to_arrow(connection: duckdb.DuckDBPyConnection, statement: str) -> pa.Table:
    """Run a prepared statement (EXECUTE) and give its rows.

    A relation of `sql()` would be described first, and read by a query of its own; with a few rows
    that takes as long as all else.
    """
    found = connection.execute(statement).to_arrow_table()
    assert found is not None  # noqa: S101 - EXECUTE of a SELECT has a result
    return found


def sql_text(value: str | Path) -> str:
    """A SQL string literal of `value`."""
    return "'" + str(value).replace("'", "''") + "'"


def sql_list(values: list[str] | list[Path]) -> str:
    """A SQL list literal of strings, e.g. for `read_parquet`."""
    return "[" + ", ".join(sql_text(v) for v in values) + "]"
