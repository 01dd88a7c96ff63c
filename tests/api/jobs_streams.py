"""Clients of the streams of jobs: the WebSocket of one, the events of many."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from tests.api.jobs_service import JOBS, LIMIT_S, Service
from websockets.sync.client import ClientConnection, connect

from theon.access.roles import Role


@contextmanager
def watching(
    service: Service, address: str, job_id: int, role: Role = Role.SERVICE, campus: str = "oak"
) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {service.key(role, campus)}"}
    url = f"ws://{address}{JOBS}/{job_id}/events"
    with connect(url, additional_headers=headers, proxy=None, open_timeout=LIMIT_S) as socket:
        yield socket


def receive(socket: ClientConnection) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(socket.recv(LIMIT_S))
    return found


class Events:
    """An open stream of events."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()
        self.id: str | None = None

    def next(self) -> tuple[str, Any]:
        """Name and data of the next event; a comment is `heartbeat`."""
        name, data = "", None
        for line in self._lines:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data = json.loads(value)
            elif field == "id":
                self.id = value
            elif line and not field:
                name = value
            elif not line:
                return name, data
        raise AssertionError("the stream has ended")

    def job(self) -> dict[str, Any]:
        """The next event of a job."""
        name, data = self.next()
        while name == "heartbeat":
            name, data = self.next()
        assert name == "job", (name, data)
        return dict(data)


@contextmanager
def streaming(
    service: Service,
    address: str,
    query: str = "",
    last_id: str | None = None,
    role: Role = Role.SERVICE,
    campus: str = "oak",
) -> Iterator[Events]:
    headers = {"Authorization": f"Bearer {service.key(role, campus)}"}
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    url = f"http://{address}{JOBS}/events{query}"
    with (
        httpx.Client(trust_env=False, timeout=LIMIT_S) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Events(answer)
