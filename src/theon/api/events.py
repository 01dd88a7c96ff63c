"""Events over HTTP: `POST /api/v1/events`, durable before it is answered."""

import asyncio
import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any

from cachetools import TTLCache
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, Field
from starlette.routing import Route

from theon.access.principals import Principal, Via
from theon.access.requests import Refusal, in_thread, refusal, signed_in, with_refusals
from theon.access.roles import Permission
from theon.api.jobs_models import Problem
from theon.errors import InputError, TheonError
from theon.intake.arrivals import Receipt
from theon.intake.bodies import MOST_BYTES, Body, TooLargeError, cut, too_large, unpack
from theon.intake.group_commit import BusyError, GroupCommit
from theon.intake.mapping import native_schema
from theon.intake.throttle import Throttle, ThrottledError
from theon.lake.lake_ids import LakeIds
from theon.roster.campuses import Campus, list_campuses
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import DISTRICT

EVENTS_PATH = "/api/v1/events"
NATIVE = "native"
LONGEST_SLUG = 63
# An answer that names more is put together beside the loop that serves the others.
QUICK_REJECTIONS = 1_000
READING_BYTES = 64 << 20  # of all bodies that are being read
# Who sends one byte now and then would keep others from sending: so long a body may take.
READING_S = 60.0
QUICK_BYTES = 1 << 16  # what is larger is taken apart beside the loop that serves the others
# For so long a key is believed that was good a moment ago: to look it up costs more than an event.
TRUSTED_S = 5.0

router = APIRouter(prefix="/api/v1", tags=["events"])


class Rejection(BaseModel):
    """An event that was not taken."""

    index: Annotated[
        int, Field(description="Its place in the body, from 0; empty lines not counted")
    ]
    reason: str
    detail: Annotated[str | None, Field(description="The value that does not fit")] = None


class EventsReceipt(BaseModel):
    """What became of the events of one request; what was accepted is durable."""

    received: int
    accepted: Annotated[int, Field(description="New events")]
    duplicate: Annotated[int, Field(description="Events that were known, with the same content")]
    rejected: Annotated[int, Field(description="Events that were not taken; kept as dead letters")]
    rejections: Annotated[list[Rejection], Field(description="Each of them, by its index")]


@dataclass
class EventsRoom(AbstractContextManager["EventsRoom"]):
    """What the route works with; accepts while it is open as a context manager."""

    store: Store
    settings: Settings
    commits: GroupCommit = field(init=False)
    throttle: Throttle = field(init=False)
    _reading: int = 0
    trusted: TTLCache[tuple[bytes, str | None], tuple[Principal, Campus]] = field(
        default_factory=lambda: TTLCache(10_000, TRUSTED_S)
    )

    def __post_init__(self) -> None:
        """Make what it works with; nothing runs before it is opened."""
        self.commits = GroupCommit(self.store, LakeIds(self.settings))
        self.throttle = Throttle(self.settings)

    async def read(self, request: Request) -> Body:
        """The events of a body, within the limits of one and of all that are being read.

        Raises:
            Refusal: 400 or 413, nothing can be made of it; 408, it does not come; 429, too much is
                being read.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(READING_S):
                async for part in request.stream():
                    size += len(part)
                    self._reading += len(part)
                    if size > MOST_BYTES:
                        raise too_large()
                    if self._reading > READING_BYTES:
                        raise BusyError(
                            "too many bodies are being read",
                            next_step="Nothing of this request was taken; send it again in a "
                            "moment.",
                        )
                    parts.append(part)
            encoding = request.headers.get("content-encoding", "")
            kind = request.headers.get("content-type", "")
            whole = b"".join(parts)
            if encoding or size > QUICK_BYTES:
                return await asyncio.to_thread(lambda: cut(unpack(whole, encoding), kind))
            return cut(unpack(whole, encoding), kind)
        except TimeoutError as error:
            raise Refusal(
                408,
                f"the body did not come within {READING_S:.0f} s",
                "Nothing of it was taken. Send it again, in several requests if the line is slow.",
                {"Connection": "close"},
            ) from error
        except TooLargeError as error:
            raise Refusal(413, error.what, error.next_step) from error
        except InputError as error:
            raise Refusal(400, error.what, error.next_step) from error
        except BusyError as error:
            raise _come_back(error) from error
        finally:
            self._reading -= size

    def __enter__(self) -> "EventsRoom":
        self.commits.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.commits.stop()


def add_events_api(app: FastAPI, store: Store, settings: Settings) -> EventsRoom:
    """Put the routes onto `app`, which `add_sign_in` has been given as well.

    Returns:
        What accepts the events; open it before the application serves.
    """
    room = EventsRoom(store, settings)
    app.state.theon_events = room
    app.include_router(router)
    # The same function as the route's, found before all others and without what FastAPI does for
    # each request: that took longer than the event. The route is there for the document.
    app.router.routes.insert(0, Route(EVENTS_PATH, take_events, methods=["POST"]))
    return room


def _room(request: Request) -> EventsRoom:
    room = request.app.state.theon_events
    assert isinstance(room, EventsRoom)  # noqa: S101 - tells the type
    return room


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in {
        400: "the body cannot be read as events; nothing of it was taken",
        401: "nobody is signed in",
        403: "the caller may not send events, or not for this campus",
        408: f"the body did not come within {READING_S:.0f} s; nothing of it was taken",
        413: f"the body is larger than {MOST_BYTES >> 20} MB; nothing of it was taken",
        429: "the client has sent its share, or too much is waiting; see Retry-After",
        500: "a fault of the service; nothing of the body was taken",
        503: "the database is away; nothing of the body was taken",
    }.items()
}
_PROBLEMS[422] = {"model": EventsReceipt, "description": "no event of the body could be taken"}


@router.post(
    "/events",
    status_code=202,
    response_model=EventsReceipt,
    responses=_PROBLEMS,
    openapi_extra={
        "parameters": [
            {
                "name": "campus",
                "in": "query",
                "required": False,
                "schema": {"type": "string", "maxLength": LONGEST_SLUG},
                "description": "Whose events they are; the caller's campus unless given",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/x-ndjson": {"schema": {"type": "string"}},
                "application/json": {"schema": {"type": "array", "items": {"type": "object"}}},
            },
        },
    },
)
async def take_events(request: Request) -> Response:
    """Take in events: one JSON object per line (NDJSON), or a JSON array; gzip is welcome.

    The answer comes when the accepted events are durable. The same events may be sent again at
    any time: they are told apart by `id`, and counted once. GET /api/v1/events/schema describes
    an event.
    """
    room = _room(request)
    principal, owner = await _sender(request, room, request.query_params.get("campus"))
    body = await room.read(request)
    try:
        await room.throttle.take(principal.subject, len(body.events))
        source = f"http:{principal.name if principal.via is Via.KEY else principal.subject}"
        waiting = room.commits.submit(owner, source, NATIVE, body.events, body.size_bytes)
    except (ThrottledError, BusyError) as error:
        raise _come_back(error) from error
    try:
        receipt = await asyncio.shield(asyncio.wrap_future(waiting))
    except TheonError as error:
        raise refusal(error) from error
    except Exception as error:  # the committer has logged it
        raise Refusal(
            500,
            "the events could not be taken in, for a reason that is in the service's log",
            "Nothing of this request was taken. Send its events one by one to find the one that "
            "is at fault, and tell whoever runs the service.",
        ) from error
    status = 422 if receipt.refused.num_rows == receipt.received else 202
    many = receipt.refused.num_rows > QUICK_REJECTIONS
    answer = await asyncio.to_thread(_answer, receipt) if many else _answer(receipt)
    return Response(answer, status, media_type="application/json")


@router.get("/events/schema")
async def get_schema() -> dict[str, Any]:
    """The JSON schema of an event."""
    return native_schema()


async def _sender(
    request: Request, room: EventsRoom, campus: str | None
) -> tuple[Principal, Campus]:
    """Who sends, and for which campus."""
    header = request.headers.get("authorization")
    key = (hashlib.sha256((header or "").encode("utf-8", "replace")).digest(), campus)
    if header is not None and key in room.trusted:
        return room.trusted[key]
    principal = await signed_in(request)
    with_refusals(principal.check, Permission.EVENTS_SEND)
    owner = await in_thread(_campus, room.store, principal, campus)
    if header is not None:
        room.trusted[key] = principal, owner
    return principal, owner


def _campus(store: Store, principal: Principal, campus: str | None) -> Campus:
    slug = campus or principal.campus
    if slug == DISTRICT:
        raise InputError(
            "the district has no learners of its own",
            where="campus",
            next_step="Say whose events they are: POST /api/v1/events?campus=<slug>",
        )
    found = [known for known in list_campuses(store, principal.scope) if known.slug == slug]
    if not found:
        raise InputError(
            "there is no such campus in your scope",
            where="campus",
            next_step="Leave the campus out, or name one of yours.",
        )
    return found[0]


def _come_back(error: ThrottledError | BusyError) -> Refusal:
    return Refusal(429, error.what, error.next_step, {"Retry-After": str(error.retry_after_s)})


def _answer(receipt: Receipt) -> str:
    refused = receipt.refused
    named = refused.select(["ordinal", "reason", "detail"])
    rows = named.sort_by("ordinal").to_pylist() if named.num_rows else []
    return EventsReceipt(
        received=receipt.received,
        accepted=receipt.accepted,
        duplicate=len(receipt.duplicates),
        rejected=refused.num_rows,
        rejections=[
            Rejection(index=row["ordinal"], reason=row["reason"], detail=row["detail"])
            for row in rows
        ],
    ).model_dump_json()
