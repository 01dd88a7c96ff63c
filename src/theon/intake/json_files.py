"""Files of events as JSON: native ones, xAPI statements, Open edX tracking logs.

A folder is read file by file. A file is read in blocks, mapped, and staged in parts, each of which
is in the lake before the next is begun. So memory is bounded; and after an interruption the same
command may be given again and counts nothing twice, as every event has an id of its own.
"""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from theon.errors import InputError
from theon.intake.arrivals import EVENT_COLUMNS, ORDINAL, no_refused
from theon.intake.json_lines import Blocks, Cut, Ending, cut_file
from theon.intake.mapped import Mapped, map_lines
from theon.intake.mapping_checks import AHEAD_S, NOT_JSON
from theon.intake.origins import (
    MOST_ORIGINAL_BYTES,
    Origins,
    StagedLines,
    as_rejects,
    name_places,
)
from theon.intake.sniff import EmptyFileError, cannot_read, read_head
from theon.intake.staged import (
    MOST_LISTED,
    ROW_GROUP_ROWS,
    Unread,
    no_rejects,
)
from theon.observability.progress import ProgressReporter, SilentProgress, Step

# Format of `theon ingest` → mapping.
NDJSON, XAPI, EDX = "ndjson", "xapi", "edx"
JSON_FORMATS = {NDJSON: "native", XAPI: "xapi", EDX: "edx"}
PART_EVENTS = 2_000_000
_SAMPLE_LINES = 50
_MISFITS_SAID = 5
# tracking.log, tracking.log-20260101.gz, tracking.log.1, statements.json, events.ndjson.gz
_NAMES = re.compile(r"\.(log|json|jsonl|ndjson)([-._]\w+)*(\.gz)?$", re.IGNORECASE)
_STAGED = pa.schema(EVENT_COLUMNS)


def stage_json(
    location: Path,
    source_format: str,
    workspace: Path,
    progress: ProgressReporter | None = None,
) -> Iterator[StagedLines]:
    """Read a file, or all files of a folder, in parts.

    Args:
        location: a file, plain or packed with gzip, or a folder.
        source_format: one of `JSON_FORMATS`.
        workspace: folder for the staged files.
        progress: gets a step per file, in per cent.

    Yields:
        Parts of up to `PART_EVENTS` events or somewhat more, in the order of the file.

    Raises:
        InputError: there is no such file or folder, or what it holds is something else.
    """
    reporter = progress or SilentProgress()
    files, left_out = _fitting_files(location, source_format)
    for file in files:
        within = file.relative_to(location) if file != location else None
        reader = _Reader(file, JSON_FORMATS[source_format], workspace, str(within or ""))
        with reporter.step(f"Reading {file.name}", total=100, unit="%") as step:
            for part in reader.parts(step):
                yield replace(part, incomplete=f"{left_out} {part.incomplete}".strip())
                left_out = ""


def _fitting_files(location: Path, source_format: str) -> tuple[list[Path], str]:
    """The files to read, and what to say of those in a folder that are something else."""
    fitting: list[Path] = []
    misfits: list[InputError] = []
    files = _files(location)
    for file in files:
        try:
            refuse_other_formats(file, source_format)
        except EmptyFileError:  # a log that was just begun, or packed when it was
            if file == location:
                raise
        except InputError as error:
            if file == location:
                raise
            misfits.append(error)
        else:
            fitting.append(file)
    if not fitting:
        raise misfits[0] if misfits else _no_file_of_events(location)
    if not misfits:
        return fitting, ""
    said = "; ".join(f"{error.where}: {error.what}" for error in misfits[:_MISFITS_SAID])
    more = f"; and {len(misfits) - _MISFITS_SAID} more" * (len(misfits) > _MISFITS_SAID)
    return fitting, f"Left out: {said}{more}."


def _files(location: Path) -> list[Path]:
    if not location.is_dir():
        return [location]

    def refuse(error: OSError) -> NoReturn:
        raise cannot_read(error, location) from error

    inside = [
        Path(folder) / name
        for folder, _, names in os.walk(location, onerror=refuse)
        for name in names
        if _NAMES.search(name) and name[0] != "."
    ]
    files = [file for file in inside if file.is_file()]
    if not files:
        raise _no_file_of_events(location)
    # Rotated files keep the time of their last line; the order changes no figure.
    return sorted(files, key=lambda file: (file.stat().st_mtime, str(file)))


def _no_file_of_events(location: Path) -> InputError:
    return InputError(
        "there is no file of events in this folder",
        where=str(location),
        next_step="Files are read whose names end in .log, .json, .jsonl or .ndjson, with a "
        "date or a number behind it or not, packed as .gz or not; empty ones are not.",
    )


@dataclass
class _Part:
    """What one staged file will hold."""

    path: Path
    read: int = 0
    rejected: int = 0
    rows: int = 0
    rejects: list[pa.Table] = field(default_factory=list)
    refused: list[pa.Table] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    waiting: list[pa.Table] = field(default_factory=list)
    line_numbers: list[npt.NDArray[np.int64]] = field(default_factory=list)
    numbers: list[npt.NDArray[np.int64]] = field(default_factory=list)
    writer: pq.ParquetWriter | None = None

    @property
    def full(self) -> bool:
        originals = sum(table["original"].nbytes for table in self.refused)
        return self.rows >= PART_EVENTS or originals >= MOST_ORIGINAL_BYTES

    def add(self, events: pa.Table, line_numbers: npt.NDArray[np.int64], first: int) -> None:
        ordinals = events[ORDINAL].to_numpy()
        self.rows += events.num_rows
        self.line_numbers.append(line_numbers[ordinals])
        self.numbers.append(ordinals.astype(np.int64) + first)
        self.waiting.append(events.select(_STAGED.names))
        if sum(table.num_rows for table in self.waiting) >= ROW_GROUP_ROWS:
            self._write(final=False)

    def close(self) -> None:
        self._write(final=True)
        assert self.writer is not None  # noqa: S101 - `_write` made it
        self.writer.close()

    def _write(self, *, final: bool) -> None:
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(self.path, _STAGED, compression="zstd")
        rows = pa.concat_tables([_STAGED.empty_table(), *self.waiting])
        whole = rows.num_rows if final else rows.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS
        self.writer.write_table(rows.slice(0, whole), row_group_size=ROW_GROUP_ROWS)
        self.waiting = [rows.slice(whole)]

    def staged(self, incomplete: str, reader: "_Reader") -> StagedLines:
        rejects = pa.concat_tables([no_rejects(), *self.rejects])
        none = np.empty(0, np.int64)
        return StagedLines(
            self.path,
            read=self.read,
            rows=self.rows,
            rejected=self.rejected,
            rejects=rejects,
            notes=self.notes,
            incomplete=incomplete,
            origins=Origins(
                reader.path,
                reader.shown,
                reader.mapping,
                np.concatenate([none, *self.line_numbers]),
                np.concatenate([none, *self.numbers]),
            ),
            unread=Unread(reader.mapping, pa.concat_tables([no_refused(), *self.refused])),
        )


@dataclass
class _Reader:
    """Reads one file.

    Attributes:
        path: the file.
        mapping: by which its events are read.
        workspace: folder for staged files.
        shown: its name where several are read, else ''.
    """

    path: Path
    mapping: str
    workspace: Path
    shown: str

    def parts(self, step: Step) -> Iterator[StagedLines]:
        blocks, ending = Blocks(self.path), Ending()
        latest_s = time.time() + AHEAD_S
        part, number, percent, first = self._part(0), 0, 0, 0
        for cut in cut_file(blocks, ending):
            self._take(part, cut, first, latest_s, packed=blocks.packed)
            first += len(cut.events)
            done = 100 * blocks.done_bytes // max(blocks.size_bytes, 1)
            step.advance(max(min(done, 100) - percent, 0))
            percent = max(min(done, 100), percent)
            if part.full:
                part.close()
                yield part.staged("", self)
                number += 1
                part = self._part(number)
        if ending.note:
            part.notes += (f"{self.path.name} {ending.note}",)
        part.close()
        yield part.staged(
            f"{self.path.name} {ending.incomplete}; what it holds up to there was read. "
            f"{ending.next_step} and run the same command; events that are in already are "
            "recognised."
            if ending.incomplete
            else "",
            self,
        )

    def _part(self, number: int) -> _Part:
        return _Part(self.workspace / f"events-{number}.parquet")

    def _take(self, part: _Part, cut: Cut, first: int, latest_s: float, *, packed: bool) -> None:
        lines = pa.table(
            {ORDINAL: pa.array(range(len(cut.events)), pa.int32()), "line": cut.events}
        )
        mapped = map_lines(lines, self.mapping, latest_s=latest_s)
        part.read += len(cut.events)
        refused = mapped.refused
        if cut.unfinished and not packed and _last_is_broken(mapped, len(cut.events)):
            # The file is being written; the rest of the line comes, and is read then.
            part.read -= 1
            refused = refused.slice(0, refused.num_rows - 1)
            part.notes += (
                f"The last line of {self.path.name} has no end yet; it is read when the file is "
                "read again.",
            )
        part.add(mapped.events, cut.line_numbers, first)
        part.rejected += refused.num_rows
        room = MOST_LISTED - sum(table.num_rows for table in part.rejects)
        if refused.num_rows and room > 0:
            refused = refused.slice(0, room)
            part.rejects.append(as_rejects(refused, self.shown, cut.line_numbers))
            part.refused.append(name_places(refused, self.path, self.shown, cut.line_numbers))


def _last_is_broken(mapped: Mapped, lines: int) -> bool:
    refused = mapped.refused
    if not refused.num_rows:
        return False
    last = refused.slice(refused.num_rows - 1).to_pylist()[0]
    return bool(last[ORDINAL] == lines - 1 and last["reason"] == NOT_JSON)


def refuse_other_formats(path: Path, source_format: str) -> None:
    """Refuse a file that begins as one of another format.

    Raises:
        InputError: no event of `source_format` is among its first ones; says what it looks like.
    """
    head = read_head(path)
    where = str(path)
    first = next((line for line in head.text.splitlines() if line.strip()), "")
    if _fitting(path, JSON_FORMATS[source_format]):
        return
    fits = {name: _fitting(path, mapping) for name, mapping in JSON_FORMATS.items()}
    other = max(fits, key=lambda name: fits[name])
    if fits[other]:
        raise InputError(
            f"this looks like {_LOOKS[other]}, not like {_LOOKS[source_format]}",
            where=where,
            next_step=f"Use --format {other}.",
        )
    if "\r" in head.text and "\n" not in head.text:
        raise InputError(
            "its lines end with a carriage return alone, so all of it is one line",
            where=where,
            next_step="Convert it: tr '\\r' '\\n' < old > new.",
        )
    names = first.lower()
    if "timecreated" in names and "eventname" in names:
        raise InputError(
            "this looks like an export of Moodle's log table",
            where=where,
            next_step="Use --format moodle-logstore.",
        )
    if not first.lstrip().startswith(("{", "[")) and "[tracking]" not in first:
        raise InputError(
            f"this holds no JSON; the first line reads {first[:200]!r}",
            where=where,
            next_step=f"Give {_LOOKS[source_format]}; docs/guides/sources.md describes it.",
        )
    if first.strip() == "{":
        raise InputError(
            "this looks like one JSON object over several lines",
            where=where,
            next_step="Write one event per line, or a JSON array of events.",
        )


_LOOKS = {
    NDJSON: "Theon's own events, one per line",
    XAPI: "xAPI statements",
    EDX: "an Open edX tracking log",
}


def _fitting(path: Path, mapping: str) -> int:
    """How many of the first events a mapping can read."""
    cut = next(cut_file(Blocks(path), Ending()), None)
    if cut is None:
        return 0
    lines = cut.events.slice(0, _SAMPLE_LINES)
    ordinals = pa.array(range(len(lines)), pa.int32())
    return map_lines(pa.table({ORDINAL: ordinals, "line": lines}), mapping).events.num_rows
