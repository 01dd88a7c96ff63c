"""Requests that come together share a transaction, and each is answered for its own statements."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from tests.api.test_xapi_events import counts, events
from tests.api.xapi_service import BEN, STATEMENTS, Lrs, statement

from theon.api import xapi_writing


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets requests wait until all are there, so that they make groups; gives the groups' sizes."""
    sizes: list[int] = []
    gate = threading.Event()
    take, work = xapi_writing.Writers._take, xapi_writing.Writers._work

    def taking(self: xapi_writing.Writers, done: int | None = None) -> list[xapi_writing.Sending]:
        group = take(self, done)
        if group:
            sizes.append(len(group))
        return group

    def working(self: xapi_writing.Writers) -> None:
        gate.wait(20)
        work(self)

    monkeypatch.setattr(xapi_writing.Writers, "_take", taking)
    monkeypatch.setattr(xapi_writing.Writers, "_work", working)

    def send(lrs: Lrs, requests: list[Any]) -> list[int]:
        gate.clear()
        writers: list[xapi_writing.Writers] = []
        submit = xapi_writing.Writers.store

        async def store(self: xapi_writing.Writers, sending: xapi_writing.Sending) -> list[str]:
            writers.append(self)
            if len(writers) == len(requests):
                gate.set()
            return await submit(self, sending)

        monkeypatch.setattr(xapi_writing.Writers, "store", store)
        with lrs.client as client, ThreadPoolExecutor(len(requests)) as pool:
            answers = list(pool.map(lambda value: client.post(STATEMENTS, json=value), requests))
        return [answer.status_code for answer in answers]

    send.sizes = sizes  # type: ignore[attr-defined]
    return send


def test_requests_that_wait_make_a_group(lrs: Lrs, together: Any) -> None:
    sent = [[statement(), statement()] for _ in range(8)]
    assert together(lrs, sent) == [200] * 8
    assert max(together.sizes) > 2
    assert len(lrs.ids()) == 16
    assert len(events(lrs)) == 16
    assert counts(lrs) == {"received": 16, "accepted": 16, "duplicate": 0, "rejected": 0}


def test_a_conflict_is_its_senders_alone(lrs: Lrs, together: Any) -> None:
    first = statement()
    lrs.add(first)
    sent = [[statement()], [statement(), {**first, "actor": BEN}], [first], [statement()]]
    assert together(lrs, sent) == [200, 409, 200, 200]
    assert len(lrs.ids()) == 3
    assert counts(lrs) == {"received": 4, "accepted": 3, "duplicate": 1, "rejected": 0}


def test_the_same_id_is_not_twice_in_a_group(lrs: Lrs, together: Any) -> None:
    """Of two that say something else under one id, one is taken."""
    made = str(uuid4())
    sent = [[statement(id=made)], [statement(id=made, actor=BEN)], [statement()]]
    assert sorted(together(lrs, sent)) == [200, 200, 409]
    assert len(lrs.ids()) == 2
    same = statement()
    assert together(lrs, [[same], [same], [same]]) == [200] * 3
    assert len(events(lrs)) == 3


def test_what_breaks_one_request_does_not_break_the_others(
    lrs: Lrs, together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is rolled back, and each is stored by itself."""
    bad = statement()
    accept = xapi_writing.accept

    def breaking(conn: Any, campus: Any, source: str, arrival: Any, **more: Any) -> Any:
        if f"xapi:{bad['id']}" in arrival.events["event_id"].to_pylist():
            raise RuntimeError("it cannot be")
        return accept(conn, campus, source, arrival, **more)

    monkeypatch.setattr(xapi_writing, "accept", breaking)
    lrs.client.__dict__["raise_server_exceptions"] = False
    lrs.client._transport.raise_server_exceptions = False  # type: ignore[attr-defined]
    assert sorted(together(lrs, [[statement()], [bad], [statement()]])) == [200, 200, 500]
    assert len(lrs.ids()) == len(events(lrs)) == 2
