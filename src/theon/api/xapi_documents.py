"""States, profiles, and what is known of activities and agents, over HTTP."""

import hashlib
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Any

from sqlalchemy import Connection
from starlette.responses import Response

from theon.api.xapi_calls import Call, Caller, Parameters
from theon.lrs.documents import (
    Conditions,
    Place,
    delete_document,
    delete_documents,
    get_document,
    list_documents,
    merge_document,
    put_document,
)
from theon.lrs.errors import NotFoundError, StatementError
from theon.lrs.identity import agent_key, digest
from theon.lrs.knowledge import read_activity, read_person
from theon.lrs.preparing import to_text
from theon.lrs.statements import check_agent
from theon.lrs.versions import Version


@dataclass(frozen=True)
class Documents:
    """A resource of documents: what its parameters are called, and what it allows.

    Attributes:
        kind: as `Place.kind`.
        name: the parameter that names a document.
        by_activity: whether it belongs to an activity.
        by_agent: whether it belongs to an agent.
        by_registration: whether it may belong to a registration.
        cleared: whether all of them can be taken away at once.
    """

    kind: str
    name: str
    by_activity: bool = False
    by_agent: bool = False
    by_registration: bool = False
    cleared: bool = False

    def get(self, conn: Connection, call: Call, caller: Caller) -> Response:
        """A document, or without its name the names of all."""
        call.version  # noqa: B018 - raises where none is spoken
        parameters = self._parameters(call, "since")
        place = self._place(parameters, caller)
        since = parameters.time("since")  # of the names; one document is given whatever it says
        if self.name not in parameters:
            return answer_json(list_documents(conn, place, since))
        found = get_document(conn, place, parameters.text(self.name))
        if found is None:
            raise NotFoundError("there is no such document here", where=self.name)
        response = Response(found.content)
        response.headers["Content-Type"] = found.content_type
        response.headers["ETag"] = found.etag
        response.headers["Last-Modified"] = format_datetime(found.updated_at, usegmt=True)
        return response

    def put(self, conn: Connection, call: Call, caller: Caller) -> Response:
        """Put a document: 204."""
        # Version 1.0 lets a state be overwritten by those who have not seen it, and wants whoever
        # puts a profile to say what they have seen, be it nothing.
        is_old = call.version is Version.ONE
        needed = not (is_old and self.by_registration)
        parameters = self._parameters(call)
        put_document(
            conn,
            self._place(parameters, caller),
            parameters.text(self.name),
            _media_type(call),
            call.body,
            _conditions(call, needed=needed, always=is_old and needed),
        )
        return Response(status_code=204)

    def post(self, conn: Connection, call: Call, caller: Caller) -> Response:
        """Merge a JSON object into the one that is there: 204."""
        call.version  # noqa: B018 - raises where none is spoken
        parameters = self._parameters(call)
        merge_document(
            conn,
            self._place(parameters, caller),
            parameters.text(self.name),
            _media_type(call),
            call.body,
            _conditions(call),
        )
        return Response(status_code=204)

    def delete(self, conn: Connection, call: Call, caller: Caller) -> Response:
        """Take away a document, or without its name all states: 204."""
        call.version  # noqa: B018 - raises where none is spoken
        parameters = self._parameters(call)
        place = self._place(parameters, caller)
        if self.cleared and self.name not in parameters:
            delete_documents(conn, place)
        else:
            delete_document(conn, place, parameters.text(self.name), _conditions(call))
        return Response(status_code=204)

    def _parameters(self, call: Call, *more: str) -> Parameters:
        known = [
            *(("activityId",) if self.by_activity else ()),
            *(("agent",) if self.by_agent else ()),
            *(("registration",) if self.by_registration else ()),
        ]
        return Parameters(call, *known, self.name, *more)

    def _place(self, parameters: Parameters, caller: Caller) -> Place:
        of = []
        if self.by_activity:
            of.append(parameters.iri("activityId"))
        if self.by_agent:
            of.append(str(agent_key(read_agent(parameters))))
        registration = parameters.uuid("registration") if self.by_registration else None
        return Place(caller.campus.id, self.kind, digest(*of), registration)


STATE = Documents(
    "state", "stateId", by_activity=True, by_agent=True, by_registration=True, cleared=True
)
ACTIVITY_PROFILE = Documents("activity profile", "profileId", by_activity=True)
AGENT_PROFILE = Documents("agent profile", "profileId", by_agent=True)


def get_activity(conn: Connection, call: Call, caller: Caller) -> Response:
    """What is known of an activity."""
    call.version  # noqa: B018 - raises where none is spoken
    activity = Parameters(call, "activityId").iri("activityId")
    return answer_json(read_activity(conn, caller.campus.id, activity))


def get_person(conn: Connection, call: Call, caller: Caller) -> Response:
    """What is known of an agent."""
    call.version  # noqa: B018 - raises where none is spoken
    agent = read_agent(Parameters(call, "agent"))
    return answer_json(read_person(conn, caller.campus.id, agent))


def read_agent(parameters: Parameters) -> Any:
    """The Agent that a request names.

    Raises:
        StatementError: it names none.
    """
    agent = parameters.json("agent")
    check_agent(agent, where="agent")
    return agent


def answer_json(value: Any) -> Response:
    """A JSON value, with the hash by which it is recognised."""
    body = to_text(value).encode()
    response = Response(body, media_type="application/json")
    response.headers["ETag"] = f'"{hashlib.sha1(body, usedforsecurity=False).hexdigest()}"'
    return response


def _conditions(call: Call, *, needed: bool = False, always: bool = False) -> Conditions:
    headers = call.headers
    return Conditions(headers.get("if-match"), headers.get("if-none-match"), needed, always)


def _media_type(call: Call) -> str:
    given = call.content_type or "application/octet-stream"
    # It is sent again as a header, where nothing else may stand.
    if len(given) > 500 or not (given.isascii() and given.isprintable()):
        raise StatementError("this is no media type", where="Content-Type")
    return given
