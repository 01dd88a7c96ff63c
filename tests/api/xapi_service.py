"""A learning record store for tests, and how statements are made and sent to it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4

from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from tests.access.conftest import plain_settings

from theon.access.keys import make_key
from theon.access.requests import Access
from theon.access.roles import Role
from theon.api.app import create_app
from theon.api.sign_in import add_sign_in
from theon.api.xapi_app import add_xapi
from theon.api.xapi_writing import Writers
from theon.intake.throttle import Throttle
from theon.settings import Settings
from theon.store.engine import Store

VERSION = "X-Experience-API-Version"
THROUGH = "X-Experience-API-Consistent-Through"
STATEMENTS = "/xapi/statements"
VOIDED = "http://adlnet.gov/expapi/verbs/voided"
SIGNATURE = "http://adlnet.gov/expapi/attachments/signature"
ANN = {"mbox": "mailto:ann@example.org"}
BEN = {"account": {"homePage": "https://lms.example.org", "name": "ben"}}


@dataclass
class Lrs:
    """The service, and a client with the key of a campus."""

    store: Store
    app: FastAPI
    writers: Writers
    key: str
    version: str = "1.0.3"

    @cached_property
    def client(self) -> TestClient:
        shown = base64.b64encode(f"moodle:{self.key}".encode()).decode()
        headers = {"Authorization": f"Basic {shown}", VERSION: self.version}
        return TestClient(self.app, headers=headers)

    def speaking(self, version: str) -> "Lrs":
        return Lrs(self.store, self.app, self.writers, self.key, version)

    def of(self, campus: str, role: Role = Role.SERVICE) -> "Lrs":
        """The same service with a key of another campus or role."""
        key = make_key(self.store, name=f"{role} {campus}", role=role, campus=campus)[1]
        return Lrs(self.store, self.app, self.writers, key, self.version)

    def post(self, value: Any, **how: Any) -> Response:
        return self.client.post(STATEMENTS, json=value, **how)

    def put(self, value: Any, statement_id: str) -> Response:
        return self.client.put(STATEMENTS, params={"statementId": statement_id}, json=value)

    def add(self, *values: Any) -> list[str]:
        """Send statements that are taken; gives their ids."""
        answer = self.post(list(values))
        assert answer.status_code == 200, answer.text
        ids: list[str] = answer.json()
        return ids

    def get(self, **parameters: Any) -> Response:
        return self.client.get(STATEMENTS, params=parameters)

    def one(self, statement_id: str, **parameters: Any) -> Any:
        answer = self.get(statementId=statement_id, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ids(self, **parameters: Any) -> list[str]:
        """The ids of all that fit, over every page."""
        answer = self.get(**parameters)
        found = []
        while True:
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found += [statement["id"] for statement in page["statements"]]
            if not page["more"]:
                return found
            answer = self.client.get(page["more"])


@contextmanager
def make_lrs(store: Store, settings: Settings, campus: str = "oak") -> Iterator[Lrs]:
    app = create_app(store)
    add_sign_in(app, Access(store, plain_settings(settings)))
    writers = add_xapi(app, store, Throttle(plain_settings(settings)))
    key = make_key(store, name="Moodle of Oak", role=Role.SERVICE, campus=campus)[1]
    with writers:
        yield Lrs(store, app, writers, key)


def statement(**changes: Any) -> dict[str, Any]:
    """A statement with an id; a change to None leaves a property out."""
    whole = {
        "id": str(uuid4()),
        "actor": ANN,
        "verb": {"id": "http://adlnet.gov/expapi/verbs/completed", "display": {"en": "completed"}},
        "object": {"id": "https://lms.example.org/page/1"},
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def about(statement_id: str, **changes: Any) -> dict[str, Any]:
    """A statement about a statement."""
    return statement(object={"objectType": "StatementRef", "id": statement_id}, **changes)


def voiding(statement_id: str, **changes: Any) -> dict[str, Any]:
    return about(statement_id, verb={"id": VOIDED}, **changes)


def attachment(content: bytes, **changes: Any) -> dict[str, Any]:
    return {
        "usageType": "https://example.org/usage/report",
        "display": {"en": "A report"},
        "contentType": "text/plain",
        "length": len(content),
        "sha2": hashlib.sha256(content).hexdigest(),
        **changes,
    }


def multipart(value: Any, *files: bytes, **headers: str) -> dict[str, Any]:
    """What a request with files is sent with; `headers` replace those of the files."""
    boundary = "ab12cd34"
    body = f"--{boundary}\r\nContent-Type: application/json\r\n\r\n".encode()
    body += json.dumps(value).encode()
    for content in files:
        shown = {
            "Content-Type": "text/plain",
            "Content-Transfer-Encoding": "binary",
            "X-Experience-API-Hash": hashlib.sha256(content).hexdigest(),
            **{name.replace("_", "-"): words for name, words in headers.items()},
        }
        lines = "".join(f"{name}: {words}\r\n" for name, words in shown.items() if words)
        body += f"\r\n--{boundary}\r\n{lines}\r\n".encode() + content
    body += f"\r\n--{boundary}--\r\n".encode()
    return {
        "content": body,
        "headers": {"Content-Type": f"multipart/mixed; boundary={boundary}"},
    }
