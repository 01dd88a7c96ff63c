"""Puts the learning record store onto an application, at /xapi."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from anyio.to_thread import run_sync
from fastapi import FastAPI
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from theon.access.requests import Refusal, in_thread, refusal
from theon.access.roles import Permission
from theon.api.xapi_calls import Bodies, Call, Caller, identify, read_call
from theon.api.xapi_documents import (
    ACTIVITY_PROFILE,
    AGENT_PROFILE,
    STATE,
    answer_json,
    get_activity,
    get_person,
)
from theon.api.xapi_statements import (
    CONSISTENT,
    answer_stored,
    get_statements,
    read_statements,
)
from theon.api.xapi_writing import Sending, Writers
from theon.errors import TheonError
from theon.intake.group_commit import BusyError
from theon.intake.throttle import Throttle, ThrottledError
from theon.jobs.context import clean
from theon.lake.lake_ids import LakeIds
from theon.lrs.asking import consistent_through
from theon.lrs.errors import (
    DocumentConflictError,
    NotFoundError,
    PreconditionError,
    StatementConflictError,
    StatementError,
    TooLargeError,
)
from theon.lrs.storing import moment
from theon.lrs.values import is_iri
from theon.lrs.versions import HEADER, Version, read_version
from theon.store.engine import Store

PREFIX = "/xapi"
LIMITS = {"statement_timeout": "60s", "lock_timeout": "30s"}

_STATUSES: dict[type[TheonError], int] = {
    StatementError: 400,
    NotFoundError: 404,
    StatementConflictError: 409,
    DocumentConflictError: 409,
    PreconditionError: 412,
    TooLargeError: 413,
}
_BUSY = {"57014", "55P03", "40P01", "40001"}  # took too long, waited too long, got in the way

Handler = Callable[[Connection, Call, Caller], Response]


@dataclass(frozen=True)
class Resource:
    """What is at a path: who does what is asked, by its method."""

    path: str
    handlers: Mapping[str, Handler]


def add_xapi(
    app: FastAPI, store: Store, throttle: Throttle, lake_ids: LakeIds | None = None
) -> Writers:
    """Put the learning record store onto `app`, which `add_sign_in` has been given as well.

    Args:
        app: the application.
        store: where statements and documents are.
        throttle: counts what each client sends.
        lake_ids: ids noted beside the lake.

    Returns:
        The threads that write statements; open them before the application serves.
    """
    writers = Writers(store, LIMITS, lake_ids)
    app.mount(PREFIX, _Service(store, throttle, writers).app())
    return writers


class _Service:
    def __init__(self, store: Store, throttle: Throttle, writers: Writers) -> None:
        self._store = store
        self._throttle = throttle
        self._bodies = Bodies()
        self._writers = writers

    def app(self) -> Starlette:
        """Every resource, open to pages of other sites: players of content stand there."""
        documents = {
            "activities/state": STATE,
            "activities/profile": ACTIVITY_PROFILE,
            "agents/profile": AGENT_PROFILE,
        }
        resources = [
            Resource(path, {"GET": d.get, "PUT": d.put, "POST": d.post, "DELETE": d.delete})
            for path, d in documents.items()
        ]
        resources += [
            Resource("activities", {"GET": get_activity}),
            Resource("agents", {"GET": get_person}),
        ]
        routes = [Route(f"/{r.path}", self._endpoint(r), methods=_METHODS) for r in resources]
        routes += [
            Route("/statements", self._statements, methods=_METHODS),
            Route("/about", self._about, methods=_METHODS),
            Route("/{path:path}", self._nothing, methods=_METHODS),
        ]
        exposed = [HEADER, CONSISTENT, "ETag", "Last-Modified"]
        cors = Middleware(
            CORSMiddleware, allow_origins=["*"], allow_methods=_METHODS, allow_headers=["*"],
            expose_headers=exposed,
        )  # fmt: skip
        return Starlette(routes=routes, middleware=[cors])

    def _endpoint(self, resource: Resource) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await self._answer(request, resource.handlers)

        return endpoint

    async def _statements(self, request: Request) -> Response:
        site = str(request.base_url).rstrip("/")
        site = site if is_iri(site) else "http://localhost/xapi"  # a host of any letters may ask
        path = request.url.path

        def get(conn: Connection, call: Call, caller: Caller) -> Response:
            # Asked for first: what is stored meanwhile is no part of it.
            through = moment(consistent_through(conn, caller.campus.id))
            try:
                response = get_statements(conn, call, caller, path)
            except TheonError as error:
                response = _say(_refuse(error))
            response.headers[CONSISTENT] = through
            return response

        async def read(call: Call) -> Response:
            caller = await identify(request, call, Permission.STATEMENTS_READ)
            return await in_thread(self._run, get, call, caller)

        async def write(call: Call) -> Response:
            caller = await identify(request, call, Permission.EVENTS_SEND)
            batch = await run_sync(read_statements, call)
            await self._throttle.take(caller.principal.subject, len(batch.statements))
            return answer_stored(call, await self._writers.store(Sending(caller, site, batch)))

        handlers = {"GET": read, "PUT": write, "POST": write}
        response = await self._guarded(request, handlers)
        # Nobody knows whose statements somebody meant who is not let in.
        response.headers.setdefault(CONSISTENT, moment(datetime.fromtimestamp(0, UTC)))
        return response

    async def _about(self, request: Request) -> Response:
        async def about(_call: Call) -> Response:
            given = request.headers.get(HEADER)
            # Version 1.0 knows of no later ones, and its readers refuse what they do not know.
            is_old = given is not None and _spoken(given) is Version.ONE
            versions = [v.value for v in Version if v is Version.ONE or not is_old]
            return answer_json({"version": versions, "extensions": {}})

        return await self._guarded(request, {"GET": about})

    async def _nothing(self, request: Request) -> Response:
        async def nothing(_call: Call) -> Response:
            raise NotFoundError(
                "there is no such resource",
                where=request.url.path,
                next_step="docs/guides/xapi.md names them; statements are at /xapi/statements.",
            )

        return await self._guarded(request, dict.fromkeys(_METHODS, nothing))

    async def _answer(self, request: Request, handlers: Mapping[str, Handler]) -> Response:
        def served(handler: Handler, permission: Permission) -> Callable[[Call], Any]:
            async def serve(call: Call) -> Response:
                caller = await identify(request, call, permission)
                return await in_thread(self._run, handler, call, caller)

            return serve

        return await self._guarded(
            request,
            {method: served(handler, _PERMISSIONS[method]) for method, handler in handlers.items()},
        )

    def _run(self, handler: Handler, call: Call, caller: Caller) -> Response:
        try:
            with self._store.transaction(caller.principal.scope, LIMITS) as conn:
                return handler(conn, call, caller)
        except TheonError as error:
            raise _refuse(error) from error

    async def _guarded(
        self, request: Request, handlers: Mapping[str, Callable[[Call], Any]]
    ) -> Response:
        given = request.headers.get(HEADER)
        held = self._bodies.hold()
        try:
            if request.method == "HEAD" or request.method in handlers:
                call = await read_call(request, held)
                given = call.headers.get(HEADER.lower())
                method = call.method
            else:
                method = request.method
            if method not in handlers:
                raise Refusal(
                    405,
                    f"{method[:20]} is not for this resource",
                    "",
                    {"Allow": ", ".join(handlers)},
                )
            response: Response = await handlers[method](call)
        except Refusal as found:
            response = _say(found)
        except TheonError as error:
            response = _say(_refuse(error))
        except PoolTimeoutError:
            response = _say(_busy())
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _BUSY:
                raise
            response = _say(_busy())
        finally:
            held.release()
        response.headers[HEADER] = _spoken(given).value
        response.headers.setdefault("Cache-Control", "no-store")
        if request.method == "HEAD":
            response.body = b""  # its length stays in the header
        return response


_METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"]
_PERMISSIONS = {
    "GET": Permission.STATEMENTS_READ,
    "PUT": Permission.EVENTS_SEND,
    "POST": Permission.EVENTS_SEND,
    "DELETE": Permission.EVENTS_SEND,
}


def _spoken(given: str | None) -> Version:
    """The version in which a request is answered, whatever it says: in the old one if nothing."""
    try:
        return read_version(given)
    except StatementError:
        return Version.ONE if given is None or given.startswith("1") else Version.TWO


def _refuse(error: TheonError) -> Refusal:
    found = refusal(error)
    if isinstance(error, ThrottledError | BusyError):
        return Refusal(429, error.what, error.next_step, {"Retry-After": str(error.retry_after_s)})
    found.status = _STATUSES.get(type(error), found.status)
    if error.where:
        found.error = f"{error.where}: {found.error}"
    return found


def _busy() -> Refusal:
    return Refusal(503, "the database is busy", "Send it again in a moment.", {"Retry-After": "5"})


def _say(found: Refusal) -> Response:
    if found.status == 401:
        found.headers["WWW-Authenticate"] = 'Basic realm="Theon xAPI", Bearer'
    words = clean("\n".join(part for part in (found.error, found.next_step) if part))
    return PlainTextResponse(words, found.status, found.headers)
