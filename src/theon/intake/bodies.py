"""A request's body as single events: unpacked, within limits, cut at lines or elements."""

import codecs
import zlib
from dataclasses import dataclass

import duckdb

from theon.errors import InputError
from theon.intake.sniff import GZIP_MAGIC
from theon.lake.engine import open_scratch

MOST_BYTES = 10 << 20
MOST_EVENTS = 100_000
_GZIP = 16 + zlib.MAX_WBITS
_PACKED = ("gzip", "x-gzip")  # two names of one packing


class TooLargeError(InputError):
    """A body is larger than one request may be."""


@dataclass(frozen=True)
class Body:
    """Events as they were sent, one by one, in their order."""

    events: list[bytes]
    size_bytes: int


def unpack(body: bytes, encoding: str) -> bytes:
    """The body without its `Content-Encoding`.

    Raises:
        InputError: it is packed otherwise, or does not unpack.
        TooLargeError: it is larger than `MOST_BYTES`, packed or not.
    """
    if len(body) > MOST_BYTES:
        raise too_large()
    named = encoding.strip().lower()
    if named in ("", "identity"):
        if body.startswith(GZIP_MAGIC):
            raise InputError(
                "the body is packed with gzip and does not say so",
                where="Content-Encoding",
                next_step="Nothing of it was taken. Name it: Content-Encoding: gzip.",
            )
        return body
    if named not in _PACKED:
        raise InputError(
            f"the body is packed as {encoding!r}",
            where="Content-Encoding",
            next_step="Send it with gzip, or as it is.",
        )
    parts: list[bytes] = []
    size = 0
    rest = body
    while rest:  # a gzip file may have several members
        member = zlib.decompressobj(_GZIP)
        try:
            # One byte more than is allowed, so that a bomb is noticed and never unpacked.
            part = member.decompress(rest, MOST_BYTES - size + 1)
        except zlib.error as error:
            raise _no_gzip(str(error)) from error
        size += len(part)
        if size > MOST_BYTES:
            raise too_large()
        if not member.eof:
            raise _no_gzip("it ends in the middle")
        parts.append(part)
        rest = member.unused_data
    return b"".join(parts)


def cut(body: bytes, content_type: str) -> Body:
    """The single events of a body: the elements of a JSON array, one object, or lines.

    Args:
        body: unpacked.
        content_type: of the request; an object under `application/json` may have line breaks.

    Raises:
        InputError: the array is no JSON; there is no event in it.
        TooLargeError: there are more than `MOST_EVENTS`.
    """
    body = body.removeprefix(codecs.BOM_UTF8)
    beginning = body.lstrip()[:1]
    kind = content_type.partition(";")[0].strip().lower()
    if beginning == b"[":
        events = _elements(body)
    elif kind == "application/json" and beginning == b"{" and not _is_lines(body):
        events = [body.strip()]
    else:
        lines = [line for line in body.split(b"\n") if line and not line.isspace()]
        events = [line.rstrip(b"\r") for line in lines]
    if not events:
        raise InputError(
            "the body holds no event",
            where="body",
            next_step="Send one event per line (NDJSON), or a JSON array of events.",
        )
    if len(events) > MOST_EVENTS:
        raise TooLargeError(
            f"the body holds {len(events):,} events, more than {MOST_EVENTS:,}",
            where="body",
            next_step="Send them in several requests.",
        )
    return Body(events, len(body))


def too_large() -> TooLargeError:
    """What a body beyond the limit is answered."""
    return TooLargeError(
        f"the body is larger than {MOST_BYTES >> 20} MB",
        where="body",
        next_step="Send the events in several requests.",
    )


def _is_lines(body: bytes) -> bool:
    """Whether the first line is an object by itself."""
    first, _, rest = body.strip().partition(b"\n")
    return bool(rest) and first.rstrip().endswith(b"}")


def _elements(body: bytes) -> list[bytes]:
    try:
        words = body.decode()
        with open_scratch() as engine:
            found = engine.execute(
                # Of an element `null` the engine makes none at all.
                "SELECT coalesce(unnest(from_json($1::VARCHAR, '[\"JSON\"]'))::VARCHAR, 'null')",
                [words],
            ).fetchall()
    except UnicodeDecodeError as error:
        raise _no_array(f"byte {error.start} is not UTF-8") from error
    except duckdb.InvalidInputException as error:
        raise _no_array(str(error).partition("Input:")[0].rpartition("Error: ")[2]) from error
    return [element.encode() for (element,) in found]


def _no_array(why: str) -> InputError:
    return InputError(
        f"the body is no JSON array: {why.strip()}",
        where="body",
        next_step="Nothing of it was taken. Mend it, or send one event per line (NDJSON): there a "
        "line that is wrong does not keep out the others.",
    )


def _no_gzip(why: str) -> InputError:
    return InputError(
        f"the body does not unpack as gzip: {why}",
        where="body",
        next_step="Nothing of it was taken. Pack it again and send it again.",
    )
