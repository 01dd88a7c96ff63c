"""Compaction: many small landed files become few large ones, and no event changes.

What arrives while Theon runs lands in files of half a second each, thousands an hour; every
reader opens them all. Files are merged with about equally large neighbours in time, so an event
is written again a few times only, however many come. The commit says that it changes no data:
nothing is refreshed because of it, and appends and landings go on meanwhile.

Merged files stay on disk for a day, for whoever reads an older version.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import duckdb

from theon.lake.engine import open_engine, sql_list, sql_text
from theon.lake.log import clear
from theon.lake.table import LANDED, ROW_GROUP_ROWS, EventLake, LakeFile
from theon.settings import Settings

# Files of a class are merged among themselves: up to so many events each.
CLASSES = (4_000, 32_000, 256_000, 2_000_000)
FAN_IN = 8
MOST_FILES = 500
# A merged file covers at most this; what is older goes into a file of its own. So one late event
# does not make a large file look as if it reached back to it.
RECENT = timedelta(days=1)
KEPT_S = 24 * 3600.0
# Refreshed by then, on the hour's schedule too; a file that is not yet takes its neighbours along.
SETTLED_S = 2 * 3600.0

# Named so that fault tests can stop a compaction right after any of its steps.
Checkpoint = Callable[[str], None]


@dataclass(frozen=True)
class Compacted:
    """What a compaction did.

    Attributes:
        merged: files that are in the lake no more.
        written: files in their place.
        events: that were moved.
    """

    merged: int = 0
    written: int = 0
    events: int = 0


def compact(
    lake: EventLake,
    settings: Settings,
    campus: str,
    *,
    fan_in: int = FAN_IN,
    most_events: int = CLASSES[-1],
    older_than_s: float = 0.0,
    checkpoint: Checkpoint = lambda _: None,
) -> Compacted:
    """Merge landed files of a campus wherever enough are about equally large.

    Args:
        lake: the events.
        settings: memory and threads.
        campus: slug.
        fan_in: so many files are worth a merge.
        most_events: files with as many or more are left alone; it bounds how long this takes.
        older_than_s: files that were written less long ago, in seconds, are left alone.
        checkpoint: called with the name of each step that was just completed.

    Returns:
        What was done; less than could be if another process compacts the campus.

    Raises:
        UnavailableError: the lake cannot be read.
    """
    done = Compacted()
    before = time.time() - older_than_s
    while True:
        files = [f for f in lake.files(campus) if _is_landed(f, before)]
        chosen = next(_worthwhile(files, fan_in, most_events), None)
        if chosen is None:
            return done
        with open_engine(settings) as engine:
            new = list(_merge(engine, lake.path, campus, chosen))
        checkpoint("written")
        # Their age counts from now, so a reader that has them open keeps them for a day.
        for file in chosen:
            Path(file.path).touch()
        if not lake.replace(campus, chosen, new):
            return done
        checkpoint("committed")
        done = Compacted(
            done.merged + len(chosen),
            done.written + len(new),
            done.events + sum(file.rows for file in chosen),
        )


def sweep(lake: EventLake, campus: str, *, kept_s: float = KEPT_S) -> int:
    """Delete files of a campus that the lake names no more, or never did.

    Args:
        lake: the events.
        campus: slug.
        kept_s: files that were written or merged less long ago, in seconds, stay.

    Returns:
        How many were deleted.
    """
    # The age first: what is committed between the two looks is young.
    old = time.time() - kept_s
    found = [f for f in lake.folder(campus).glob("*.parquet") if f.stat().st_mtime < old]
    named = {file.path for file in lake.files(campus)} if found else set()
    orphans = [file for file in found if str(file) not in named]
    for file in orphans:
        file.unlink(missing_ok=True)
    return len(orphans)


def clear_log(lake: EventLake, needed: int, *, kept_s: float = KEPT_S) -> int:
    """Delete commits of the lake that nobody asks for any more.

    Args:
        lake: the events.
        needed: the oldest version that some reader remembers.
        kept_s: what was committed less long ago, in seconds, stays.

    Returns:
        How many files of the log were deleted.
    """
    return clear(lake.path / "_delta_log", needed, time.time() - kept_s)


def _is_landed(file: LakeFile, before: float) -> bool:
    path = Path(file.path)
    return path.name.startswith(LANDED) and path.stat().st_mtime <= before


def _worthwhile(landed: list[LakeFile], fan_in: int, most_events: int) -> Iterator[list[LakeFile]]:
    """Sets of files that are worth a merge, the smallest files first."""
    landed.sort(key=lambda file: (file.first_at, file.path))
    for is_wide in (False, True):
        low = 0
        for high in CLASSES:
            members = [
                file
                for file in landed
                if low <= file.rows < min(high, most_events)
                and (file.last_at - file.first_at > RECENT) is is_wide
            ]
            if len(members) >= fan_in:
                yield _bounded(members, fan_in)
            low = high


def _bounded(members: list[LakeFile], fan_in: int) -> list[LakeFile]:
    """The first of them, up to about the largest class in events, but `fan_in` at least."""
    events = 0
    for number, file in enumerate(members):
        events += file.rows
        if number >= fan_in and (events > CLASSES[-1] or number >= MOST_FILES):
            return members[:number]
    return members


def _merge(
    engine: duckdb.DuckDBPyConnection, root: Path, campus: str, files: list[LakeFile]
) -> Iterator[Path]:
    """Write the events of the files, in the order of time, into one file or two."""
    border = max(file.last_at for file in files) - RECENT
    parts = ["true"]
    if min(file.first_at for file in files) < border:
        at = f"TIMESTAMPTZ '{border.isoformat()}'"
        parts = [f"occurred_at < {at}", f"occurred_at >= {at}"]
    source = f"read_parquet({sql_list([f.path for f in files])}, hive_partitioning = false)"
    for part in parts:
        path = root / f"campus={campus}" / f"{LANDED}{uuid4().hex}.parquet"
        try:
            engine.execute(
                f"COPY (SELECT * FROM {source} WHERE {part} ORDER BY occurred_at, event_id)"
                f" TO {sql_text(path)}"
                f" (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
            ).fetchall()
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        yield path
