"""Finds the line and the original text of records that a CSV reader knows only by number.

A quoted field may hold line breaks, so the n-th record does not begin on the n-th line.
Only files with bad rows are looked through; blocks are searched as whole arrays.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from theon.intake.sniff import BLOCK_BYTES, open_unpacked

_QUOTE, _NEWLINE, _RETURN = 34, 10, 13


@dataclass(frozen=True)
class Located:
    """One record: its number among the readable ones (-1: malformed), line and text."""

    record: int
    line_number: int
    text: str


def locate(
    path: Path,
    records: npt.NDArray[np.int64],
    malformed: list[tuple[int, int]],
    *,
    quoted: bool,
) -> Iterator[Located]:
    """Find records by number.

    Args:
        path: the file, plain or packed.
        records: numbers of readable records after the header, from 0, ascending.
        malformed: (byte position, length in bytes) in the unpacked file of what the reader
            threw out, ascending; these count as no record.
        quoted: whether double quotes enclose fields.

    Yields:
        The malformed regions and the records asked for, in the order of the file.
    """
    with open_unpacked(path) as stream:
        scan = _Scan(stream, np.asarray(records) + 1, quoted=quoted)  # the header is record 0
        for position, length in malformed:
            yield from scan.until(position)
            yield scan.skip(length)
        yield from scan.until(None)


class _Scan:
    def __init__(self, stream: BinaryIO, wanted: npt.NDArray[np.int64], *, quoted: bool) -> None:
        self._stream = stream
        self._wanted = wanted
        self._quoted = quoted
        self._position = 0
        self._line = 1
        self._record = 0

    def skip(self, length: int) -> Located:
        """Take a malformed region as it is."""
        raw = self._read(length)
        found = Located(-1, self._line, _text(raw))
        self._line += raw.count(b"\n")
        return found

    def until(self, end: int | None) -> Iterator[Located]:
        """Go through the records up to byte `end` (None: to the end of the file)."""
        rest = b""
        while True:
            room = BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - self._position)
            block = self._read(room) if room > 0 else b""
            last = not block
            buffer = rest + block
            if last and buffer and not buffer.endswith(b"\n"):
                buffer += b"\n"
            rest = yield from self._records(buffer)
            if last:
                self._line += rest.count(b"\n")
                return

    def _records(self, buffer: bytes) -> Generator[Located, None, bytes]:
        """Handle the whole records of `buffer`; returns what is left of it."""
        data = np.frombuffer(buffer, np.uint8)
        breaks = np.flatnonzero(data == _NEWLINE)
        ends = breaks
        if self._quoted:
            quotes = np.flatnonzero(data == _QUOTE)
            ends = breaks[np.searchsorted(quotes, breaks) % 2 == 0]
        if not len(ends):
            return buffer
        starts = np.concatenate(([0], ends[:-1] + 1))
        stops = ends - (data[np.maximum(ends - 1, 0)] == _RETURN)
        filled = stops > starts  # the reader skips empty lines
        starts, stops = starts[filled], stops[filled]
        low = np.searchsorted(self._wanted, self._record)
        high = np.searchsorted(self._wanted, self._record + len(starts))
        for number in self._wanted[low:high]:
            at = int(number - self._record)
            line = self._line + int(np.searchsorted(breaks, starts[at]))
            yield Located(int(number) - 1, line, _text(buffer[starts[at] : stops[at]]))
        self._record += len(starts)
        self._line += int(np.searchsorted(breaks, ends[-1], side="right"))
        return buffer[ends[-1] + 1 :]

    def _read(self, length: int) -> bytes:
        parts: list[bytes] = []
        missing = length
        while missing > 0 and (part := self._stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        raw = b"".join(parts)
        self._position += len(raw)
        return raw


def _text(raw: bytes) -> str:
    """The bytes as text; what is not UTF-8 stays visible as its hexadecimal code."""
    return raw.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace").replace("\x00", "\\x00")
