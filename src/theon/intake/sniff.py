"""Looks at the first bytes of a file: what it is, how it is packed, how it is delimited."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from theon.errors import InputError

HEAD_BYTES = 1 << 18
BLOCK_BYTES = 1 << 22
GZIP_MAGIC = b"\x1f\x8b"
DATABASE_ROAD = "or read the database itself: --format moodle-db"


class EmptyFileError(InputError):
    """A file holds nothing."""


@dataclass(frozen=True)
class Head:
    """The beginning of a text file.

    Attributes:
        path: the file.
        gzipped: whether it is packed with gzip, whatever its name.
        text: the first bytes, unpacked, without byte order mark; cut anywhere.
        truncated: the packed stream already ends within these bytes.
    """

    path: Path
    gzipped: bool
    text: str
    truncated: bool = False


def read_head(path: Path) -> Head:
    """Read the beginning of `path` and refuse what can be no text file of a log.

    Raises:
        InputError: there is no such file, it is empty, or it is of another kind; says which.
    """
    where = str(path)
    if not path.is_file():
        raise _no_file(path, where)
    try:
        with path.open("rb") as stream:
            raw = stream.read(HEAD_BYTES)
    except OSError as error:
        raise cannot_read(error, path) from error
    if not raw:
        raise EmptyFileError(
            "the file is empty",
            where=where,
            next_step="Export it again; the export may have failed or the disk been full.",
        )
    gzipped = raw.startswith(GZIP_MAGIC)
    truncated = False
    if gzipped:
        unpacker = zlib.decompressobj(wbits=31)
        try:
            head = unpacker.decompress(raw, HEAD_BYTES)
        except zlib.error as error:
            raise InputError(
                f"the packed file is damaged: {error}",
                where=where,
                next_step="Copy or download it again.",
            ) from error
        truncated = len(raw) < HEAD_BYTES and not unpacker.eof and not unpacker.unconsumed_tail
        if truncated and b"\n" not in head:
            raise InputError(
                "the packed file is cut off in its first line",
                where=where,
                next_step="Copy or download it again.",
            )
        if not head:
            raise EmptyFileError(
                "the packed file is empty", where=where, next_step="Copy or download it again."
            )
    else:
        head = raw
    refuse_other_kinds(head, where)
    text = head.decode("utf-8", errors="replace").removeprefix("\ufeff")
    return Head(path, gzipped, text, truncated)


def _no_file(path: Path, where: str) -> InputError:
    if path.is_dir():
        return InputError(
            "this is a folder",
            where=where,
            next_step="Give one file; folders are read with --format ndjson, xapi and edx.",
        )
    if path.exists():
        return InputError(
            "this is no file but a pipe or a device, which can be read only once",
            where=where,
            next_step="Write what it gives to a file, and give that.",
        )
    return InputError(
        "there is no such file", where=where, next_step="Check the name and the folder."
    )


def cannot_read(error: OSError, path: Path) -> InputError:
    """What to say of a file or folder that the system does not let us read."""
    said = (error.strerror or str(error)).lower()
    return InputError(
        f"it cannot be read: {said}",
        where=str(error.filename or path),
        next_step="Give the user that runs theon the right to read it, or look at the disk.",
    )


def refuse_other_kinds(head: bytes, where: str) -> None:
    """Refuse bytes that begin another kind of file.

    Raises:
        InputError: names the kind and says what to do.
    """
    beginning = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    kinds = [
        (
            head.startswith((b"\xff\xfe", b"\xfe\xff")) or _looks_utf16(head),
            "the file is encoded as UTF-16, not UTF-8",
            "Save it again as 'CSV UTF-8', or convert it: iconv -f UTF-16 -t UTF-8.",
        ),
        (
            beginning.startswith((b"<!doctype", b"<html", b"<?xml")),
            "this is a web page, not an export: the download was answered with a page, "
            "often the login page",
            "Sign in to Moodle and download it again.",
        ),
        (
            head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")),
            "this is an Excel or zip file, not text",
            "Export as CSV, or read an Excel report with --format moodle-report.",
        ),
        (
            head.startswith((b"%PDF", b"SQLite format 3", b"PAR1", b"\x28\xb5\x2f\xfd", b"BZh")),
            "this is not a text file",
            "Give the CSV file, plain or packed with gzip.",
        ),
        (
            beginning.startswith((b"-- ", b"--\n", b"/*m!", b"/*!")),
            "this is a dump of a database (SQL), not a table as CSV",
            "Restore it into a database and use --format moodle-db, or export the table as CSV.",
        ),
    ]
    for matches, what, next_step in kinds:
        if matches:
            raise InputError(what, where=where, next_step=next_step)
    if not beginning:
        raise EmptyFileError(
            "the file holds only blanks", where=where, next_step="Export it again."
        )


def _looks_utf16(head: bytes) -> bool:
    sample = head[:400]
    return len(sample) >= 4 and sample.count(0) > len(sample) // 4


def first_record(text: str, delimiter: str) -> list[str]:
    """The fields of the first record of `text`."""
    csv.field_size_limit(HEAD_BYTES * 4)
    return next(csv.reader(io.StringIO(text), delimiter=delimiter), [])


def guess_delimiter(text: str) -> str:
    """The delimiter of the first line: comma, semicolon or tab, whichever is there most."""
    line = text.split("\n", 1)[0]
    return max(",;\t", key=line.count)


def open_unpacked(path: Path) -> BinaryIO:
    """Open `path` for reading its bytes, unpacked if it is packed with gzip."""
    with path.open("rb") as stream:
        packed = stream.read(2) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


@dataclass(frozen=True)
class Tail:
    """The beginning of the line in which a file was cut: its number and what is there."""

    line_number: int
    text: str


def unpack_what_is_there(path: Path, target: Path) -> Tail:
    """Unpack a cut or damaged gzip file as far as it goes, in whole lines."""
    lines, rest = 1, b""
    with path.open("rb") as stream, target.open("wb") as out:
        for block in Unpacked(iter(lambda: stream.read(BLOCK_BYTES), b"")):
            whole, line_break, last = block.rpartition(b"\n")
            if not line_break:
                rest += block
                continue
            out.write(rest + whole + line_break)
            lines += whole.count(b"\n") + 1
            rest = last
    return Tail(lines, rest.decode("utf-8", errors="backslashreplace"))


class Unpacked:
    """What a gzip file holds, in blocks, as far as it can be unpacked.

    Attributes:
        cut_off: it ends in the middle, or is damaged; known at the end.
    """

    def __init__(self, packed: Iterator[bytes]) -> None:
        """Take the file's bytes, in blocks of any size, none empty."""
        self._packed = packed
        self.cut_off = False

    def __iter__(self) -> Iterator[bytes]:
        """Blocks of up to `BLOCK_BYTES`; none is empty."""
        pending, members = b"", 0
        unpacker, begun = zlib.decompressobj(wbits=31), False
        while True:
            pending = pending or next(self._packed, b"")
            if not pending and not begun:
                return
            before = unpacker.copy()
            try:
                block = unpacker.decompress(pending, BLOCK_BYTES)
            except zlib.error:
                # What follows a whole stream and is none itself is padding.
                self.cut_off = begun or not members
                yield from _before_the_damage(before, pending)
                return
            if block:
                yield block
            elif not pending:
                self.cut_off = True
                return
            begun = True
            pending = unpacker.unconsumed_tail
            if unpacker.eof:
                # A gzip file may hold several streams one after the other.
                pending, members = unpacker.unused_data, members + 1
                unpacker, begun = zlib.decompressobj(wbits=31), False


def _before_the_damage(unpacker: "zlib._Decompress", packed: bytes) -> Iterator[bytes]:
    """What can be unpacked of bytes that are damaged: in ever smaller pieces, up to the last."""
    for size in (1 << 16, 1 << 8, 1):
        while True:
            before = unpacker.copy()
            try:
                piece = unpacker.decompress(packed, size)
            except zlib.error:
                unpacker = before
                break
            if not piece:
                return
            yield piece
            packed = unpacker.unconsumed_tail
