"""Cuts files of JSON into single events, block by block: lines, or the elements of an array.

A file is never in memory as a whole. An array is cut at the commas between its elements, which are
found in whole blocks at once and without reading the elements; so one that is broken is refused
like a broken line, and what a cut-off file still holds is read. (DuckDB's reader of arrays is as
frugal, but ends at the first broken element and cannot say where one stands.)
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from theon.intake.mapping_checks import LARGEST_LINE_BYTES
from theon.intake.sniff import BLOCK_BYTES, GZIP_MAGIC, Unpacked

# A list of statements as an LRS answers with it, or a plain array.
_ARRAY = re.compile(rb'\s*(?:\{\s*"statements"\s*:\s*)?\[')
# Beyond this an element has no end, as its text was never closed.
_LONGEST_ELEMENT_BYTES = 16 * LARGEST_LINE_BYTES
_QUOTE, _BACKSLASH, _COMMA, _NEWLINE = b'"'[0], b"\\"[0], b","[0], b"\n"[0]
_STRUCTURE = np.zeros(256, np.int8)
_STRUCTURE[list(b"{[")] = 1
_STRUCTURE[list(b"}]")] = -1
_SPACE = np.zeros(256, np.bool_)
_SPACE[list(b" \t\r\n")] = True


class Blocks:
    """The bytes of a file, unpacked, in blocks.

    Attributes:
        done_bytes: read so far, as the file lies on the disk.
        size_bytes: of the file on the disk, when it was opened.
        packed: whether it is packed with gzip.
        cut_off: the packed file ends in the middle, or is damaged; known at the end.
    """

    def __init__(self, path: Path) -> None:
        """Name the file; opens nothing yet."""
        self._path = path
        self.size_bytes = path.stat().st_size
        self.done_bytes = 0
        with path.open("rb") as stream:
            self.packed = stream.read(2) == GZIP_MAGIC
        self.cut_off = False

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of about `BLOCK_BYTES`; none is empty."""
        with self._path.open("rb") as stream:
            yield from self._unpacked(stream) if self.packed else self._raw(stream)

    def _raw(self, stream: BinaryIO) -> Iterator[bytes]:
        while raw := stream.read(BLOCK_BYTES):
            self.done_bytes += len(raw)
            yield raw

    def _unpacked(self, stream: BinaryIO) -> Iterator[bytes]:
        unpacked = Unpacked(self._raw(stream))
        yield from unpacked
        self.cut_off = unpacked.cut_off


@dataclass(frozen=True)
class Cut:
    """Some events of a file, in its order.

    Attributes:
        events: as they stand in the file; `binary`.
        line_numbers: where each begins, from 1.
        unfinished: the last one is the last line of the file and has no line break.
    """

    events: "pa.Array[Any]"
    line_numbers: npt.NDArray[np.int64]
    unfinished: bool = False


_AGAIN = "Copy or export it again"


@dataclass
class Ending:
    """How a file ended.

    Attributes:
        incomplete: what is wrong with it, after its name in a sentence; '' if nothing.
        next_step: what to do about that.
        note: what there is to say of it though nothing is wrong, likewise.
    """

    incomplete: str = ""
    next_step: str = _AGAIN
    note: str = ""


def cut_file(blocks: Blocks, ending: Ending) -> Iterator[Cut]:
    """The events of a file: the elements of an array, or its lines.

    Args:
        blocks: of the file.
        ending: is told how the file ended.
    """
    stream = _without_mark(iter(blocks))
    head = b""
    for block in stream:
        head += block
        if len(head) >= 64 or not head.isspace():
            break
    start = _ARRAY.match(head)
    if start:
        line = head[: start.end()].count(b"\n") + 1
        yield from _elements(head[start.end() :], stream, line, ending)
    else:
        yield from _lines(head, stream)
    if blocks.cut_off:
        ending.incomplete = "is cut off or damaged"


def _without_mark(stream: Iterator[bytes]) -> Iterator[bytes]:
    first = next(stream, b"")
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from stream


def _lines(head: bytes, stream: Iterator[bytes]) -> Iterator[Cut]:
    line, rest, too_long = 1, b"", False
    for block in _chain(head, stream):
        whole, line_break, last = block.rpartition(b"\n")
        if line_break:
            yield _cut_lines(rest + whole, line)
            line += whole.count(b"\n") + 1
            rest, too_long = last, False
        elif not too_long:
            rest += last
        # Of a line that is refused for its length so much is kept as shows that it is too long.
        if len(rest) > LARGEST_LINE_BYTES:
            rest, too_long = rest[: LARGEST_LINE_BYTES + 1], True
    if rest.strip():
        cut = _cut_lines(rest, line)
        yield Cut(cut.events, cut.line_numbers, unfinished=True)


def _chain(head: bytes, stream: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from stream


def _cut_lines(text: bytes, first: int) -> Cut:
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").removesuffix(b"\r")
    whole: Any = pa.array([text], pa.large_binary())
    events: Any = pc.split_pattern(whole, "\n").flatten()
    numbers = np.arange(first, first + len(events))
    blank = pc.match_substring_regex(events, r"^\s*$")
    if pc.any(blank).as_py():
        kept = pc.invert(blank)
        events, numbers = events.filter(kept), numbers[kept.to_numpy(zero_copy_only=False)]
    return Cut(events.cast(pa.binary()), numbers)


def _elements(head: bytes, stream: Iterator[bytes], line: int, ending: Ending) -> Iterator[Cut]:
    """The elements of an array whose bracket is open."""
    rest = b""
    for block in _chain(head, stream):
        rest += block
        found, used, closed = _scan(rest)
        yield _cut_elements(rest, found, line)
        line += rest[:used].count(b"\n")
        rest = rest[used:]
        if closed:
            _look_behind(rest, stream, ending)
            return
        if len(rest) > _LONGEST_ELEMENT_BYTES:
            break
    ending.incomplete = "ends in the middle of its array, or a text in it is never closed"
    if rest.strip():
        yield Cut(pa.array([rest[: LARGEST_LINE_BYTES + 1]], pa.binary()), np.array([line]))


def _look_behind(rest: bytes, stream: Iterator[bytes], ending: Ending) -> None:
    """Say what there is behind an array, beside the rest of the object that it is in."""
    for block in stream:
        rest = (rest + block)[-_LONGEST_ELEMENT_BYTES:]
    if not rest.strip():
        return
    try:
        answer = json.loads(b'{"statements": []' + rest)
    except (ValueError, RecursionError):
        ending.incomplete = "holds more behind the end of its array"
        ending.next_step = "Give each array a file of its own"
        return
    if answer.get("more"):
        ending.note = "is one page of several: its `more` is where the store has the next."


def _scan(data: bytes) -> tuple[npt.NDArray[np.int64], int, bool]:
    """(ends of the elements, where what is left begins, whether the array ends).

    `data` begins at an element. An end is the place of the comma or bracket after an element.
    """
    raw = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(raw == _QUOTE)
    quotes = quotes[~_escaped(raw, quotes)]
    steps = _STRUCTURE[raw]
    places = np.flatnonzero((steps != 0) | (raw == _COMMA))
    outside = np.searchsorted(quotes, places) % 2 == 0
    places = places[outside]
    depth = np.cumsum(steps[places])
    closing = np.flatnonzero(depth < 0)
    closed = bool(len(closing))
    if closed:
        places, depth = places[: closing[0] + 1], depth[: closing[0] + 1]
    ends = places[((raw[places] == _COMMA) & (depth == 0)) | (depth < 0)]
    return ends, int(ends[-1]) + 1 if len(ends) else 0, closed


def _escaped(raw: npt.NDArray[np.uint8], quotes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which quotes stand after an odd number of backslashes."""
    count = np.zeros(len(quotes), np.int64)
    at = np.arange(len(quotes))
    while len(at):
        before = quotes[at] - count[at] - 1
        at, before = at[before >= 0], before[before >= 0]
        at = at[raw[before] == _BACKSLASH]
        count[at] += 1
    odd: npt.NDArray[np.bool_] = count % 2 == 1
    return odd


def _cut_elements(data: bytes, ends: npt.NDArray[np.int64], line: int) -> Cut:
    """The elements that end at `ends`, without the white space around them."""
    raw = np.frombuffer(data, np.uint8)
    filled = np.flatnonzero(~_SPACE[raw])
    starts = np.concatenate((ends[:0] if not len(ends) else [0], ends[:-1] + 1)).astype(np.int64)
    at, after = np.searchsorted(filled, starts), np.searchsorted(filled, ends)
    there = after > at
    first, last = filled[at[there]], filled[after[there] - 1] + 1
    inside = np.zeros(len(raw) + 1, np.int8)
    inside[first] += 1
    inside[last] -= 1
    kept = raw[np.cumsum(inside[:-1], dtype=np.int8).astype(bool)]
    offsets = np.concatenate(([0], np.cumsum(last - first))).astype(np.int32)
    events = pa.Array.from_buffers(
        pa.binary(), len(first), [None, pa.py_buffer(offsets.data), pa.py_buffer(kept.data)]
    )
    breaks = np.flatnonzero(raw == _NEWLINE)
    return Cut(events, line + np.searchsorted(breaks, first))
