"""What all streams share: they end when the session, key or token that opened them ends."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
from fastapi import WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import HTTPConnection

from theon.access.principals import Principal
from theon.access.requests import Refusal, access_of
from theon.access.roles import Permission

HEARTBEAT_S = 15.0
CHECK_S = 10.0  # between two looks at whether the caller still may
GRACE_S = 5.0  # that a client gets to read why its stream ends
RETRY_MS = 2_000
OVER = "the session, key or token has ended, or may not do this any more"

Run = Callable[[], Awaitable[None]]


async def until_over(conn: HTTPConnection, principal: Principal, needed: Permission) -> None:
    """Wait until who opened a stream would not be let in any more, or as somebody else.

    Args:
        conn: the request that opened it.
        principal: who that was.
        needed: what the stream takes.
    """
    while True:
        await asyncio.sleep(CHECK_S)
        try:
            now = await access_of(conn).identify(conn, is_use=False)
        except SQLAlchemyError:  # nobody knows; and while the database is away nothing is told
            continue
        except Refusal as refusal:
            if refusal.status == 503:
                continue
            return
        if now != principal or not now.may(needed):
            return


async def first_of(*runs: Run) -> None:
    """Run until one of them has ended; the others are cancelled."""
    async with anyio.create_task_group() as group:

        async def run(do: Run) -> None:
            await do()
            group.cancel_scope.cancel()

        for do in runs:
            group.start_soon(run, do)


def until_gone(do: Run) -> Run:
    """The same, which ends when the client of its WebSocket goes."""

    async def run() -> None:
        with suppress(WebSocketDisconnect):
            await do()

    return run


async def until_hung_up(socket: WebSocket) -> None:
    """Wait until the client of a WebSocket goes; nothing else is expected of it."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def deny(socket: WebSocket, refusal: Refusal) -> None:
    """Refuse a WebSocket that was not accepted yet."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        answer = {"error": refusal.error, "next_step": refusal.next_step}
        await socket.send_denial_response(JSONResponse(answer, refusal.status))
    else:
        await socket.close(1008, refusal.error[:100])


async def close(socket: WebSocket, code: int, why: str) -> None:
    """End a WebSocket; a client that does not read is not waited for."""
    with anyio.move_on_after(GRACE_S), suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(code, why)
