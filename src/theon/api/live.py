"""Metrics and outcomes as they come: `/api/v1/stream`, by Server-Sent Events or a WebSocket.

Both begin with the present state, so a client that comes back needs nothing of what it missed.
Both end when the session, key or token that opened them ends, or may do less than before.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from theon.access.principals import Principal
from theon.access.requests import Refusal, in_thread, require
from theon.access.roles import Permission
from theon.api.jobs_models import Problem
from theon.api.streams import (
    GRACE_S,
    HEARTBEAT_S,
    OVER,
    RETRY_MS,
    close,
    deny,
    first_of,
    until_gone,
    until_hung_up,
    until_over,
)
from theon.events.outcome_news import OutcomeNews
from theon.metrics.headline import Figures, Headline
from theon.metrics.live import Batch, Listener, LiveHub
from theon.store.scope import Scope

STOPS = "the service stops; come back in a moment"

router = APIRouter(prefix="/api/v1", tags=["live"])


class PeriodFigures(BaseModel):
    """What happened in a period: learners with an action, actions, seconds spent, posts."""

    learners: int
    actions: int
    seconds: int
    forum_posts: int

    @classmethod
    def of(cls, figures: Figures) -> "PeriodFigures":
        """The figures as they are sent."""
        return cls(
            learners=figures.learners,
            actions=figures.actions,
            seconds=figures.seconds,
            forum_posts=figures.forum_posts,
        )


class OutcomeFigures(BaseModel):
    """Outcomes of a period, added up over learners and their courses."""

    quizzes_attempted: int
    assignments_submitted: int
    activities_completed: int


class MetricsMessage(BaseModel):
    """Rows of metrics changed; with the figures of the scope as they are now.

    Attributes:
        position: rises; of two messages the one with the higher is newer.
        campus: the scope.
        changed: campuses of which rows changed; empty in the first message.
        read_at, newest_at: when the figures were read, and the newest activity of this week.
        today, week: since midnight and since Monday, at each campus.
        outcomes: of this week.
    """

    type: Literal["metrics"] = "metrics"
    position: int
    campus: str
    changed: list[str]
    read_at: datetime
    newest_at: datetime | None
    today: PeriodFigures
    week: PeriodFigures
    outcomes: OutcomeFigures

    @classmethod
    def of(cls, headline: Headline, changed: set[str]) -> "MetricsMessage":
        """The headline as it is sent."""
        return cls(
            position=headline.position,
            campus=headline.campus,
            changed=sorted(changed),
            read_at=headline.read_at,
            newest_at=headline.newest_at,
            today=PeriodFigures.of(headline.today),
            week=PeriodFigures.of(headline.week),
            outcomes=OutcomeFigures(**vars(headline.outcomes)),
        )


class OutcomeMessage(BaseModel):
    """Outcomes of one kind in one course were accepted; it does not say of whom."""

    type: Literal["outcome"] = "outcome"
    campus: str
    course_id: str | None
    kind: str
    count: int

    @classmethod
    def of(cls, news: OutcomeNews) -> "OutcomeMessage":
        """The news as they are sent."""
        return cls(campus=news.campus, course_id=news.course_id, kind=news.kind, count=news.count)


Message = MetricsMessage | OutcomeMessage
Reader = Annotated[Principal, Depends(require(Permission.METRICS_READ))]
Campus = Annotated[
    str | None,
    Query(max_length=63, description="A campus of the caller's scope; all of the scope without"),
]


def add_live_api(app: FastAPI, hub: LiveHub) -> None:
    """Put the streams onto `app`, which `add_sign_in` has been given as well."""
    app.state.theon_live = hub
    app.include_router(router)


def end_live_streams(app: FastAPI) -> None:
    """End the streams of an application that stops; one without them has nothing to end."""
    hub = getattr(app.state, "theon_live", None)
    if isinstance(hub, LiveHub):
        hub.close(STOPS)


def _hub(conn: HTTPConnection) -> LiveHub:
    hub = conn.app.state.theon_live
    assert isinstance(hub, LiveHub)  # noqa: S101 - tells the type
    return hub


class _Watch:
    """What one client has been told, in order."""

    def __init__(self, listener: Listener, first: Headline) -> None:
        self.listener = listener
        self.position = first.position
        self.first = MetricsMessage.of(first, set())

    async def next(self) -> tuple[list[Message], Batch]:
        """What is to be sent now, perhaps nothing."""
        batch = await self.listener.take(HEARTBEAT_S)
        found: list[Message] = [OutcomeMessage.of(news) for news in batch.news]
        # An older reading than the last one knows nothing that was not told.
        if batch.headline is not None and batch.headline.position >= self.position:
            self.position = batch.headline.position
            found.append(MetricsMessage.of(batch.headline, batch.changed))
        return found, batch


async def _begin(hub: LiveHub, principal: Principal, campus: str | None) -> _Watch:
    """Listen, and then read the present state: nothing falls between.

    Raises:
        Refusal: 400 the scope has no such campus; 503 the database is away.
    """
    scope = principal.scope if campus is None else Scope(campus)
    listener = Listener(scope)
    if campus is not None:
        mine = await in_thread(hub.read, principal.scope)
        if campus not in mine.visible:
            raise Refusal(
                400,
                f"there is no campus {campus!r} in your scope",
                "Leave the campus out, or name one of yours.",
            )
    hub.add(listener)
    try:
        return _Watch(listener, await in_thread(hub.read, scope))
    except BaseException:
        hub.remove(listener)
        raise


# -- WebSocket -----------------------------------------------------------------------------


@router.websocket("/stream")
async def watch(socket: WebSocket, principal: Reader, campus: Campus = None) -> None:
    """Messages of the types `metrics` and `outcome`, each a JSON object.

    Closed with 1001 when the service stops, with 1008 when the caller's access ended.
    """
    hub = _hub(socket)
    try:
        watched = await _begin(hub, principal, campus)
    except Refusal as refusal:
        await deny(socket, refusal)
        return
    ending: list[tuple[int, str]] = []

    async def send() -> None:
        await socket.send_text(watched.first.model_dump_json())
        while True:
            messages, batch = await watched.next()
            for message in messages:
                await socket.send_text(message.model_dump_json())
            if batch.over is not None:
                ending.append((1001, batch.over))
                return

    async def check() -> None:
        await until_over(socket, principal, Permission.METRICS_READ)
        ending.append((1008, OVER))

    async def hear() -> None:
        await until_hung_up(socket)

    try:
        await socket.accept()
        await first_of(until_gone(send), check, until_gone(hear))
        for code, why in ending[:1]:
            await close(socket, code, why)
    finally:
        hub.remove(watched.listener)


# -- Server-Sent Events --------------------------------------------------------------------

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A stream of events: `metrics` with the figures of the scope as they are "
        "now, at first and whenever rows change; `outcome` as outcomes are accepted; `end` when "
        "the caller's access ended or the service stops. Each has a JSON object as data.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    **{
        status: {"model": Problem, "description": what}
        for status, what in {
            400: "there is no such campus in the caller's scope",
            401: "nobody is signed in",
            403: "the caller may not read metrics",
            503: "the database is away",
        }.items()
    },
}


@router.get(
    "/stream",
    summary="Watch metrics and outcomes (Server-Sent Events)",
    response_class=StreamingResponse,
    responses=_STREAM,
)
async def stream(request: Request, principal: Reader, campus: Campus = None) -> StreamingResponse:
    """What happens in the caller's scope, within a second or two, four times a second at most.

    A client that comes back is given the present state first, whatever its `Last-Event-ID`.
    """
    hub = _hub(request)
    return Stream(request, principal, hub, await _begin(hub, principal, campus))


class Stream(StreamingResponse):
    """The messages of a watch, for as long as the client stays and may."""

    media_type = "text/event-stream"

    def __init__(
        self, request: Request, principal: Principal, hub: LiveHub, watched: _Watch
    ) -> None:
        self._request = request
        self._principal = principal
        self._hub = hub
        self._watched = watched
        super().__init__(
            self._events(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Stream, and look from time to time whether the caller still may."""

        async def stream() -> None:
            await super(Stream, self).__call__(scope, receive, send)

        async def check() -> None:
            await until_over(self._request, self._principal, Permission.METRICS_READ)
            self._watched.listener.end(OVER)
            await asyncio.sleep(GRACE_S)  # then it is cut off, if the client does not read

        try:
            await first_of(stream, check)
        finally:
            self._hub.remove(self._watched.listener)

    async def _events(self) -> AsyncIterator[bytes]:
        yield _wire(self._watched.first, self._watched.position, retry_ms=RETRY_MS)
        while True:
            messages, batch = await self._watched.next()
            for message in messages:
                yield _wire(message, self._watched.position)
            if batch.over is not None:
                yield format_sse_event(event="end", data_str=json.dumps({"why": batch.over}))
                return
            if not messages:  # also tells proxies and clients that the stream is alive
                yield format_sse_event(comment="heartbeat")


def _wire(message: Message, position: int, *, retry_ms: int | None = None) -> bytes:
    data = message.model_dump_json()
    return format_sse_event(event=message.type, data_str=data, id=str(position), retry=retry_ms)
