"""Statements go in whole or not at all, are never changed, and come out as they went in."""

import gzip
import json
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from tests.api.xapi_service import (
    ANN,
    BEN,
    STATEMENTS,
    THROUGH,
    VERSION,
    VOIDED,
    Lrs,
    about,
    attachment,
    multipart,
    statement,
    voiding,
)

from theon.access.roles import Role
from theon.lrs.values import read_time
from theon.store.scope import Scope

ADDED = {"stored", "timestamp", "authority", "version"}


def without_added(value: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in value.items() if name not in ADDED}


def test_a_statement_comes_out_as_it_went_in(lrs: Lrs) -> None:
    """Exact means: every property as sent, and what the store adds."""
    sent = statement(
        actor={"name": "Ann Ω 🎓", "objectType": "Agent", **ANN},
        result={"score": {"scaled": 0.12123434, "raw": 8.0, "min": 0, "max": 10.7654321e3},
                "duration": "PT4.5S"},
        context={
            "registration": str(uuid4()),
            "extensions": {"https://example.org/e": {"none": None, "deep": [1, [2, {"": ""}]]}},
        },
        timestamp="2026-03-01T10:00:00.123+02:00",
        stored="2011-07-15T00:00:00.000Z",
    )  # fmt: skip
    lrs.add(sent)
    found = lrs.one(sent["id"])
    assert without_added(found) == without_added(sent)
    assert found["timestamp"] == sent["timestamp"]
    assert found["version"] == "1.0.0"
    assert found["authority"]["name"] == "Moodle of Oak"
    assert read_time(found["stored"], with_offset=True).year > 2011


def test_what_is_not_said_is_filled_in(lrs: Lrs) -> None:
    sent = statement(id=None)
    (made,) = lrs.post(sent).json()
    found = lrs.one(made)
    assert found["timestamp"] == found["stored"]
    assert without_added(found) == {**sent, "id": made}


def test_a_single_activity_of_a_context_comes_out_in_a_list(lrs: Lrs) -> None:
    course = {"id": "https://lms.example.org/course/1"}
    kinds = ("parent", "grouping", "category", "other")
    context = {"contextActivities": dict.fromkeys(kinds, course)}
    inner = statement(id=None, objectType="SubStatement", context=context)
    (made,) = lrs.add(statement(context=context, object=inner))
    found = lrs.one(made)
    for told in (found, found["object"]):
        assert told["context"]["contextActivities"] == {kind: [course] for kind in kinds}


def test_the_same_statement_again_changes_nothing(lrs: Lrs) -> None:
    """However it is written: order of properties, a number with a point, a list of one; of a
    duration hundredths of a second count."""
    sent = statement(
        result={"score": {"raw": 1}, "duration": "PT1M2.509S"},
        context={"contextActivities": {"other": [{"id": "https://example.org/a"}]}},
    )
    assert lrs.put(sent, sent["id"]).status_code == 204
    before = lrs.one(sent["id"])
    again = {name: sent[name] for name in reversed(sent)}
    again["result"] = {"score": {"raw": 1.0}, "duration": "PT1M2,50S"}
    again["context"] = {"contextActivities": {"other": {"id": "https://example.org/a"}}}
    assert lrs.put(again, sent["id"].upper()).status_code == 204
    assert lrs.add(again) == [sent["id"]]
    assert lrs.one(sent["id"]) == before
    assert lrs.ids() == [sent["id"]]


@pytest.mark.parametrize(
    "change",
    [
        {"actor": BEN},
        {"verb": {"id": "https://example.org/other"}},
        {"object": {"id": "https://example.org/other"}},
        {"result": {"success": True}},
        {"result": {"duration": "PT1.51S"}},
        {"result": {"duration": "PT5S"}},
        {"timestamp": "2026-03-01T10:00:01Z"},
    ],
)
def test_an_id_cannot_be_used_for_something_else(lrs: Lrs, change: dict[str, Any]) -> None:
    """409, and nothing of what came with it is kept."""
    sent = statement(timestamp="2026-03-01T10:00:00Z", result={"duration": "PT1.5S"})
    lrs.add(sent)
    before = lrs.one(sent["id"])
    other = statement()
    answer = lrs.post([other, {**sent, **change}])
    assert answer.status_code == 409
    assert sent["id"] in answer.text
    assert lrs.put({**sent, **change}, sent["id"]).status_code == 409
    assert lrs.one(sent["id"]) == before
    assert lrs.ids() == [sent["id"]]


def test_a_batch_with_one_bad_statement_leaves_nothing(lrs: Lrs) -> None:
    good = statement()
    answer = lrs.post([good, statement(verb={"id": "no iri"})])
    assert answer.status_code == 400
    assert "statement 1.verb.id" in answer.text
    assert lrs.get(statementId=good["id"]).status_code == 404
    assert lrs.ids() == []


def test_a_batch_does_not_use_an_id_twice(lrs: Lrs) -> None:
    sent = statement()
    assert lrs.post([sent, {**sent, "id": sent["id"].upper()}]).status_code == 400
    assert lrs.ids() == []


def test_an_empty_batch_is_taken(lrs: Lrs) -> None:
    assert lrs.post([]).json() == []


def test_put_takes_one_statement_under_its_own_id(lrs: Lrs) -> None:
    sent = statement()
    assert lrs.client.put(STATEMENTS, json=sent).status_code == 400
    assert lrs.put(sent, str(uuid4())).status_code == 400
    assert lrs.put([sent], sent["id"]).status_code == 400
    assert lrs.put(sent, "abc").status_code == 400
    assert lrs.put(statement(id=None), sent["id"]).status_code == 204
    assert lrs.one(sent["id"])["id"] == sent["id"]


# -- voiding ------------------------------------------------------------------------------


def test_a_voided_statement_is_found_as_voided_alone(lrs: Lrs) -> None:
    """Whatever came first, it or the statement that takes it back."""
    first, second = statement(), statement()
    lrs.add(first, voiding(first["id"]))
    lrs.add(voiding(second["id"]))
    lrs.add(second)
    for sent in (first, second):
        assert lrs.get(statementId=sent["id"]).status_code == 404
        assert lrs.get(voidedStatementId=sent["id"]).json()["id"] == sent["id"]
        assert sent["id"] not in lrs.ids()
    assert len(lrs.ids(verb=VOIDED)) == 2


def test_a_voiding_statement_cannot_be_voided(lrs: Lrs) -> None:
    sent = statement()
    _, first = lrs.add(sent, voiding(sent["id"]))
    (second,) = lrs.add(voiding(first))
    assert lrs.one(first)
    assert lrs.one(second)
    assert lrs.get(voidedStatementId=first).status_code == 404
    assert lrs.get(statementId=sent["id"]).status_code == 404


def test_what_is_voided_is_named_by_a_reference(lrs: Lrs) -> None:
    assert lrs.post(statement(verb={"id": VOIDED})).status_code == 400


# -- files --------------------------------------------------------------------------------


def test_files_come_out_byte_for_byte(lrs: Lrs) -> None:
    """Also line ends, boundaries and bytes of all kinds within them."""
    files = [bytes(range(256)) * 3, b"\r\n--ab12cd3\r\nabc\r\n", b""]
    sent = [statement(attachments=[attachment(content)]) for content in files]
    answer = lrs.client.post(STATEMENTS, **multipart(sent, *files))
    assert answer.status_code == 200, answer.text
    found = lrs.get(attachments="true", ascending="true")
    assert found.headers["content-type"].startswith("multipart/mixed; boundary=")
    for content in files:
        assert b"\r\n\r\n" + content + b"\r\n--" in found.content
    plain = lrs.get(attachments="false")
    assert plain.headers["content-type"] == "application/json"
    one = lrs.get(statementId=sent[0]["id"], attachments="true")
    assert files[0] in one.content
    assert files[1] not in one.content


def test_what_the_store_sent_with_files_is_taken_again(lrs: Lrs) -> None:
    """By another store: the two understand each other."""
    content = b"a report"
    sent = statement(attachments=[attachment(content)])
    lrs.client.post(STATEMENTS, **multipart(sent, content))
    found = lrs.get(statementId=sent["id"], attachments="true")
    elm = lrs.of("elm")
    kind = {"Content-Type": found.headers["content-type"]}
    assert elm.client.post(STATEMENTS, content=found.content, headers=kind).status_code == 200
    assert without_added(elm.one(sent["id"])) == sent


def test_a_file_comes_with_its_statement_or_has_an_address(lrs: Lrs) -> None:
    content = b"a report"
    assert lrs.post(statement(attachments=[attachment(content)])).status_code == 400
    elsewhere = attachment(content, fileUrl="https://example.org/report")
    assert lrs.post(statement(attachments=[elsewhere])).status_code == 200
    inner = {
        "objectType": "SubStatement", "actor": ANN, "verb": {"id": "https://example.org/v"},
        "object": {"id": "https://example.org/o"}, "attachments": [attachment(content)],
    }  # fmt: skip
    assert lrs.post(statement(object=inner)).status_code == 400
    answer = lrs.client.post(STATEMENTS, **multipart(statement(object=inner), content))
    assert answer.status_code == 200
    # As some write it: a line break first and none last, and no space after a colon.
    told = multipart(statement(object=inner), content)
    told["content"] = b"\r\n" + told["content"].replace(b": ", b":").rstrip()
    assert lrs.client.post(STATEMENTS, **told).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Experience_API_Hash": ""},
        {"X_Experience_API_Hash": "0" * 64},
        {"X_Experience_API_Hash": "xyz"},
        {"Content_Transfer_Encoding": "base64"},
        {"Content_Transfer_Encoding": ""},
    ],
)
def test_a_file_says_what_it_is(lrs: Lrs, headers: dict[str, str]) -> None:
    content = b"a report"
    sent = statement(attachments=[attachment(content)])
    answer = lrs.client.post(STATEMENTS, **multipart(sent, content, **headers))
    assert answer.status_code == 400
    assert lrs.ids() == []


def test_a_file_that_no_statement_names_is_refused(lrs: Lrs) -> None:
    answer = lrs.client.post(STATEMENTS, **multipart(statement(), b"a stray"))
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/mixed", b"--a\r\n\r\n"),
        ("multipart/mixed; boundary=a", b""),
        ("multipart/mixed; boundary=a", b"--a\r\nContent-Type: application/json\r\n\r\n{}"),
        ("multipart/mixed; boundary=a", b"--a\r\nContent-Type: text/plain\r\n\r\n{}\r\n--a--\r\n"),
        ("multipart/mixed; boundary=\xe9", b"--a--"),
        ("multipart/form-data; boundary=a", b"--a--"),
        ("text/plain", b"{}"),
        ("", b"{}"),
        ("application/json", b""),
        ("application/json", b"{"),
        ("application/json", b"\xff\xfe"),
        ("application/json", b"3"),
        ("application/json", b"null"),
        ("application/json", b'{"id": "1", "id": "2"}'),
        ("application/json", b'{"a": NaN}'),
        ("application/json", b"[" * 100_000),
        ("application/json", b"[" * 900 + b"]" * 900),
        ("application/json", b'{"a": ' * 5000),
        ("application/json", b'"\\ud800"'),
        ("application/json", b'{"a\\u0000": 1}'),
        ("application/json", b"1" * 5000),
        ("application/json", b'{"result": {"score": {"raw": 1e999}}}'),
    ],
)
def test_what_is_no_statement_is_refused_by_name(lrs: Lrs, kind: str, body: bytes) -> None:
    """400 and a sentence, never a fault of ours."""
    headers = {"Content-Type": kind.encode("latin-1")}
    answer = lrs.client.post(STATEMENTS, content=body, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/plain")
    assert len(answer.text) > 10


@pytest.mark.parametrize(
    "place", ["name", "extension", "response"], ids=["a name", "an extension", "a response"]
)
@pytest.mark.parametrize("word", ["a\\u0000b", "a\\ud83d", "\\udc00"])
def test_text_that_cannot_be_kept_is_refused(lrs: Lrs, place: str, word: str) -> None:
    changes: dict[str, Any] = {
        "name": {"actor": {**ANN, "name": "WORD"}},
        "extension": {"context": {"extensions": {"https://example.org/e": ["WORD"]}}},
        "response": {"result": {"response": "WORD"}},
    }[place]
    body = json.dumps(statement(**changes)).replace("WORD", word)
    answer = lrs.client.post(STATEMENTS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


def test_long_names_are_taken(lrs: Lrs) -> None:
    long = "x" * 1_000_000
    sent = statement(
        actor={**ANN, "name": long}, object={"id": f"https://example.org/{long}"},
        context={"extensions": {f"https://example.org/{long}": long}},
    )  # fmt: skip
    lrs.add(sent)
    assert lrs.ids(agent=json.dumps(ANN)) == [sent["id"]]
    assert without_added(lrs.one(sent["id"])) == sent


def test_a_body_is_at_most_ten_megabytes(lrs: Lrs) -> None:
    """Packed or not; what unpacks to more is given up at the limit."""
    long = json.dumps(statement(actor={**ANN, "name": "x" * (10 << 20)})).encode()
    kind = {"Content-Type": "application/json"}
    assert lrs.client.post(STATEMENTS, content=long, headers=kind).status_code == 413
    packed = {**kind, "Content-Encoding": "gzip"}
    bomb = gzip.compress(b" " * (200 << 20), 1)
    assert len(bomb) < 2 << 20
    assert lrs.client.post(STATEMENTS, content=bomb, headers=packed).status_code == 413
    assert lrs.client.post(STATEMENTS, content=b"no gzip", headers=packed).status_code == 400
    half = gzip.compress(json.dumps(statement()).encode())
    assert lrs.client.post(STATEMENTS, content=half[:-9], headers=packed).status_code == 400
    assert lrs.client.post(STATEMENTS, content=half, headers=packed).status_code == 200
    other = {**kind, "Content-Encoding": "br"}
    assert lrs.client.post(STATEMENTS, content=half, headers=other).status_code == 400


# -- who, and in which version ------------------------------------------------------------


def test_nobody_reads_or_writes_without_a_key(lrs: Lrs) -> None:
    stranger = TestClient(lrs.app, headers={VERSION: "1.0.3"})
    for answer in (
        stranger.get(STATEMENTS),
        stranger.post(STATEMENTS, json=statement()),
        stranger.get(STATEMENTS, headers={"Authorization": "Basic bm86bm8="}),
        stranger.get(STATEMENTS, headers={"Authorization": "Basic !"}),
        stranger.get(STATEMENTS, headers={"Authorization": "Bearer theon_no_key"}),
        stranger.get(STATEMENTS, headers={"Authorization": "Digest x"}),
    ):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
    assert stranger.get("/xapi/about").status_code == 200
    bearer = {"Authorization": f"Bearer {lrs.key}"}
    assert stranger.get(STATEMENTS, headers=bearer).status_code == 200


def test_a_key_without_the_permission_is_let_do_nothing(lrs: Lrs) -> None:
    teacher = lrs.of("oak", Role.TEACHER)
    assert teacher.get().status_code == 403
    assert teacher.post(statement()).status_code == 403


def test_a_campus_has_a_store_of_its_own(lrs: Lrs) -> None:
    """The same id may stand for something else at another campus; nobody sees the others'."""
    sent = statement()
    lrs.add(sent)
    elm, root = lrs.of("elm"), lrs.of("district")
    assert elm.ids() == root.ids() == []
    elm.add({**sent, "actor": BEN})
    assert elm.one(sent["id"])["actor"] == BEN
    assert lrs.one(sent["id"])["actor"] == ANN
    with lrs.store.transaction(Scope("elm")) as conn:
        assert conn.execute(text("SELECT count(*) FROM theon.lrs_statements")).scalar_one() == 1


@pytest.mark.parametrize(
    ("asked", "status", "answered"),
    [
        ("1.0", 200, "1.0.3"), ("1.0.0", 200, "1.0.3"), ("1.0.3", 200, "1.0.3"),
        ("1.0.9", 200, "1.0.3"), ("2.0", 200, "2.0.0"), ("2.0.0", 200, "2.0.0"),
        ("2.0.7", 200, "2.0.0"), ("0.95", 400, "2.0.0"), ("1.1", 400, "1.0.3"),
        ("1.0.x", 400, "1.0.3"), ("3.0", 400, "2.0.0"), ("", 400, "2.0.0"),
    ],
)  # fmt: skip
def test_a_version_is_spoken_or_refused(lrs: Lrs, asked: str, status: int, answered: str) -> None:
    for path in (STATEMENTS, "/xapi/activities?activityId=https://example.org/a"):
        answer = lrs.client.get(path, headers={VERSION: asked})
        assert (answer.status_code, answer.headers[VERSION]) == (status, answered)


@pytest.mark.parametrize(
    "path",
    ["statements", "activities", "agents", "activities/state", "activities/profile",
     "agents/profile"],
)  # fmt: skip
def test_every_resource_but_about_wants_a_version(lrs: Lrs, path: str) -> None:
    shown = {"Authorization": f"Bearer {lrs.key}"}
    client = TestClient(lrs.app, headers=shown)
    for method in ("GET", "PUT", "POST"):
        answer = client.request(method, f"/xapi/{path}", json={})
        assert answer.status_code in (400, 405)
        assert answer.headers[VERSION] == "1.0.3"
    assert client.get("/xapi/about").json()["version"] == ["1.0.3", "2.0.0"]
    old = client.get("/xapi/about", headers={VERSION: "1.0.1"})
    assert old.json()["version"] == ["1.0.3"]


def test_a_statement_keeps_its_version(lrs: Lrs) -> None:
    two = lrs.speaking("2.0.0")
    first, second = statement(version="1.0.1"), statement()
    two.add(first, second)
    assert lrs.one(first["id"])["version"] == "1.0.1"
    assert lrs.one(second["id"])["version"] == "2.0.0"


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "statements"), ("PATCH", "statements"), ("POST", "about"), ("PUT", "about")]
    + [(m, p) for m in ("POST", "PUT", "DELETE") for p in ("activities", "agents")],
)
def test_a_method_that_is_not_for_it_is_refused(lrs: Lrs, method: str, path: str) -> None:
    """405 and what is, also to those who show no key."""
    client = TestClient(lrs.app)
    answer = client.request(method, f"/xapi/{path}")
    assert answer.status_code == 405
    assert "GET" in answer.headers["allow"]


def test_an_unknown_path_is_not_found(lrs: Lrs) -> None:
    assert lrs.client.get("/xapi/nothing").status_code == 404


def test_head_is_get_without_the_body(lrs: Lrs) -> None:
    (made,) = lrs.add(statement())
    for path in (
        STATEMENTS, f"{STATEMENTS}?statementId={made}", "/xapi/about",
        "/xapi/activities?activityId=a:b", f"/xapi/agents?agent={json.dumps(ANN)}",
    ):  # fmt: skip
        whole, head = lrs.client.get(path), lrs.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
        assert head.headers["content-type"] == whole.headers["content-type"]


def test_pages_of_other_sites_may_ask(lrs: Lrs) -> None:
    """Players of content stand on other sites; they show a key, never a cookie."""
    asked = {
        "Origin": "https://content.example.org",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization, x-experience-api-version",
    }
    answer = TestClient(lrs.app).options(STATEMENTS, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    found = lrs.client.get(STATEMENTS, headers={"Origin": "https://content.example.org"})
    assert THROUGH in found.headers["access-control-expose-headers"]


def test_statements_about_statements_are_taken(lrs: Lrs) -> None:
    """Also about one that is not there, and about itself."""
    own = str(uuid4())
    lrs.add(about(str(uuid4())), about(own, id=own))
    assert lrs.one(own)["object"]["id"] == own
