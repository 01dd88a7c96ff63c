"""Statements over HTTP: PUT, POST and GET."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import format_datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection
from starlette.responses import Response

from theon.api.xapi_calls import Call, Caller, Parameters
from theon.lrs.asking import (
    Found,
    Question,
    attachments_of,
    find_files,
    find_one,
    find_page,
    fit_files,
    read_more,
    write_more,
)
from theon.lrs.errors import NotFoundError, StatementError
from theon.lrs.formats import read_languages, to_canonical, to_ids
from theon.lrs.identity import Key, activities_of, agent_key, key_of, key_of_agent
from theon.lrs.knowledge import read_definitions
from theon.lrs.preparing import prepare, to_text
from theon.lrs.reading import HASH_HEADER, Part, read_sent
from theon.lrs.statements import check_actor
from theon.lrs.storing import Batch

CONSISTENT = "X-Experience-API-Consistent-Through"
FILTERS = (
    "agent", "verb", "activity", "registration", "related_activities", "related_agents", "since",
    "until", "limit", "format", "attachments", "ascending",
)  # fmt: skip

_BY_ID = ("statementId", "voidedStatementId")
_WITH_ID = {*_BY_ID, "format", "attachments"}
_FORMATS = ("exact", "ids", "canonical")
_JSON = "application/json"


def read_statements(call: Call) -> Batch:
    """The statements and files that a request brings, checked.

    Raises:
        StatementError: a rule is broken.
        TooLargeError: there are too many.
    """
    version = call.version
    wanted = None
    if call.method == "PUT":
        parameters = Parameters(call, "statementId")
        wanted = parameters.text("statementId")
        parameters.uuid("statementId")
    else:
        Parameters(call)
    sent = read_sent(call.content_type, call.body)
    return Batch(*prepare(sent, version, statement_id=wanted))


def answer_stored(call: Call, ids: Sequence[str]) -> Response:
    """What a request with statements is answered: 204 after PUT, 200 and the ids after POST."""
    return Response(status_code=204) if call.method == "PUT" else _json(to_text(ids))


def get_statements(conn: Connection, call: Call, caller: Caller, path: str) -> Response:
    """One statement by its id, or a page of those that fit.

    Args:
        conn: to read by.
        call: the request.
        caller: whose statements are read.
        path: of the statements, with which `more` begins.
    """
    call.version  # noqa: B018 - raises where none is spoken
    if any(name in call.parameters for name in _BY_ID):
        return _get_one(conn, call, caller.campus.id)
    return _get_page(conn, call, caller.campus.id, path)


def _get_one(conn: Connection, call: Call, campus_id: int) -> Response:
    parameters = Parameters(call, *_BY_ID, *FILTERS)
    also = [name for name in call.parameters if name not in _WITH_ID]
    if also or all(name in parameters for name in _BY_ID):
        raise StatementError(
            "with the id of a statement go `format` and `attachments`, and nothing else",
            where=also[0] if also else _BY_ID[1],
        )
    name = _BY_ID[0] if _BY_ID[0] in parameters else _BY_ID[1]
    parameters.text(name)
    wanted = parameters.uuid(name)
    assert isinstance(wanted, UUID)  # noqa: S101 - tells the type
    shown = _Shown(conn, campus_id, call, parameters)
    found = find_one(conn, campus_id, wanted, voided=name == _BY_ID[1])
    if found is None:
        raise NotFoundError("there is no such statement here", where=name)
    response = shown.answer([found], lambda texts: texts[0])
    response.headers["Last-Modified"] = format_datetime(found.stored, usegmt=True)
    return response


def _get_page(conn: Connection, call: Call, campus_id: int, path: str) -> Response:
    asked, after = call.parameters, None
    if "more" in asked:
        asked, after = read_more(Parameters(call, "more").text("more"))
    call = Call(call.method, asked, call.headers, call.body)
    parameters = Parameters(call, *FILTERS)
    shown = _Shown(conn, campus_id, call, parameters)
    question = _question(parameters, after)
    page = find_page(conn, campus_id, question)
    kept = page.statements
    if shown.with_files:
        named = attachments_of(json.loads(found.text) for found in kept)
        kept = kept[: fit_files(conn, campus_id, named)]
    is_last = page.is_last and len(kept) == len(page.statements)
    more = "" if is_last or not kept else f"{path}?more={write_more(asked, kept[-1].stored)}"
    return shown.answer(
        kept, lambda texts: f'{{"statements":[{",".join(texts)}],"more":{json.dumps(more)}}}'
    )


def _question(parameters: Parameters, after: datetime | None) -> Question:
    keys = set()
    agents = Key.RELATED_AGENT if parameters.flag("related_agents") else Key.AGENT
    activities = Key.RELATED_ACTIVITY if parameters.flag("related_activities") else Key.ACTIVITY
    if "agent" in parameters:
        agent = parameters.json("agent")
        check_actor(agent, where="agent")
        keys.add(key_of_agent(agents, agent_key(agent)))
    if "activity" in parameters:
        keys.add(key_of(activities, parameters.iri("activity")))
    if "verb" in parameters:
        keys.add(key_of(Key.VERB, parameters.iri("verb")))
    registration = parameters.uuid("registration")
    if registration is not None:
        keys.add(key_of(Key.REGISTRATION, str(registration)))
    return Question(
        frozenset(keys),
        parameters.time("since"),
        parameters.time("until"),
        parameters.count("limit"),
        parameters.flag("ascending"),
        after,
    )


class _Shown:
    """How statements are wanted: in which form, and with their files or not."""

    def __init__(
        self, conn: Connection, campus_id: int, call: Call, parameters: Parameters
    ) -> None:
        self._conn = conn
        self._campus_id = campus_id
        self._format = parameters.choice("format", *_FORMATS)
        self._languages = read_languages(call.headers.get("accept-language", ""))
        self.with_files = parameters.flag("attachments")

    def answer(self, found: Sequence[Found], frame: Any) -> Response:
        """The statements in what `frame` puts around their texts."""
        body = frame(self._texts(found))
        if not self.with_files:
            return _json(body)
        named = attachments_of(json.loads(one.text) for one in found)
        hashes = [sha2 for names in named for sha2 in names]
        return _multipart(body, find_files(self._conn, self._campus_id, hashes))

    def _texts(self, found: Sequence[Found]) -> list[str]:
        if self._format == "exact":
            return [one.text for one in found]
        statements: list[Mapping[str, Any]] = [json.loads(one.text) for one in found]
        if self._format == "ids":
            return [to_text(to_ids(statement)) for statement in statements]
        activities = {a["id"] for statement in statements for a in activities_of(statement)}
        known = read_definitions(self._conn, self._campus_id, activities)
        return [to_text(to_canonical(s, known, self._languages)) for s in statements]


def _json(words: str) -> Response:
    return Response(words.encode(), media_type=_JSON)


def _multipart(body: str, files: Sequence[Part]) -> Response:
    boundary = uuid4().hex
    out = bytearray(f"--{boundary}\r\nContent-Type: {_JSON}\r\n\r\n".encode())
    out += body.encode()
    for part in files:
        kind = part.content_type.encode("latin-1", "replace").decode("latin-1")
        out += (
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: binary"
            f"\r\n{HASH_HEADER}: {part.sha2}\r\n\r\n"
        ).encode("latin-1")
        out += part.body
    out += f"\r\n--{boundary}--\r\n".encode()
    return Response(bytes(out), media_type=f"multipart/mixed; boundary={boundary}")
