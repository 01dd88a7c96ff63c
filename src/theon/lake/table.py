"""The event lake: one Delta table, append-only, in which an event id is once per campus.

The table's own commit log is the only record of what arrived when. Readers remember the
version they have processed and ask for the files that came or went since; so nothing has
to be written in two places, and a crash after a commit loses nothing.
"""

import json
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from theon.errors import ConflictError, InputError, UnavailableError
from theon.events.schema import EVENT_SCHEMA, PARTITION_COLUMNS
from theon.lake.actions import added_file, flush_to_disk, moved_file
from theon.lake.engine import open_engine, sql_list, sql_text
from theon.lake.log import changed_paths
from theon.observability.progress import ProgressReporter, SilentProgress
from theon.settings import Settings

# Small row groups let a refresh of one hour skip the rest of a file by its statistics.
ROW_GROUP_ROWS = 61_440
APPEND_ATTEMPTS = 10
# A repeated event carries the same time; the margin only covers rounding at the file's ends.
KNOWN_MARGIN = timedelta(hours=1)

# How the names of data files begin, by how their events came.
APPENDED, LANDED = "part-", "landed-"

SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.bool_(): "BOOLEAN",
}


@dataclass(frozen=True)
class AppendResult:
    """What an append did, in events.

    Attributes:
        new: appended now.
        known: left out because the lake held them already (or the batch held them twice).
        version: the lake's version that holds them.
    """

    new: int
    known: int
    version: int


@dataclass(frozen=True)
class LakeFile:
    """One data file of the lake.

    Attributes:
        path: absolute path.
        campus: slug of the campus all its events belong to.
        rows: number of events.
        size_bytes: size on disk.
        first_at, last_at: earliest and latest `occurred_at` in it, UTC.
    """

    path: str
    campus: str
    rows: int
    size_bytes: int
    first_at: datetime
    last_at: datetime


class EventLake:
    """The event table below `THEON_HOME/lake/events`."""

    def __init__(self, settings: Settings) -> None:
        """Name the lake of `settings`; opens nothing yet."""
        self._settings = settings
        self.path = settings.home_dir / "lake" / "events"

    def _table(self, version: int | None = None) -> DeltaTable:
        if not DeltaTable.is_deltatable(str(self.path)):
            self.path.mkdir(parents=True, exist_ok=True)
            DeltaTable.create(
                str(self.path),
                schema=EVENT_SCHEMA,
                mode="ignore",
                partition_by=PARTITION_COLUMNS,
                name="events",
                configuration={
                    "delta.dataSkippingStatsColumns": "occurred_at,source",
                    "delta.logRetentionDuration": "interval 365 days",
                    # A compaction leaves one for each file that landed; every reader reads them.
                    "delta.deletedFileRetentionDuration": "interval 1 hours",
                },
            )
        try:
            return DeltaTable(str(self.path), version=version)
        except (DeltaError, OSError) as error:
            raise UnavailableError(
                f"the event lake cannot be read: {error}",
                where=str(self.path),
                next_step="Check the folder's rights and the disk; `theon doctor` looks at both.",
            ) from error

    def version(self) -> int:
        """The version of the newest commit; 0 is the empty lake."""
        return self._table().version()

    def files(self, campus: str | None = None, *, version: int | None = None) -> list[LakeFile]:
        """The data files of `campus` (or of all) in `version` (or the newest)."""
        return _files(self._table(version), self.path, campus)

    def files_near(self, engine: duckdb.DuckDBPyConnection, campus: str, staged: Path) -> list[str]:
        """Paths of the data files of `campus` whose times meet those of a staged file."""
        [(first, last)] = engine.sql(
            f"SELECT min(occurred_at), max(occurred_at) FROM read_parquet({sql_text(staged)})"
        ).fetchall()
        if first is None:
            return []
        files = self.files(campus)
        return [f.path for f in files if f.first_at <= last and f.last_at >= first]

    def changes(self, campus: str, since: int) -> tuple[list[LakeFile], list[LakeFile], int]:
        """What came or went in `campus` after version `since`.

        Returns:
            The files with events that came or went, all files of the newest version, and that
            version. With `since` below 0, or a version whose log is gone, all files came. Files
            that a compaction wrote are among them only if it merged one that came.
        """
        table = self._table()
        now, version = _files(table, self.path, campus), table.version()
        if since == version:
            return [], now, version
        if since < 0 or since > version:
            return now, now, version
        paths = changed_paths(self.path / "_delta_log", since, version)
        if paths is not None:
            return [f for f in now if _relative(f.path, self.path) in paths], now, version
        try:
            before = _files(self._table(since), self.path, campus)
        except UnavailableError:
            return now, now, version
        old, new = {f.path for f in before}, {f.path for f in now}
        changed = [f for f in now if f.path not in old] + [f for f in before if f.path not in new]
        return changed, now, version

    def folder(self, campus: str) -> Path:
        """Where the data files of `campus` are."""
        return self.path / f"campus={campus}"

    def replace(self, campus: str, old: list[LakeFile], new: list[Path]) -> bool:
        """Put files into the place of others that hold the same events, which changes no data.

        Args:
            campus: slug of the campus they belong to.
            old: files of the lake.
            new: in the campus's folder; deleted where this is not done.

        Returns:
            Whether it was done; if not, somebody else has replaced files of this campus.

        Raises:
            ConflictError: the numbers of events differ, so nothing was done.
        """
        added = [moved_file(path, self.path, campus) for path in new]
        events = sum(json.loads(action.stats)["numRecords"] for action in added)
        if events != sum(file.rows for file in old):
            raise ConflictError(
                f"{sum(file.rows for file in old):,} events became {events:,} when their files "
                "were merged",
                where=f"event lake, campus {campus}",
                next_step="Nothing was changed. Look for damaged files and a full disk.",
            )
        table = self._table()
        named = {file.path for file in _files(table, self.path, campus)}
        try:
            if all(file.path in named for file in old):
                _swap(table, self.path, campus, old, added)
                return True
        except CommitFailedError as error:
            if not _lost_race(error):
                raise
        for path in new:
            path.unlink(missing_ok=True)
        return False

    def append(
        self,
        staged: Path,
        campus: str,
        progress: ProgressReporter | None = None,
        *,
        name: str | None = None,
    ) -> AppendResult:
        """Append the events of the Parquet file `staged` that the lake does not hold yet.

        Args:
            staged: has the columns of `EVENT_SCHEMA` except `campus`; in the order of time
                as far as may be. Any number of rows; memory stays bounded.
            campus: slug of the campus they belong to.
            progress: gets one step, in events.
            name: for `appended`; one that nobody has given before.

        Returns:
            How many were new and how many known. One Delta commit, or none if nothing is new.

        Raises:
            InputError: `staged` lacks a column.
            ConflictError: other writers kept winning; nothing was appended.
        """
        return self._append(staged, campus, progress or SilentProgress(), name=name)

    def appended(self, campus: str, name: str) -> int | None:
        """How many new events an append of this name committed; None if it committed none.

        Appended files are not compacted, so it can be asked for ever.
        """
        wanted = f"{APPENDED}{name}.parquet"
        named = (file.rows for file in self.files(campus) if Path(file.path).name == wanted)
        return next(named, None)

    def land(self, staged: Path, campus: str, *, turn: int, fresh_after: datetime) -> AppendResult:
        """Append events that were accepted one by one, exactly once.

        Whoever accepts them keeps a register of ids. So events after `fresh_after` cannot be
        among what has landed before, and only the other files have to be looked through.

        Args:
            staged: as for `append`.
            campus: as for `append`.
            turn: number of the landing. It rises by one, and a landing of which it is not known
                whether it was committed is tried again under the same number.
            fresh_after: the register holds the id of every landed event since.

        Returns:
            As `append`. When the turn had been taken, the events are looked for in all files.

        Raises:
            As `append`.
        """
        landing = _Landing(f"landing/{campus}", turn, fresh_after)
        return self._append(staged, campus, SilentProgress(), landing)

    def _append(
        self,
        staged: Path,
        campus: str,
        progress: ProgressReporter,
        landing: "_Landing | None" = None,
        name: str | None = None,
    ) -> AppendResult:
        with open_engine(self._settings) as engine:
            for _ in range(APPEND_ATTEMPTS):
                try:
                    return self._append_once(engine, staged, campus, progress, landing, name)
                except CommitFailedError as error:
                    if not _lost_race(error):
                        raise
        raise ConflictError(
            "other writers kept appending to the same campus",
            where=f"event lake, campus {campus}",
            next_step="Nothing was appended. Run the same command again.",
        )

    def _append_once(
        self,
        engine: duckdb.DuckDBPyConnection,
        staged: Path,
        campus: str,
        progress: ProgressReporter,
        landing: "_Landing | None",
        name: str | None,
    ) -> AppendResult:
        table = self._table()
        batch = _describe(engine, staged)
        known_files = _files(table, self.path, campus)
        if landing is not None and (table.transaction_version(landing.name) or 0) < landing.turn:
            known_files = [f for f in known_files if landing.may_share(f)]
        with progress.step(f"Appending to the lake ({campus})", batch.rows, "events") as step:
            prefix = LANDED if landing is not None else APPENDED
            path = self.folder(campus) / f"{prefix}{name or uuid4().hex}.parquet"
            action = _write_new(engine, self.path, staged, campus, batch, known_files, path)
            step.advance(batch.rows)
        if action is None:
            return AppendResult(0, batch.rows, table.version())
        # The fence: of two commits of one campus that were prepared against the same version
        # only one succeeds, so what was checked to be new still is.
        fence = f"intake/{campus}"
        turns = [Transaction(fence, (table.transaction_version(fence) or 0) + 1)]
        if landing is not None:
            turns.append(Transaction(landing.name, landing.turn))
        try:
            table.create_write_transaction(
                [action],
                mode="append",
                schema=EVENT_SCHEMA,
                partition_by=PARTITION_COLUMNS,
                commit_properties=CommitProperties(app_transactions=turns),
            )
        except CommitFailedError as error:
            # Only a lost race is sure not to have committed. Whatever else ends this, a signal
            # for one, may come after the commit, and a committed file must stay.
            if _lost_race(error):
                (self.path / action.path).unlink(missing_ok=True)
            raise
        new = json.loads(action.stats)["numRecords"]
        return AppendResult(new, batch.rows - new, self.version())


@dataclass(frozen=True)
class _Landing:
    name: str
    turn: int
    fresh_after: datetime

    def may_share(self, file: "LakeFile") -> bool:
        """Whether an event that lands may be in the file already."""
        landed = Path(file.path).name.startswith(LANDED)
        return not landed or file.first_at <= self.fresh_after + KNOWN_MARGIN


def _lost_race(error: CommitFailedError) -> bool:
    return "oncurrent" in str(error)


@dataclass(frozen=True)
class _Batch:
    rows: int
    first_at: datetime
    last_at: datetime
    unique: bool  # no event id is in it twice


def _describe(engine: duckdb.DuckDBPyConnection, staged: Path) -> _Batch:
    """How many events are staged, and when they happened."""
    source = f"read_parquet({sql_text(staged)})"
    missing = set(EVENT_SCHEMA.names) - set(PARTITION_COLUMNS)
    missing -= set(engine.sql(f"SELECT * FROM {source}").columns)
    if missing:
        raise InputError(f"staged events lack the columns {sorted(missing)}", where=str(staged))
    [(rows, low, high, unique)] = engine.sql(
        "SELECT count(*), coalesce(epoch_us(min(occurred_at)), 0), "
        "coalesce(epoch_us(max(occurred_at)), 0), "
        f"count(*) = count(DISTINCT hash(event_id)) FROM {source}"
    ).fetchall()
    return _Batch(rows, _utc(low), _utc(high), unique)


def _utc(epoch_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=epoch_us)


def _write_new(
    engine: duckdb.DuckDBPyConnection,
    root: Path,
    staged: Path,
    campus: str,
    batch: _Batch,
    known_files: list[LakeFile],
    path: Path,
) -> AddAction | None:
    """Bring the new events of the batch into the lake's folder, as `path`; None if none is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    low, high = batch.first_at - KNOWN_MARGIN, batch.last_at + KNOWN_MARGIN
    overlapping = [f.path for f in known_files if f.first_at <= high and f.last_at >= low]
    if batch.rows and batch.unique and not overlapping and _is_as_stored(staged):
        # Everything is new: the staged file becomes a data file as it is. A copy, no link: who
        # writes a staged file anew must not change the lake.
        shutil.copyfile(staged, path)
        rows, first_at, last_at = batch.rows, batch.first_at, batch.last_at
    else:
        select = _new_events_sql(staged, batch, overlapping)
        try:
            engine.execute(
                f"COPY ({select}) TO {sql_text(path)} "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
            ).fetchall()
        except BaseException:
            path.unlink(missing_ok=True)  # half written, and no commit names it
            raise
        [(rows, first_us, last_us)] = engine.sql(
            "SELECT count(*), coalesce(epoch_us(min(occurred_at)), 0), "
            "coalesce(epoch_us(max(occurred_at)), 0) "
            f"FROM read_parquet({sql_text(path)}, hive_partitioning = false)"
        ).fetchall()
        first_at, last_at = _utc(first_us), _utc(last_us)
    if rows == 0:
        path.unlink()
        return None
    flush_to_disk(path)
    return added_file(path, root, campus, rows, first_at, last_at)


def _swap(
    table: DeltaTable, root: Path, campus: str, old: list[LakeFile], added: list[AddAction]
) -> None:
    """Commit that files are in the place of others."""
    now_ms = int(time.time() * 1000)
    removed = [
        RemoveAction(
            _relative(file.path, root),
            data_change=False,
            deletion_timestamp=now_ms,
            size=file.size_bytes,
            partition_values={"campus": campus},
        )
        for file in old
    ]
    # A fence of its own: appends need not wait for compactions, nor these for them.
    fence = f"compaction/{campus}"
    turn = Transaction(fence, (table.transaction_version(fence) or 0) + 1)
    table.create_write_transaction(
        [*added, *removed],
        mode="append",
        schema=EVENT_SCHEMA,
        partition_by=PARTITION_COLUMNS,
        commit_properties=CommitProperties(app_transactions=[turn]),
    )


def _relative(path: str, root: Path) -> str:
    """A file's path as commits name it."""
    return str(Path(path).relative_to(root))


def _is_as_stored(staged: Path) -> bool:
    """Whether the file has just the columns of the lake's data files, in order and type."""
    stored = pa.schema([f for f in EVENT_SCHEMA if f.name not in PARTITION_COLUMNS])
    found = pq.read_schema(staged)
    return found.names == stored.names and found.types == stored.types


def _files(table: DeltaTable, root: Path, campus: str | None) -> list[LakeFile]:
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return [
        LakeFile(
            path=str(root / a["path"]),
            campus=a["partition.campus"],
            rows=a["num_records"],
            size_bytes=a["size_bytes"],
            first_at=a["min.occurred_at"],
            last_at=a["max.occurred_at"],
        )
        for a in actions
        if campus is None or a["partition.campus"] == campus
    ]


def _new_events_sql(staged: Path, batch: _Batch, overlapping: list[str]) -> str:
    """SQL of the staged events whose id none of the files holds, each id once."""
    low, high = batch.first_at - KNOWN_MARGIN, batch.last_at + KNOWN_MARGIN
    where = "true"
    if overlapping:
        where = (
            f"NOT EXISTS (SELECT 1 FROM read_parquet({sql_list(overlapping)}, "
            "hive_partitioning = false) known WHERE known.event_id = staged.event_id AND "
            f"known.occurred_at BETWEEN TIMESTAMPTZ '{low.isoformat()}' "
            f"AND TIMESTAMPTZ '{high.isoformat()}')"
        )
    if not batch.unique:
        where += " QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY file_row_number) = 1"
    columns = ", ".join(
        f"{f.name}::{SQL_TYPES[f.type]} AS {f.name}"
        for f in EVENT_SCHEMA
        if f.name not in PARTITION_COLUMNS
    )
    source = f"read_parquet({sql_text(staged)}, file_row_number = true)"
    return f"SELECT {columns} FROM {source} staged WHERE {where}"
