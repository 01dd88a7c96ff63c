"""From the bytes of a request to statements and their attachments; nothing is believed."""

import email.message
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from theon.jobs.texts import find_fault
from theon.lrs.errors import StatementError, TooLargeError

LARGEST_BYTES = 10 * 1024 * 1024
MOST_STATEMENTS = 10_000
MOST_PARTS = 1_000
HASH_HEADER = "X-Experience-API-Hash"

_HASHES = {56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
_REPEATED = "an object has two properties of the same name"


@dataclass(frozen=True)
class Part:
    """A file that came with statements; `sha2` in hexadecimal digits, in small letters."""

    sha2: str
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Sent:
    """What a request brought: JSON values that may be statements, and files by their hash."""

    statements: list[Any]
    is_list: bool
    parts: Mapping[str, Part]


def read_sent(content_type: str, body: bytes) -> Sent:
    """Read statements as `application/json` or, with files, as `multipart/mixed`.

    Raises:
        StatementError: the body is neither, or not what it says.
        TooLargeError: there are too many statements or files.
    """
    kind, parameters = read_content_type(content_type)
    parts: list[Part] = []
    if kind == "multipart/mixed":
        body, parts = _split(body, parameters.get("boundary", ""))
    elif kind != "application/json":
        raise StatementError(
            f"statements come as application/json or multipart/mixed, not as {kind[:100]!r}",
            where="Content-Type",
        )
    value = read_json(body)
    statements = value if isinstance(value, list) else [value]
    if len(statements) > MOST_STATEMENTS:
        raise TooLargeError(
            f"there are more than {MOST_STATEMENTS} statements",
            where="body",
            next_step="Send them in several requests.",
        )
    return Sent(statements, isinstance(value, list), {part.sha2: part for part in parts})


def read_content_type(header: str) -> tuple[str, dict[str, str]]:
    """A media type in small letters, and its parameters."""
    message = email.message.Message()
    message["content-type"] = header.replace("\r", " ").replace("\n", " ")
    found = message.get_params(failobj=[])
    if not found:
        return "", {}
    return found[0][0].lower(), {
        str(name).lower(): str(value) for name, value in found[1:] if value is not None
    }


def read_json(body: bytes | str, *, where: str = "body") -> Any:
    """A JSON value that can be kept.

    Raises:
        StatementError: it is no JSON, repeats a property, goes too deep, or has a character or a
            number that cannot be kept.
    """
    try:
        words = body if isinstance(body, str) else body.decode()
        value = json.loads(words, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError:
        raise StatementError(
            "lists and objects stand too deep in each other", where=where
        ) from None
    except ValueError as error:  # what is no UTF-8, and no JSON
        raise StatementError(f"this is no JSON: {str(error)[:200]}", where=where) from None
    fault = find_fault(value, "value")
    if fault is not None:
        raise StatementError(fault[:500], where=where)
    return value


def unpack(body: bytes, encoding: str) -> bytes:
    """The bytes of a body as they were before it was compressed.

    Raises:
        StatementError: the encoding is unknown, or the body is not in it.
        TooLargeError: it is larger than `LARGEST_BYTES`.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name != "gzip":
        raise StatementError(
            f"bodies are plain or gzip, not {name[:100]!r}", where="Content-Encoding"
        )
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        whole = inflater.decompress(body, LARGEST_BYTES + 1)
    except zlib.error as error:
        raise StatementError(f"this is no gzip: {error}", where="body") from None
    if len(whole) > LARGEST_BYTES:
        raise too_large()
    if not inflater.eof or inflater.unused_data:
        raise StatementError("the gzip ends too early, or something follows it", where="body")
    return whole


def too_large() -> TooLargeError:
    """Why a body is not read to its end."""
    return TooLargeError(
        f"the body is larger than {LARGEST_BYTES // 1024 // 1024} MB",
        where="body",
        next_step="Send less at once.",
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(_REPEATED)
    return found


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _split(body: bytes, boundary: str) -> tuple[bytes, list[Part]]:
    """The statements' own part, and the files."""
    found = _Parts(boundary).read(body)
    first, *others = found
    kind, _ = read_content_type(first[0].get("content-type", ""))
    if kind != "application/json":
        raise StatementError(
            "the first part holds the statements, so it is application/json", where="part 0"
        )
    return first[1], [
        _read_part(number, headers, content) for number, (headers, content) in enumerate(others, 1)
    ]


def _read_part(number: int, headers: Mapping[str, str], content: bytes) -> Part:
    where = f"part {number}"
    sha2 = headers.get(HASH_HEADER.lower(), "").strip().lower()
    algorithm = _HASHES.get(len(sha2))
    if algorithm is None:
        raise StatementError(f"the part has no SHA-2 in its {HASH_HEADER}", where=where)
    if headers.get("content-transfer-encoding", "").strip().lower() != "binary":
        raise StatementError("the part's Content-Transfer-Encoding is not binary", where=where)
    if hashlib.new(algorithm, content).hexdigest() != sha2:
        raise StatementError(
            f"the content does not have the hash of its {HASH_HEADER}", where=where
        )
    kind = headers.get("content-type", "application/octet-stream")
    fault = find_fault(kind, "Content-Type")
    if fault is not None:
        raise StatementError(fault, where=where)
    return Part(sha2, kind, content)


class _Parts:
    """Takes apart a multipart body; what holds the parts together is the library's to know."""

    def __init__(self, boundary: str) -> None:
        if not 1 <= len(boundary) <= 70 or not boundary.isascii():
            raise StatementError(
                "multipart/mixed names its boundary in 1 to 70 characters", where="Content-Type"
            )
        self._found: list[tuple[dict[str, str], bytearray]] = []
        self._name = bytearray()
        self._value = bytearray()
        self._ended = False
        self._parser = MultipartParser(
            boundary.encode(),
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._content,
                "on_header_end": self._header,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def read(self, body: bytes) -> list[tuple[dict[str, str], bytes]]:
        try:
            self._parser.write(body.lstrip(b"\r\n"))
            self._parser.finalize()
        except MultipartParseError as error:
            raise StatementError(f"this is no multipart: {error}", where="body") from None
        if not self._ended or not self._found:
            raise StatementError("the multipart ends too early", where="body")
        return [(headers, bytes(content)) for headers, content in self._found]

    def _begin(self) -> None:
        if len(self._found) >= MOST_PARTS:
            raise TooLargeError(
                f"there are more than {MOST_PARTS} parts", where="body", next_step="Send fewer."
            )
        self._found.append(({}, bytearray()))

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        name = self._name.decode("latin-1").strip().lower()
        self._found[-1][0][name] = self._value.decode("latin-1").strip()
        self._name.clear()
        self._value.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._found[-1][1].extend(data[start:end])

    def _end(self) -> None:
        self._ended = True
