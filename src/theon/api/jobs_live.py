"""Jobs as they change: a WebSocket for one, Server-Sent Events for many.

Both end when the session, key or token that opened them ends, or may do less than before.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from theon.access.principals import Principal
from theon.access.requests import Refusal
from theon.access.roles import Permission
from theon.api.jobs_models import LARGEST_ID, JobsWanted
from theon.api.jobs_requests import JobsRoom, Reader, Room, reading, refusing, room_of
from theon.api.jobs_watcher import Batch, Listener, Told, tell_fitting, tell_of
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
from theon.errors import TheonError
from theon.jobs.changes import latest, missed
from theon.jobs.query import matching
from theon.jobs.search import JobFilter
from theon.store.scope import Scope

router = APIRouter(prefix="/api/v1", tags=["jobs"])

# -- one job -------------------------------------------------------------------------------


@router.websocket("/jobs/{job_id}/events")
async def watch_job(
    socket: WebSocket,
    job_id: Annotated[int, Path(ge=0, le=LARGEST_ID)],
    principal: Reader,
) -> None:
    """The job as it is now, and again after every change, until it has ended.

    Changes within a quarter of a second are told as one. Refused with 404 where the scope has no
    such job; closed with 1000 after the job ended, with 1008 when the caller's access ended.
    """
    room = room_of(socket)
    listener = Listener(principal.scope, job_id=job_id)
    try:
        try:
            first = await run_in_threadpool(_begin, room, listener, job_id)
        except Refusal as refusal:
            await deny(socket, refusal)
            return
        await socket.accept()
        await _serve(socket, principal, listener, first)
    finally:
        room.watcher.remove(listener)


def _begin(room: JobsRoom, listener: Listener, job_id: int) -> Told:
    """Listen, and then read the present state: nothing falls between.

    Raises:
        Refusal: 404 the scope has no such job; 503 the database is away.
    """
    with refusing():
        room.watcher.add(listener)
    with reading(room.store, listener.scope) as conn:
        found = tell_of(conn, [job_id]).get(job_id)
    if found is None:
        raise Refusal(
            404,
            f"there is no job {job_id} in this scope",
            "It may be of another campus, or removed because it ended long ago.",
        )
    return found


async def _serve(socket: WebSocket, principal: Principal, listener: Listener, first: Told) -> None:
    ending: list[tuple[int, str]] = []

    async def send() -> None:
        told = first
        while True:
            await socket.send_text(told.data)
            if told.ended:
                ending.append((1000, "the job has ended"))
                return
            batch = Batch()
            while not batch.jobs:
                batch = await listener.take(HEARTBEAT_S)
                if batch.over is not None:
                    ending.append((1001, batch.over))
                    return
            told = batch.jobs[-1]

    async def watch() -> None:
        await until_over(socket, principal, Permission.JOBS_READ)
        ending.append((1008, OVER))

    async def hear() -> None:
        await until_hung_up(socket)

    await first_of(until_gone(send), watch, until_gone(hear))
    for code, why in ending[:1]:
        await close(socket, code, why)


# -- many jobs -----------------------------------------------------------------------------

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A stream of events: `job` with a job as it is now; `ready` when one may "
        "read the list, and from then on nothing is missed; `reset` when events were missed and "
        "the list is to be read again; `end` when the caller's access ended or the service stops.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/jobs/events",
    summary="Watch many jobs (Server-Sent Events)",
    response_class=StreamingResponse,
    responses=_STREAM,
)
async def watch_jobs(
    request: Request,
    wanted: Annotated[JobsWanted, Query()],
    principal: Reader,
    room: Room,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> StreamingResponse:
    """Every job of the scope that matches, each time it changes.

    One that leaves the states of the filter is told too. A client that comes back with
    `Last-Event-ID` is told what it missed, if that is not too much.
    """
    with refusing():
        chosen = wanted.as_filter()
    await run_in_threadpool(_check, room, principal.scope, chosen)
    return Stream(request, principal, room, Listener(principal.scope, chosen=chosen), last_event_id)


def _check(room: JobsRoom, scope: Scope, chosen: JobFilter) -> None:
    """Refuse a campus that the scope does not see, or a database that is away."""
    with reading(room.store, scope) as conn:
        matching(conn, [], chosen)


class Stream(StreamingResponse):
    """The events of a listener, for as long as the client stays and may."""

    media_type = "text/event-stream"

    def __init__(
        self,
        request: Request,
        principal: Principal,
        room: JobsRoom,
        listener: Listener,
        last_id: str | None,
    ) -> None:
        self._request = request
        self._principal = principal
        self._room = room
        self._listener = listener
        self._last_id = last_id
        super().__init__(
            self._events(), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Stream, and look from time to time whether the caller still may."""

        async def stream() -> None:
            await super(Stream, self).__call__(scope, receive, send)

        async def watch() -> None:
            await until_over(self._request, self._principal, Permission.JOBS_READ)
            self._listener.end(OVER)
            await asyncio.sleep(GRACE_S)  # then it is cut off, if the client does not read

        try:
            await first_of(stream, watch)
        finally:
            self._room.watcher.remove(self._listener)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            position = await run_in_threadpool(self._room.watcher.add, self._listener)
        except (TheonError, SQLAlchemyError):
            return  # the database went away just now; a client that comes back is told so
        told: list[Told] | None = []
        if self._last_id is not None:
            told = await run_in_threadpool(self._missed, self._last_id)
        for job in told or ():
            yield format_sse_event(event="job", data_str=job.data)
        name = "ready" if told is not None else "reset"
        yield format_sse_event(event=name, data_str="{}", id=str(position), retry=RETRY_MS)
        while True:
            batch = await self._listener.take(HEARTBEAT_S)
            for event in _wire(batch):
                yield event
            if batch.over is not None:
                return

    def _missed(self, last_id: str) -> list[Told] | None:
        """What a client that comes back has missed; None if nobody can tell it one by one."""
        if not (last_id.isascii() and last_id.isdecimal()):
            return None
        try:
            with reading(self._room.store, Scope.district()) as conn:
                until = latest(conn)
            with reading(self._room.store, self._listener.scope) as conn:
                changed = missed(conn, int(last_id), until)
                if changed is None:
                    return None
                return tell_fitting(conn, changed, self._listener.chosen)
        except Refusal:  # it took too long
            return None


def _wire(batch: Batch) -> list[bytes]:
    """A batch as events.

    Only the last has the new id: who loses the stream before it comes back with the former one,
    and is told all of the batch again.
    """
    ids: list[str | None] = [None] * len(batch.jobs)
    if ids:
        ids[-1] = str(batch.position)
    found = [
        format_sse_event(event="job", data_str=told.data, id=number)
        for told, number in zip(batch.jobs, ids, strict=True)
    ]
    if batch.overflow:
        found.append(format_sse_event(event="reset", data_str="{}", id=str(batch.position)))
    if batch.over is not None:
        found.append(format_sse_event(event="end", data_str=json.dumps({"why": batch.over})))
    if not found:
        # Also tells proxies and clients that the stream is alive.
        found.append(format_sse_event(comment="heartbeat", id=str(batch.position)))
    return found
