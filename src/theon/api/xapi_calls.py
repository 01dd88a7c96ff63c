"""A request to the learning record store: who asks, in which version, for what."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

from starlette.requests import Request

from theon.access.errors import SignInError
from theon.access.keys import START
from theon.access.principals import Principal
from theon.access.requests import access_of, in_thread
from theon.access.roles import Permission
from theon.intake.group_commit import BusyError
from theon.jobs.texts import find_fault
from theon.lrs.errors import StatementError
from theon.lrs.reading import LARGEST_BYTES, read_content_type, read_json, too_large, unpack
from theon.lrs.values import is_iri, is_uuid, read_time
from theon.lrs.versions import HEADER, Version, read_version
from theon.roster.campuses import Campus, get_campus

HELD_BYTES = 64 * 1024 * 1024
FORM = "application/x-www-form-urlencoded"

_METHOD = "method"
_CONTENT = "content"
_MOST_FIELDS = 100
# What a form may hold in place of headers, in small letters.
_HEADERS = {
    "authorization", "x-experience-api-version", "content-type", "content-length", "if-match",
    "if-none-match", "accept", "accept-language", "content-encoding",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A request, read and not yet judged.

    Attributes:
        method: what is to be done; HEAD is GET.
        parameters: each given once.
        headers: by their names in small letters.
        body: as it was before it was compressed.
    """

    method: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """The media type of the body, with its parameters."""
        return self.headers.get("content-type", "")

    @property
    def version(self) -> Version:
        """Which xAPI it speaks.

        Raises:
            StatementError: it says none that is spoken here.
        """
        return read_version(self.headers.get(HEADER.lower()))


@dataclass(frozen=True)
class Caller:
    """Who asks, and whose statements they may see and add to."""

    principal: Principal
    campus: Campus


class Bodies:
    """How many bytes of bodies are in memory at the same time, over all requests."""

    def __init__(self) -> None:
        self.bytes = 0

    def hold(self) -> "Held":
        """What one request holds."""
        return Held(self)


class Held:
    """What one request holds of `Bodies`; release it when the request is answered."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._bytes = 0

    def receive(self, count: int) -> None:
        """Hold more of the body.

        Raises:
            TooLargeError: it is more than one request may send.
            BusyError: see `add`.
        """
        if self._bytes + count > LARGEST_BYTES:
            raise too_large()
        self.add(count)

    def add(self, count: int) -> None:
        """Hold more.

        Raises:
            BusyError: all requests together hold too much.
        """
        self._bytes += count
        self._bodies.bytes += count
        if self._bodies.bytes > HELD_BYTES:
            raise BusyError(
                "too much is being read at the moment",
                next_step="Nothing of this request was taken; send it again in a moment.",
            )

    def release(self) -> None:
        """Hold nothing more."""
        self._bodies.bytes -= self._bytes
        self._bytes = 0


async def read_call(request: Request, held: Held) -> Call:
    """Read a request; one of the alternate syntax of version 1.0 as what it stands for.

    Raises:
        BusyError: too much is being read.
        StatementError: it cannot be read.
        TooLargeError: its body is too large.
    """
    headers = {name.lower(): value for name, value in request.headers.items()}
    parameters = _once(parse_qsl(request.url.query, keep_blank_values=True), "parameters")
    sent = await _read_body(request, held)
    body = unpack(sent, headers.get("content-encoding", ""))
    held.add(len(body) - len(sent))
    method = "GET" if request.method == "HEAD" else request.method
    call = Call(method, parameters, headers, body)
    if _METHOD in parameters:
        call = _alternate(call)
    for name, value in call.parameters.items():
        fault = find_fault([name, value], "a parameter")
        if fault is not None:
            raise StatementError(fault[:500], where="parameters")
    return call


async def _read_body(request: Request, held: Held) -> bytes:
    parts = []
    async for part in request.stream():
        held.receive(len(part))
        parts.append(part)
    return b"".join(parts)


def _once(pairs: list[tuple[str, str]], where: str) -> dict[str, str]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise StatementError("something is given twice", where=where)
    return found


def _alternate(call: Call) -> Call:
    """The request that a form stands for: scripts of old browsers could send nothing else."""
    if call.method != "POST":
        raise StatementError("a request with `method` is a POST", where=_METHOD)
    if len(call.parameters) > 1:
        raise StatementError("`method` is the only parameter of such a request", where=_METHOD)
    if read_content_type(call.content_type)[0] != FORM:
        raise StatementError(f"a request with `method` has a form: {FORM}", where="Content-Type")
    try:
        words = call.body.decode()
        pairs = parse_qsl(
            words, keep_blank_values=True, strict_parsing=bool(words), max_num_fields=_MOST_FIELDS,
            errors="strict",
        )  # fmt: skip
    except ValueError as error:
        raise StatementError(f"the form cannot be read: {str(error)[:200]}", where="body") from None
    form = _once(pairs, "form")
    content = form.pop(_CONTENT, None)
    given = {name.lower(): value for name, value in form.items() if name.lower() in _HEADERS}
    method = call.parameters[_METHOD]
    if method in ("PUT", "POST") and content is None:
        raise StatementError(f"a {method} has its body in the field `content`", where="form")
    sent = {name: value for name, value in call.headers.items() if name != "content-type"}
    made = replace(
        call,
        method=method,
        parameters={name: value for name, value in form.items() if name.lower() not in _HEADERS},
        headers={"content-type": "application/json", **sent, **given},
        body=(content or "").encode(),
    )
    if made.version is not Version.ONE:
        raise StatementError("version 2.0 of xAPI has no requests with `method`", where=_METHOD)
    return made


async def identify(request: Request, call: Call, permission: Permission) -> Caller:
    """Who asks.

    Basic takes an API key as the password, whatever the user is called; Bearer takes what the
    rest of Theon takes. A session's cookie is not looked at: other sites' pages come here.

    Raises:
        SignInError: nobody says who they are, or it does not hold.
        ForbiddenError: they may not do this.
        Refusal: see `in_thread`.
    """
    header = call.headers.get("authorization")
    if header is None:
        raise SignInError(
            "nobody is signed in",
            next_step="Send an API key as the password of HTTP Basic, or as Authorization: Bearer.",
        )
    scheme, _, given = header.partition(" ")
    if scheme.lower() == "basic":
        header = f"Bearer {_password(given)}"
    access = access_of(request)
    principal: Principal = await in_thread(access.read_bearer, header)
    principal.check(permission)
    return Caller(principal, await in_thread(get_campus, access.store, principal.campus))


def _password(given: str) -> str:
    try:
        words = base64.b64decode(given.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        words = ""
    password = words.partition(":")[2]
    if not password.startswith(START):
        raise SignInError(
            "the password of HTTP Basic is no API key",
            next_step=f"Give the key, which begins with {START}, as the password; the user may "
            "have any name.",
        )
    return password


class Parameters:
    """The parameters of a request; those that are asked for are the only ones that may be there."""

    def __init__(self, call: Call, *known: str) -> None:
        for name in call.parameters:
            if name not in known:
                raise StatementError(
                    f"there is no parameter {name[:100]!r} here",
                    where="parameters",
                    next_step=f"There are {', '.join(known)}; letters count." if known
                    else "This takes none.",
                )  # fmt: skip
        self._given = call.parameters

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def text(self, name: str) -> str:
        """A parameter that has to be there.

        Raises:
            StatementError: it is not, or is empty.
        """
        if not self._given.get(name):
            raise StatementError("it is missing", where=name)
        return self._given[name]

    def iri(self, name: str) -> str:
        """An IRI that has to be there.

        Raises:
            StatementError: it is not.
        """
        value = self.text(name)
        if not is_iri(value):
            raise StatementError(f"{value[:100]!r} is no IRI", where=name)
        return value

    def uuid(self, name: str) -> UUID | None:
        """A UUID, if there is one.

        Raises:
            StatementError: it is none.
        """
        value = self._given.get(name)
        if value is None:
            return None
        if not is_uuid(value):
            raise StatementError(f"{value[:100]!r} is no UUID", where=name)
        return UUID(value)

    def time(self, name: str) -> datetime | None:
        """A moment, if there is one.

        Raises:
            StatementError: it is none.
        """
        value = self._given.get(name)
        if value is None:
            return None
        try:
            return read_time(value)
        except ValueError as error:
            raise StatementError(str(error), where=name) from None

    def flag(self, name: str) -> bool:
        """Whether it is `true`; `false` if it is not given.

        Raises:
            StatementError: it is neither.
        """
        value = self._given.get(name, "false")
        if value not in ("true", "false"):
            raise StatementError(f"{value[:100]!r} is neither true nor false", where=name)
        return value == "true"

    def count(self, name: str) -> int:
        """A whole number from 0; 0 if it is not given.

        Raises:
            StatementError: it is none.
        """
        value = self._given.get(name, "0")
        if not (value.isascii() and value.isdecimal() and len(value) <= 9):
            raise StatementError(f"{value[:100]!r} is no whole number from 0", where=name)
        return int(value)

    def choice(self, name: str, *values: str) -> str:
        """One of some words; the first if it is not given.

        Raises:
            StatementError: it is another one.
        """
        value = self._given.get(name, values[0])
        if value not in values:
            raise StatementError(f"{value[:100]!r} is none of {', '.join(values)}", where=name)
        return value

    def json(self, name: str) -> Any:
        """A JSON value that has to be there.

        Raises:
            StatementError: it is not.
        """
        return read_json(self.text(name), where=name)
