"""The DuckDB connection every vectorised step works in."""

import atexit
import os
import shutil
import threading
import warnings
from pathlib import Path

import duckdb
import psutil
import pyarrow as pa

from theon.settings import Settings

_MAKING = threading.Lock()
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
    """Open a small in-memory DuckDB, in UTC, to sort or format rows that are in memory anyway."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    connection.execute("SET TimeZone = 'UTC'")
    return connection


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
