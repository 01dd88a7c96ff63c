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
        raise InputError(
            "there is no such file", where=where, next_step="Check the name and the folder."
        )
    with path.open("rb") as stream:
        raw = stream.read(HEAD_BYTES)
    if not raw:
        raise InputError(
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
        if not head or (truncated and b"\n" not in head):
            raise InputError(
                "the packed file is cut off in its first line"
                if truncated
                else "the packed file is empty",
                where=where,
                next_step="Copy or download it again.",
            )
    else:
        head = raw
    refuse_other_kinds(head, where)
    text = head.decode("utf-8", errors="replace").removeprefix("\ufeff")
    return Head(path, gzipped, text, truncated)


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
        (not beginning, "the file holds only blanks", "Export it again."),
    ]
    for matches, what, next_step in kinds:
        if matches:
            raise InputError(what, where=where, next_step=next_step)


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
        for block in _unpacked_blocks(stream):
            whole, line_break, last = block.rpartition(b"\n")
            if not line_break:
                rest += block
                continue
            out.write(rest + whole + line_break)
            lines += whole.count(b"\n") + 1
            rest = last
    return Tail(lines, rest.decode("utf-8", errors="backslashreplace"))


def _unpacked_blocks(stream: BinaryIO) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    pending = b""
    while True:
        pending = pending or stream.read(BLOCK_BYTES)
        if not pending:
            return
        try:
            block = unpacker.decompress(pending, BLOCK_BYTES)
        except zlib.error:
            return
        yield block
        pending = unpacker.unconsumed_tail
        if unpacker.eof:
            # A gzip file may hold several streams one after the other.
            pending, unpacker = unpacker.unused_data, zlib.decompressobj(wbits=31)
