"""Whatever is sent, the store takes all of it or none of it, and never breaks."""

import copy
import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from starlette.testclient import TestClient
from tests.api.xapi_service import ANN, BEN, STATEMENTS, VERSION, Lrs, attachment, statement

from theon.store.scope import Scope

FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = st.text(max_size=20) | st.sampled_from(
    ["id", "actor", "objectType", "Agent", "Group", "a:b", "mailto:a@b", "\0", "\ud800", "1.0.0"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**30), 1e308, -0.0])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
METHODS = st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"])
PATHS = st.sampled_from(
    ["statements", "activities/state", "activities/profile", "agents/profile", "activities",
     "agents", "about", "", "x"]
)  # fmt: skip
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["statementId", "voidedStatementId", "agent", "verb", "activity", "registration", "since",
         "until", "limit", "format", "attachments", "ascending", "more", "activityId", "stateId",
         "profileId", "method", "related_agents", "related_activities"]
    ),
    st.text(max_size=30) | st.sampled_from(
        [json.dumps(ANN), "a:b", "true", "1", str(uuid4()), "2026-01-01T00:00:00Z", "ids", "GET",
         "9999-12-31T23:59:59+14:00", "0001-01-01T00:00:00+14:00", "PUT", "exact", "e30"]
    ),
    max_size=4,
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "If-Match", "If-None-Match", "Accept-Language", "Content-Encoding",
         VERSION, "Host", "Accept"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=20) | st.sampled_from(
        ["application/json", "multipart/mixed; boundary=a", "gzip", "1.0.3", "2.0.0", "*",
         "application/x-www-form-urlencoded", "text/plain; charset=x", "multipart/mixed;boundary="]
    ),
    max_size=3,
)  # fmt: skip
BODIES = (
    st.binary(max_size=60)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"--a\r\n\r\n{}\r\n--a--", b"a=b&content=x", b"\x1f\x8b\x08", b"[]"])
)


def whole() -> dict[str, Any]:
    """A statement with nearly every property."""
    made = statement(
        actor={"objectType": "Group", "name": "Us", "member": [ANN, BEN]},
        object={
            "objectType": "SubStatement", "actor": ANN, "verb": {"id": "a:b"},
            "object": {"id": "a:b", "definition": {"name": {"en": "A"}, "extensions": {"a:b": 1},
                       "interactionType": "choice", "choices": [{"id": "x"}]}},
        },
        result={"score": {"scaled": 0.5, "raw": 5, "min": 0, "max": 10}, "duration": "PT1S"},
        context={"registration": str(uuid4()), "contextActivities": {"parent": [{"id": "a:b"}]},
                 "statement": {"objectType": "StatementRef", "id": str(uuid4())}},
        timestamp="2026-01-01T00:00:00Z",
        attachments=[attachment(b"", fileUrl="a:b")],
    )  # fmt: skip
    return copy.deepcopy(made)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, name or number) within a value."""
    found: list[tuple[Any, Any]] = []
    names = value.keys() if isinstance(value, dict) else range(len(value))
    for name in list(names):
        found.append((value, name))
        if isinstance(value[name], dict | list):
            found += places(value[name])
    return found


def count(lrs: Lrs) -> tuple[int, ...]:
    """The rows of all tables of the store."""
    with lrs.store.transaction(Scope.district()) as conn:
        return tuple(
            conn.execute(text(f"SELECT count(*) FROM theon.lrs_{table}")).scalar_one()
            for table in (
                "statements", "keys", "attachments", "activities", "names", "documents"
            )
        )  # fmt: skip


@given(data=st.data())
@FUZZ
def test_a_statement_with_something_wrong_is_taken_or_refused(lrs: Lrs, data: Any) -> None:
    """One place of a good statement holds anything; a good one comes with it."""
    value, good = whole(), statement()
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(value)
        container, name = found[data.draw(st.integers(0, len(found) - 1))]
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            del container[name]
        elif action == "add" and isinstance(container, dict):
            container[data.draw(WORDS)] = data.draw(VALUES)
        else:
            container[name] = copy.deepcopy(data.draw(VALUES))
    before = count(lrs)
    body = json.dumps([good, value]).encode()
    kind = {"Content-Type": "application/json"}
    answer = lrs.client.post(STATEMENTS, content=body, headers=kind)
    assert answer.status_code in (200, 400, 409), answer.text
    after = count(lrs)
    if answer.status_code == 200:
        assert after[0] == before[0] + 2
        for sent, made in zip((good, value), answer.json(), strict=True):
            found = lrs.get(statementId=made).json()
            for name in set(sent) - {"stored", "authority", "context", "object"}:
                assert found[name] == sent[name]
    else:
        assert after == before


@given(method=METHODS, path=PATHS, parameters=PARAMETERS, headers=HEADERS, body=BODIES)
@FUZZ
def test_no_request_breaks_the_store(
    lrs: Lrs, method: str, path: str, parameters: Any, headers: Any, body: bytes
) -> None:
    shown = [(n.lower().encode(), v.encode("latin-1")) for n, v in headers.items()]
    client: TestClient = lrs.client
    if any(name == b"host" for name, _ in shown):
        shown = [pair for pair in shown if pair[0] != b"host"]
    answer = client.request(method, f"/xapi/{path}", params=parameters, headers=shown, content=body)
    assert answer.status_code < 500
    if answer.status_code >= 400 and method != "HEAD":
        assert answer.text


@given(values=st.lists(VALUES, max_size=3))
@FUZZ
def test_what_is_no_statement_at_all_is_refused(lrs: Lrs, values: list[Any]) -> None:
    before = count(lrs)
    kind = {"Content-Type": "application/json"}
    answer = lrs.client.post(STATEMENTS, content=json.dumps(values).encode(), headers=kind)
    assert answer.status_code == (400 if values else 200)
    assert count(lrs) == before


@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["put", "merge", "delete", "get"]),
            st.sampled_from(["a", "b"]),
            st.sampled_from([{"x": 1}, {"y": 2}, {}]),
            st.sampled_from([None, "seen", "*", "not seen"]),
        ),
        max_size=12,
    )
)
@settings(FUZZ, max_examples=60)
def test_documents_do_what_a_dictionary_would(lrs: Lrs, operations: list[Any]) -> None:
    """A model: put replaces, merge adds, delete removes, and only what was seen changes."""
    profile = f"https://example.org/{uuid4()}"
    model: dict[str, dict[str, int]] = {}
    client = lrs.client
    for what, name, value, seen in operations:
        at = {"params": {"activityId": profile, "profileId": name}}
        there = client.get("/xapi/activities/profile", **at)
        assert there.status_code == (200 if name in model else 404)
        if name in model:
            assert there.json() == model[name]
        match = {None: None, "*": "*", "not seen": '"0"', "seen": there.headers.get("etag", '"0"')}
        headers = {"If-Match": match[seen]} if match[seen] else {}
        holds = seen is None or (seen in ("seen", "*") and name in model)
        if what == "put":
            unseen = 409 if name in model else 400
            answer = client.put("/xapi/activities/profile", json=value, headers=headers, **at)
            assert answer.status_code == (unseen if seen is None else 204 if holds else 412)
            if answer.status_code == 204:
                model[name] = dict(value)
        elif what == "merge":
            answer = client.post("/xapi/activities/profile", json=value, headers=headers, **at)
            assert answer.status_code == (204 if holds else 412)
            if holds:
                model[name] = {**model.get(name, {}), **value}
        elif what == "delete":
            answer = client.delete("/xapi/activities/profile", headers=headers, **at)
            assert answer.status_code == (204 if holds else 412)
            if holds:
                model.pop(name, None)
    listed = client.get("/xapi/activities/profile", params={"activityId": profile}).json()
    assert listed == sorted(model)


@pytest.mark.parametrize("host", ["x y", "a/b", '"', "[::1", "\xe9", ""])
def test_a_host_of_any_letters_may_ask(lrs: Lrs, host: str) -> None:
    """The authority of what it sends is an account all the same."""
    sent = statement()
    answer = lrs.client.post(STATEMENTS, json=sent, headers=[(b"host", host.encode("latin-1"))])
    assert answer.status_code == 200, answer.text
    assert lrs.one(sent["id"])["authority"]["account"]["homePage"].startswith("http")
