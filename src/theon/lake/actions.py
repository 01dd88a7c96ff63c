"""What a commit of the lake says of the files that it adds."""

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
from deltalake.transaction import AddAction

_STATS_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def added_file(
    path: Path, root: Path, campus: str, rows: int, first_at: datetime, last_at: datetime
) -> AddAction:
    """A file that a commit adds."""
    stats = {
        "numRecords": rows,
        "minValues": {"occurred_at": first_at.strftime(_STATS_TIME)},
        "maxValues": {"occurred_at": last_at.strftime(_STATS_TIME)},
        "nullCount": {"occurred_at": 0},
    }
    return AddAction(
        path=str(path.relative_to(root)),
        size=path.stat().st_size,
        partition_values={"campus": campus},
        modification_time=int(path.stat().st_mtime * 1000),
        data_change=True,
        stats=json.dumps(stats),
    )


def moved_file(path: Path, root: Path, campus: str) -> AddAction:
    """A file, one event or more, that a commit adds with events which the lake holds already."""
    flush_to_disk(path)
    metadata = pq.read_metadata(path)
    column = metadata.schema.names.index("occurred_at")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    found = [group.column(column).statistics for group in groups]
    times = [t for f in found if f is not None for t in (f.min, f.max) if t is not None]
    assert len(times) == 2 * len(groups)  # noqa: S101 - the engine always writes them
    first_at, last_at = min(times), max(times)
    added = added_file(path, root, campus, metadata.num_rows, first_at, last_at)
    return replace(added, data_change=False)


def flush_to_disk(path: Path) -> None:
    """A commit must never name a file that a power cut could still lose."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
