"""Which file holds a derived dataset's rows of a period, and nothing else counts.

Derived datasets (`cells` by hour, `days` by local day) are written as new files and never
changed. The manifest points each period at one file. A file's rows of periods that point
elsewhere are dead. The manifest lives in PostgreSQL (`derived_files`, `derived_parts`) and
moves with the metric rows in one transaction.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
from sqlalchemy import Connection, text

from theon.lake.engine import sql_list, sql_text


@dataclass
class Manifest:
    """The manifest of one dataset of one campus, in memory, with what changed since loaded.

    Attributes:
        dataset: `cells` or `days`.
        period_column: the column of the files that holds the period.
        parts: period to (path relative to home, rows).
        file_rows: path to all rows in the file, dead ones too.
        dirty: periods whose part differs from the database's.
    """

    dataset: str
    period_column: str
    parts: dict[int, tuple[str, int]] = field(default_factory=dict)
    file_rows: dict[str, int] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)

    def replace(self, periods: Iterable[int], path: str | None, rows: dict[int, int]) -> None:
        """Point `periods` at the file `path`, which holds `rows[period]` rows of each.

        A period without rows is dropped. `path` is None when no period has any.
        """
        for period in periods:
            self.dirty.add(period)
            if rows.get(period):
                assert path is not None  # noqa: S101 - rows without a file cannot be
                self.parts[period] = (path, rows[period])
            else:
                self.parts.pop(period, None)
        if path is not None:
            self.file_rows[path] = sum(rows.values())

    def lost_files(self, home: Path) -> int:
        """How many files the manifest points at are not there: all can be computed again."""
        return sum(not (home / path).is_file() for path in {p for p, _ in self.parts.values()})

    def clear(self) -> None:
        """Forget every period: all is to be built again."""
        self.dirty |= set(self.parts)
        self.parts = {}

    def rows(self, periods: Iterable[int]) -> int:
        """How many live rows the periods have."""
        return sum(self.parts[p][1] for p in periods if p in self.parts)

    def live_sql(self, home: Path, periods: set[int] | None = None) -> str | None:
        """SQL of the live rows of `periods` (None: of all); None if there are none.

        Files of which every row is wanted are read as they are; of the others only the rows of
        the periods that point at them.
        """
        by_file: dict[str, list[int]] = {}
        for period, (path, _) in self.parts.items():
            if periods is None or period in periods:
                by_file.setdefault(path, []).append(period)
        whole: list[str] = []
        partial: list[str] = []
        for path, wanted in by_file.items():
            live = sum(self.parts[p][1] for p in wanted)
            (whole if live == self.file_rows[path] else partial).append(path)
        selects = []
        if whole:
            selects.append(f"SELECT * FROM read_parquet({sql_list([home / p for p in whole])})")
        for path in partial:
            condition = membership(self.period_column, sorted(by_file[path]))
            selects.append(f"SELECT * FROM read_parquet({sql_text(home / path)}) WHERE {condition}")
        return " UNION ALL ".join(selects) or None


def membership(column: str, periods: list[int]) -> str:
    """SQL condition `column` in `periods`, as ranges, so that statistics can skip row groups."""
    runs: list[list[int]] = []
    for period in periods:
        if runs and period == runs[-1][1] + 1:
            runs[-1][1] = period
        else:
            runs.append([period, period])
    conditions = [f"{column} BETWEEN {low} AND {high}" for low, high in runs if high > low]
    singles = [str(low) for low, high in runs if high == low]
    if singles:
        conditions.append(f"{column} IN ({', '.join(singles)})")
    return "(" + " OR ".join(conditions) + ")"


def load_manifest(conn: Connection, campus_id: int, dataset: str, period_column: str) -> Manifest:
    """Read the manifest of one dataset of one campus."""
    found = conn.execute(
        text(
            "SELECT p.period, f.path, p.row_count, f.row_count FROM theon.derived_parts p"
            " JOIN theon.derived_files f ON f.id = p.file_id AND f.campus_id = p.campus_id"
            " WHERE p.campus_id = :campus AND p.dataset = :dataset"
        ),
        {"campus": campus_id, "dataset": dataset},
    )
    manifest = Manifest(dataset, period_column)
    for period, path, rows, file_rows in found:
        manifest.parts[period] = (path, rows)
        manifest.file_rows[path] = file_rows
    return manifest


def save_manifest(conn: Connection, campus_id: int, manifest: Manifest) -> list[str]:
    """Write what changed, in the caller's transaction; returns files nothing points at now."""
    if not manifest.dirty:
        return []
    who = {"campus": campus_id, "dataset": manifest.dataset}
    live = [p for p in sorted(manifest.dirty) if p in manifest.parts]
    paths = sorted({manifest.parts[p][0] for p in live})
    found = conn.execute(
        text(
            "SELECT path, id FROM theon.derived_files"
            " WHERE campus_id = :campus AND dataset = :dataset"
        ),
        who,
    )
    known: dict[str, int] = {str(path): int(number) for path, number in found}
    for path in paths:
        if path not in known:
            known[path] = conn.execute(
                text(
                    "INSERT INTO theon.derived_files (campus_id, dataset, path, row_count)"
                    " VALUES (:campus, :dataset, :path, :rows) RETURNING id"
                ),
                {**who, "path": path, "rows": manifest.file_rows[path]},
            ).scalar_one()
    conn.execute(
        text(
            "DELETE FROM theon.derived_parts WHERE campus_id = :campus AND dataset = :dataset"
            " AND period = ANY (:periods)"
        ),
        {**who, "periods": sorted(manifest.dirty)},
    )
    conn.execute(
        text(
            "INSERT INTO theon.derived_parts (campus_id, dataset, period, file_id, row_count)"
            " SELECT :campus, :dataset, * FROM unnest("
            "   CAST(:periods AS int[]), CAST(:files AS bigint[]), CAST(:rows AS int[]))"
        ),
        {
            **who,
            "periods": live,
            "files": [known[manifest.parts[p][0]] for p in live],
            "rows": [manifest.parts[p][1] for p in live],
        },
    )
    gone = conn.execute(
        text(
            "DELETE FROM theon.derived_files f WHERE f.campus_id = :campus"
            " AND f.dataset = :dataset AND NOT EXISTS (SELECT 1 FROM theon.derived_parts p"
            "   WHERE p.campus_id = f.campus_id AND p.file_id = f.id) RETURNING f.path"
        ),
        who,
    )
    return [str(path) for (path,) in gone]


def sweep(conn: Connection, campus_id: int, folder: Path, home: Path, older_than: float) -> int:
    """Delete files below `folder` that no manifest names and that are older than a time.

    They are left over from refreshes that were killed before their commit. Returns how many.
    """
    if not folder.is_dir():
        return 0
    known = {
        str(path)
        for (path,) in conn.execute(
            text("SELECT path FROM theon.derived_files WHERE campus_id = :campus"),
            {"campus": campus_id},
        )
    }
    orphans = [
        file
        for file in folder.rglob("*.parquet")
        if str(file.relative_to(home)) not in known and file.stat().st_mtime < older_than
    ]
    for file in orphans:
        file.unlink(missing_ok=True)
    return len(orphans)


def period_counts(engine: duckdb.DuckDBPyConnection, path: Path, column: str) -> dict[int, int]:
    """Rows per period of a freshly written file."""
    return dict(
        engine.sql(
            f"SELECT {column}, count(*) FROM read_parquet({sql_text(path)}) GROUP BY {column}"
        ).fetchall()
    )


def register_integers(engine: duckdb.DuckDBPyConnection, name: str, values: Iterable[int]) -> None:
    """Make a one-column table `name(value)` for joins."""
    table = pa.table({"value": pa.array(sorted(values), pa.int64())})
    engine.register(f"{name}_arrow", table)
    engine.execute(f"CREATE OR REPLACE TEMP TABLE {name} AS SELECT * FROM {name}_arrow").fetchall()
    engine.unregister(f"{name}_arrow")
