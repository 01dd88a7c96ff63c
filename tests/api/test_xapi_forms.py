"""A form stands for a request, in version 1.0: scripts of old browsers could send nothing else."""

import json

from fastapi.testclient import TestClient
from tests.api.xapi_service import STATEMENTS, THROUGH, VERSION, Lrs, statement


def test_a_form_stands_for_a_request(lrs: Lrs) -> None:
    sent = statement()
    client = TestClient(lrs.app)
    shown = {"Authorization": f"Bearer {lrs.key}", VERSION: "1.0.3"}
    put = {**shown, "statementId": sent["id"], "content": json.dumps(sent)}
    path = f"{STATEMENTS}?method="
    assert client.post(f"{path}PUT", data=put).status_code == 204
    found = client.post(f"{path}GET", data={**shown, "statementId": sent["id"]})
    assert found.json()["id"] == sent["id"]
    assert THROUGH in found.headers
    post = {**shown, "content": json.dumps([statement()])}
    assert client.post(f"{path}POST", data=post).status_code == 200
    assert len(client.post(f"{path}GET", data={**shown, "limit": "5"}).json()["statements"]) == 2


def test_what_a_form_says_counts_and_not_the_headers_beside_it(lrs: Lrs) -> None:
    asked = f"{STATEMENTS}?method=GET"
    for said, status in (
        ({VERSION: "0.8"}, 400), ({"authorization": "Basic x"}, 401), ({VERSION: "1.0.1"}, 200),
    ):  # fmt: skip
        assert lrs.client.post(asked, data=said).status_code == status
    told = {"content": "{}", "Content-Type": "text/plain"}
    answer = lrs.client.post(f"{STATEMENTS}?method=POST", data=told)
    assert (answer.status_code, "text/plain" in answer.text) == (400, True)


def test_a_form_that_stands_for_nothing_is_refused(lrs: Lrs) -> None:
    sent = statement()
    form = {"statementId": sent["id"], "content": json.dumps(sent)}
    path = f"{STATEMENTS}?method=PUT"
    client = lrs.client
    assert client.post(f"{path}&statementId={sent['id']}", data=form).status_code == 400
    assert client.get(path).status_code == 400
    assert client.put(path, data=form).status_code == 400
    assert client.post(path, data={"statementId": sent["id"]}).status_code == 400
    assert client.post(path, json=form).status_code == 400
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post(path, content=json.dumps(form), headers=kind).status_code == 400
    assert client.post(f"{STATEMENTS}?method=DELETE", data={"limit": "1"}).status_code == 405
    assert lrs.speaking("2.0.0").client.post(path, data=form).status_code == 400
    assert lrs.ids() == []
