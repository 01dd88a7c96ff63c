"""Documents come back as they were put, and nobody overwrites what they have not seen."""

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from tests.api.xapi_service import ANN, BEN, Lrs, statement

ACTIVITY = "https://lms.example.org/page/1"
JSON = {"Content-Type": "application/json"}
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "state": ("stateId", "activities/state", {"activityId": ACTIVITY, "agent": json.dumps(ANN)}),
    "activity profile": ("profileId", "activities/profile", {"activityId": ACTIVITY}),
    "agent profile": ("profileId", "agents/profile", {"agent": json.dumps(ANN)}),
}


@dataclass
class Documents:
    lrs: Lrs
    kind: str

    def send(
        self, method: str, name: str | None = "bookmark", *, blind: bool = False, **how: Any
    ) -> Response:
        """A PUT says that it has seen something, unless `blind`; version 1.0 asks for it."""
        parameter, path, place = KINDS[self.kind]
        headers = how.pop("headers", {})
        if method == "PUT" and not blind and not any(name.startswith("If-") for name in headers):
            headers = {**headers, "If-None-Match": '"0"'}
        parameters = {**place, **how.pop("params", {})}
        if name is not None:
            parameters[parameter] = name
        return self.lrs.client.request(
            method, f"/xapi/{path}", params=parameters, headers=headers, **how
        )

    def put(self, content: bytes = b"abc", **headers: str) -> Response:
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send("PUT", content=content, headers={"Content-Type": "text/plain", **shown})

    def merge(self, value: Any, **headers: str) -> Response:
        shown = {name.replace("_", "-"): word for name, word in headers.items()}
        return self.send("POST", content=json.dumps(value), headers={**JSON, **shown})

    def get(self) -> Response:
        return self.send("GET")


@pytest.fixture(params=list(KINDS))
def documents(lrs: Lrs, request: pytest.FixtureRequest) -> Documents:
    return Documents(lrs, request.param)


def test_a_document_comes_back_byte_for_byte(documents: Documents) -> None:
    content = bytes(range(256))
    put = documents.send("PUT", content=content, headers={"Content-Type": "image/x; a=b"})
    assert put.status_code == 204
    found = documents.get()
    assert found.content == content
    assert found.headers["content-type"] == "image/x; a=b"
    assert parsedate_to_datetime(found.headers["last-modified"])
    tag = found.headers["etag"]
    assert tag == f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
    head = documents.send("HEAD")
    assert (head.content, head.headers["etag"]) == (b"", tag)


def test_what_is_not_there_is_not_found(documents: Documents) -> None:
    assert documents.get().status_code == 404
    assert documents.send("GET", None).json() == []
    assert documents.send("DELETE").status_code == 204


def test_a_document_is_deleted(documents: Documents) -> None:
    documents.put()
    assert documents.send("DELETE").status_code == 204
    assert documents.get().status_code == 404


def test_names_are_listed_by_when_they_changed(documents: Documents) -> None:
    documents.send("PUT", "a", content=b"1")
    documents.send("PUT", "b", content=b"2")
    assert documents.send("GET", None).json() == ["a", "b"]
    assert "etag" in documents.send("GET", None).headers
    found = documents.send("GET", None, params={"since": "2001-01-01T00:00:00Z"})
    assert found.json() == ["a", "b"]
    found = documents.send("GET", None, params={"since": "2101-01-01T00:00:00Z"})
    assert found.json() == []
    assert documents.send("GET", None, params={"since": "then"}).status_code == 400
    found = documents.send("GET", "a", params={"since": "2101-01-01T00:00:00Z"})
    assert found.content == b"1"


def test_a_json_object_is_merged_one_level_deep(documents: Documents) -> None:
    assert documents.merge({"a": 1, "b": {"x": 1}}).status_code == 204
    assert documents.merge({"b": {"y": 2}, "c": None}).status_code == 204
    assert documents.get().json() == {"a": 1, "b": {"y": 2}, "c": None}
    assert documents.get().headers["content-type"] == "application/json"


def test_only_json_objects_are_merged(documents: Documents) -> None:
    """400, and what is there stays as it is."""
    documents.merge({"a": 1})
    for value in ([1], "x", 1, None):
        assert documents.merge(value).status_code == 400
    plain = {"content": '{"a": 2}', "headers": {"Content-Type": "text/plain"}}
    assert documents.send("POST", **plain).status_code == 400
    assert documents.send("POST", content="{", headers=JSON).status_code == 400
    assert documents.get().json() == {"a": 1}
    documents.send("PUT", "other", content=b"[1]", headers=JSON)
    assert documents.send("POST", "other", content="{}", headers=JSON).status_code == 400
    assert documents.send("POST", "new", content="[1]", headers=JSON).status_code == 400
    assert documents.send("POST", "new", **plain).status_code == 204
    assert documents.send("POST", "new", **plain).status_code == 400
    documents.send("PUT", "third", content=b"{}", headers={"Content-Type": "text/plain"})
    assert documents.send("POST", "third", content="{}", headers=JSON).status_code == 400


@pytest.mark.parametrize("version", ["1.0.3", "2.0.0"])
def test_nothing_is_overwritten_unseen(documents: Documents, version: str) -> None:
    """Version 1.0 excepts states."""
    documents.lrs = documents.lrs.speaking(version)
    assert documents.put(b"one").status_code == 204
    answer = documents.send("PUT", content=b"two", blind=True)
    if documents.kind == "state" and version == "1.0.3":
        assert answer.status_code == 204
        assert documents.get().content == b"two"
        return
    assert answer.status_code == 409
    assert answer.headers["content-type"].startswith("text/plain")
    assert "If-Match" in answer.text
    assert documents.get().content == b"one"


@pytest.mark.parametrize("version", ["1.0.3", "2.0.0"])
def test_a_first_profile_is_put_knowingly(documents: Documents, version: str) -> None:
    """In version 1.0, and only by PUT."""
    documents.lrs = documents.lrs.speaking(version)
    refused = version == "1.0.3" and documents.kind != "state"
    answer = documents.send("PUT", content=b"one", blind=True)
    assert answer.status_code == (400 if refused else 204)
    assert ("If-None-Match" in answer.text) is refused
    assert documents.get().status_code == (404 if refused else 200)
    assert documents.send("POST", "other", json={"a": 1}).status_code == 204


Change = Callable[[Documents, dict[str, str]], Response]
CHANGES: dict[str, Change] = {
    "PUT": lambda d, headers: d.put(b'{"b": 2}', **headers),
    "POST": lambda d, headers: d.merge({"b": 2}, **headers),
    "DELETE": lambda d, headers: d.send("DELETE", headers=headers),
}


@pytest.mark.parametrize("version", ["1.0.3", "2.0.0"])
@pytest.mark.parametrize("method", list(CHANGES))
def test_a_change_is_made_to_what_was_seen(documents: Documents, method: str, version: str) -> None:
    documents.lrs = documents.lrs.speaking(version)
    change = CHANGES[method]
    absent = change(documents, {"If-Match": '"0000"'})
    assert absent.status_code == 412
    assert documents.get().status_code == 404
    documents.merge({"a": 1})
    tag = documents.get().headers["etag"]
    for other in ('"0000"', "1234", f'"{tag}"x', ""):
        assert change(documents, {"If-Match": other}).status_code == 412
    for ruled_out in ("*", tag, f'"0", W/{tag}'):
        assert change(documents, {"If-None-Match": ruled_out}).status_code == 412
    assert documents.get().json() == {"a": 1}
    assert change(documents, {"If-Match": f'"0000", {tag}'}).status_code == 204
    assert documents.get().status_code == (404 if method == "DELETE" else 200)


def test_a_document_is_put_where_there_is_none(documents: Documents) -> None:
    assert documents.put(b"one", If_None_Match="*").status_code == 204
    assert documents.put(b"two", If_None_Match="*").status_code == 412
    assert documents.put(b"two", If_Match="*").status_code == 204
    assert documents.put(b"three", If_None_Match='"0000"').status_code == 204
    assert documents.get().content == b"three"


def test_of_many_who_saw_the_same_one_changes_it(documents: Documents) -> None:
    documents.put(b"one")
    tag = documents.get().headers["etag"]
    answers: list[int] = []

    def change(number: int) -> None:
        answers.append(documents.put(str(number).encode(), If_Match=tag).status_code)

    threads = [threading.Thread(target=change, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [204, 412, 412, 412, 412, 412]


def test_a_document_has_one_name_and_one_place(documents: Documents) -> None:
    parameter, path, place = KINDS[documents.kind]
    client = documents.lrs.client
    client.headers["If-None-Match"] = '"0"'
    for method in ("GET", "PUT", "POST", "DELETE"):
        for name in place:
            rest = {k: v for k, v in place.items() if k != name} | {parameter: "a"}
            for value in ({}, {name: ""}, {name: "x y"}, {name: "{}"}, {name.upper(): "x"}):
                answer = client.request(method, f"/xapi/{path}", params={**rest, **value}, json={})
                assert answer.status_code == 400
        for other in ("unknown", parameter.upper()):
            assert documents.send(method, params={other: "x"}, json={}).status_code == 400
        assert documents.send(method, None, params={parameter.lower(): "x"}).status_code == 400
        if method in ("PUT", "POST"):
            assert documents.send(method, None, json={}).status_code == 400
            assert documents.send(method, "", json={}).status_code == 400
    if documents.kind != "state":
        assert documents.send("DELETE", None).status_code == 400


def test_documents_of_a_campus_are_its_own(documents: Documents) -> None:
    documents.put(b"oak")
    elm = Documents(documents.lrs.of("elm"), documents.kind)
    assert elm.get().status_code == 404
    assert elm.put(b"elm").status_code == 204
    assert documents.get().content == b"oak"
    stranger = Documents(documents.lrs, documents.kind)
    shown = {"Authorization": "Basic eDp5"}
    assert stranger.send("GET", headers=shown).status_code == 401


def test_a_name_may_be_long_and_in_any_letters(documents: Documents) -> None:
    for name in ("x" * 3000, "ключ/🎓 %2F&=", "..", " "):
        assert documents.send("PUT", name, content=b"1").status_code == 204
        assert documents.send("GET", name).content == b"1"
        assert name in documents.send("GET", None).json()
    assert documents.send("PUT", "a\0b", content=b"1").status_code == 400


@pytest.mark.parametrize("kind", ["x" * 501, "text/plain; a=\x7f"])
def test_a_media_type_is_one(documents: Documents, kind: str) -> None:
    answer = documents.send("PUT", content=b"1", headers={"Content-Type": kind})
    assert answer.status_code == 400


def test_a_state_may_belong_to_a_registration(lrs: Lrs) -> None:
    states = Documents(lrs, "state")
    one, two = {"registration": str(uuid4())}, {"registration": str(uuid4())}
    for place, content in (({}, b"0"), (one, b"1"), (two, b"2")):
        assert states.send("PUT", params=place, content=content).status_code == 204
    for place, content in (({}, b"0"), (one, b"1"), (two, b"2")):
        assert states.send("GET", params=place).content == content
    assert states.send("GET", None).json() == ["bookmark"]
    assert states.send("GET", None, params={"registration": str(uuid4())}).json() == []
    assert states.send("DELETE", None, params=one).status_code == 204
    assert states.send("GET", params=one).status_code == 404
    assert states.send("GET", params=two).status_code == 200
    assert states.send("DELETE", None).status_code == 204
    assert states.send("GET", params=two).status_code == 404
    for bad in ("", "x"):
        assert states.send("GET", params={"registration": bad}).status_code == 400


def test_a_document_by_a_form(documents: Documents) -> None:
    """The alternate syntax of version 1.0; the content is text there."""
    parameter, path, place = KINDS[documents.kind]
    form = {
        "Authorization": f"Bearer {documents.lrs.key}", "X-Experience-API-Version": "1.0.3",
        "Content-Type": "text/plain", **place, parameter: "bookmark", "content": "Ω&=1",
        "If-None-Match": "*",
    }  # fmt: skip
    client = TestClient(documents.lrs.app)
    assert client.post(f"/xapi/{path}?method=PUT", data=form).status_code == 204
    found = documents.get()
    assert (found.text, found.headers["content-type"]) == ("Ω&=1", "text/plain")
    assert client.post(f"/xapi/{path}?method=PUT", data=form).status_code == 412
    del form["If-None-Match"]
    form["If-Match"] = '"0000"'
    assert client.post(f"/xapi/{path}?method=PUT", data=form).status_code == 412
    del form["content"], form["If-Match"], form["Content-Type"]
    assert client.post(f"/xapi/{path}?method=DELETE", data=form).status_code == 204
    assert documents.get().status_code == 404


# -- activities and agents ----------------------------------------------------------------


def test_an_activity_is_what_statements_say_of_it(lrs: Lrs) -> None:
    """Languages add up; of two words for the same the later one counts."""

    def told(**definition: Any) -> dict[str, Any]:
        return statement(object={"id": ACTIVITY, "definition": definition})

    path, asked = "/xapi/activities", {"activityId": ACTIVITY}
    bare = {"objectType": "Activity", "id": ACTIVITY}
    assert lrs.client.get(path, params=asked).json() == bare
    lrs.add(statement(object={"id": ACTIVITY}))
    assert lrs.client.get(path, params=asked).json() == bare
    lrs.add(told(name={"en": "Page"}, type="urn:a:t"), told(name={"de": "Seite"}))
    lrs.add(told(name={"en": "The page"}, extensions={"a:b": [1]}))
    assert lrs.client.get(path, params=asked).json()["definition"] == {
        "name": {"en": "The page", "de": "Seite"}, "type": "urn:a:t", "extensions": {"a:b": [1]},
    }  # fmt: skip
    assert lrs.of("elm").client.get(path, params=asked).json() == bare
    for bad in ({}, {"activityId": "x"}, {"activityid": ACTIVITY}, {**asked, "since": "x"}):
        assert lrs.client.get(path, params=bad).status_code == 400


def test_a_person_goes_by_the_names_that_statements_know(lrs: Lrs) -> None:
    lrs.add(
        statement(actor={"name": "Ann", **ANN}),
        statement(context={"instructor": {"name": "Dr Ann", **ANN}}),
        statement(actor={"name": "Ben", **BEN}),
    )
    path = "/xapi/agents"
    found = lrs.client.get(path, params={"agent": json.dumps(ANN)})
    person = {"objectType": "Person", "mbox": [ANN["mbox"]], "name": ["Ann", "Dr Ann"]}
    assert found.json() == person
    assert "etag" in found.headers
    found = lrs.client.get(path, params={"agent": json.dumps(BEN)})
    assert found.json()["account"] == [BEN["account"]]
    for name, value in (("openid", "https://example.org/me"), ("mbox_sha1sum", "0" * 40)):
        found = lrs.client.get(path, params={"agent": json.dumps({name: value})})
        assert found.json() == {"objectType": "Person", name: [value]}
    for bad in ({}, {"agent": "x"}, {"agent": "{}"}, {"agent": '{"objectType":"Group"}'}):
        assert lrs.client.get(path, params=bad).status_code == 400
