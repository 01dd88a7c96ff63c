"""The delivery ledger over HTTP: for whom, of which campus, and that it does what it says."""

import json
import time
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from tests.api.jobs_service import DISTRICT, Service
from tests.intake.plain_reader import NO_ID, read

from theon.access.roles import Permission, Role
from theon.api.delivery import add_delivery_api
from theon.intake.arrivals import Arrival
from theon.intake.door import accept
from theon.intake.gaps import CLOCK, MOODLE_IDS, Gap, notice
from theon.roster.campuses import get_campus
from theon.store.scope import Scope

API = "/api/v1/delivery"
AT = int(time.time()) - 3600
MEND = [{"do": "rename", "field": "ident", "to": "id"}]
# Route, body, the permission it takes. {letter} and {gap} are of oak.
ROUTES: list[tuple[str, str, Any, Permission]] = [
    ("GET", "", None, Permission.DELIVERY_READ),
    ("GET", "/gaps", None, Permission.DELIVERY_READ),
    ("GET", "/dead-letters", None, Permission.DELIVERY_READ),
    ("GET", "/dead-letters/groups", None, Permission.DELIVERY_READ),
    ("GET", "/dead-letters/{letter}", None, Permission.DELIVERY_READ),
    ("POST", "/gaps/{gap}/accept", {"explanation": "a test"}, Permission.DELIVERY_CONTROL),
    ("POST", "/dead-letters/preview", {"ids": ["{letter}"]}, Permission.DELIVERY_CONTROL),
    ("POST", "/dead-letters/{letter}/replay", None, Permission.DELIVERY_CONTROL),
    ("POST", "/dead-letters/replay", {"ids": ["{letter}"]}, Permission.DELIVERY_CONTROL),
    ("POST", "/dead-letters/{letter}/discard", None, Permission.DELIVERY_CONTROL),
    ("POST", "/dead-letters/discard", {"filter": {}}, Permission.DELIVERY_CONTROL),
]
ADMINISTRATORS = {Role.SYSTEM_ADMINISTRATOR, Role.CAMPUS_ADMINISTRATOR}
MAY = {
    Permission.DELIVERY_READ: ADMINISTRATORS | {Role.SERVICE},
    Permission.DELIVERY_CONTROL: ADMINISTRATORS,
}


@pytest.fixture
def service(service: Service) -> Service:
    add_delivery_api(service.app, service.store, read)
    return service


def send(service: Service, campus: str, *lines: Any) -> None:
    originals = pa.array([json.dumps(line).encode() for line in lines], pa.binary())
    found = read("native", originals, pa.array(["-"] * len(lines)))
    sent = Arrival("native", found.events, originals, found.refused)
    with service.store.transaction(Scope(campus)) as conn:
        accept(conn, get_campus(service.store, campus), "http:lms", sent)


def letter(service: Service, campus: str = "oak", **line: Any) -> int:
    """A letter that waits: it calls its id `ident`."""
    send(service, campus, {"ident": "a", "at": AT, **line})
    with service.store.transaction(Scope(campus)) as conn:
        return max(conn.exec_driver_sql("SELECT id FROM theon.dead_letters").scalars())


def gap(service: Service, campus: str = "oak", first: int = 3) -> int:
    with service.store.transaction(Scope(campus)) as conn:
        known = get_campus(service.store, campus)
        notice(conn, known.id, Gap(MOODLE_IDS, "moodle", "Ids are missing.", first, first + 1, 2))
        return max(conn.exec_driver_sql("SELECT id FROM theon.delivery_gaps").scalars())


def ask(client: TestClient, method: str, path: str, body: Any = None, **names: int) -> Any:
    body = json.loads(json.dumps(body).replace('"{letter}"', str(names.get("letter", 0))))
    return client.request(method, API + path.format(**names), json=body)


@pytest.mark.parametrize("role", list(Role), ids=[role.value for role in Role])
def test_every_route_is_for_the_roles_that_the_table_says(service: Service, role: Role) -> None:
    names = {"letter": letter(service), "gap": gap(service)}
    for method, path, body, permission in ROUTES:
        answer = ask(service.client(role), method, path, body, **names)
        if role in MAY[permission]:
            assert answer.status_code == 200, (path, answer.text)
        else:
            assert answer.status_code == 403, (path, answer.text)
            assert set(answer.json()) == {"error", "next_step"}
    found = service.root.get(f"{API}/dead-letters/{names['letter']}").json()["letter"]["state"]
    assert found == ("discarded" if role in ADMINISTRATORS else "waiting")


def test_without_signing_in_every_route_answers_401(service: Service) -> None:
    names = {"letter": letter(service), "gap": gap(service)}
    for method, path, body, _ in ROUTES:
        assert ask(service.client(), method, path, body, **names).status_code == 401, path


def test_another_campus_is_not_there(service: Service) -> None:
    """Not in figures or lists, nor by number; nothing of it is changed."""
    names = {"letter": letter(service, "elm"), "gap": gap(service, "elm")}
    for client in (service.oak, service.client(Role.SERVICE, "oak")):
        shown = client.get(API).json()
        assert (shown["sources"], shown["spans"], shown["journal"]) == ([], [], [])
        assert client.get(f"{API}/gaps").json()["gaps"] == []
        assert client.get(f"{API}/dead-letters").json()["letters"] == []
        assert client.get(f"{API}/dead-letters/groups").json()["groups"] == []
    for method, path, body, _ in ROUTES:
        if "{letter}" in path or "{gap}" in path:
            assert ask(service.oak, method, path, body, **names).status_code == 404, path
    one = {"ids": [names["letter"]]}
    assert service.oak.post(f"{API}/dead-letters/preview", json=one).json()["tried"] == []
    for verb in ("replay", "discard"):
        done = service.oak.post(f"{API}/dead-letters/{verb}", json=one)
        assert done.json()["skipped"] == [names["letter"]]
        assert service.oak.post(f"{API}/dead-letters/{verb}", json={"filter": {}}).is_success
    shown = service.root.get(f"{API}/dead-letters/{names['letter']}").json()
    assert (shown["letter"]["state"], shown["changes"]) == ("waiting", [])
    assert service.root.get(f"{API}/gaps").json()["gaps"][0]["state"] == "open"


@pytest.mark.usefixtures("in_one_hour")
def test_figures_add_up(service: Service) -> None:
    send(service, "oak", {"id": "a", "at": AT}, {"id": "b", "at": AT})
    send(service, "oak", {"id": "a", "at": AT}, {"ident": "c", "at": AT})
    shown = service.oak.get(API).json()
    [source] = shown["sources"]
    [span] = shown["spans"]
    assert (source["campus"], source["source"]) == ("oak", "http:lms")
    figures = {"received": 4, "accepted": 2, "duplicate": 1, "rejected": 1, "dead_lettered": 1}
    for part in (shown["total"], source, span):
        assert figures.items() <= part.items()
    assert (source["reasons"], source["waiting_letters"]) == ({NO_ID: 1}, 1)
    assert shown["journal"][0]["events"] == 2
    assert service.oak.get(API, params={"source": "other"}).json()["sources"] == []
    days = service.oak.get(API, params={"by": "day"}).json()["spans"]
    assert [day["received"] for day in days] == [4]
    for wrong in (
        {"since": "2026-01-02", "until": "2026-01-01"}, {"since": "2001-01-01"}, {"source": "\0"},
    ):  # fmt: skip
        assert service.oak.get(API, params=wrong).status_code in (400, 422), wrong


def test_a_letter_is_previewed_mended_and_replayed(service: Service) -> None:
    number = letter(service)
    shown = service.oak.get(f"{API}/dead-letters/{number}").json()
    assert json.loads(shown["original"]) == {"ident": "a", "at": AT}
    asked = {"ids": [number], "mend": MEND}
    seen = service.oak.post(f"{API}/dead-letters/preview", json=asked).json()
    [tried] = seen["tried"]
    assert (seen["accepted"], tried["outcome"]) == (1, "accepted")
    assert json.loads(tried["after"]) == {"id": "a", "at": AT}
    assert service.oak.get(f"{API}/dead-letters/{number}").json() == shown
    refused = service.oak.post(f"{API}/dead-letters/{number}/replay").json()
    assert (refused["refused"], refused["reasons"]) == (1, {NO_ID: 1})
    done = service.oak.post(
        f"{API}/dead-letters/{number}/replay", json={"mend": MEND, "note": "renamed"}
    ).json()
    assert (done["accepted"], done["tried"][0]["after"]) == (1, "")
    after = service.oak.get(f"{API}/dead-letters/{number}").json()
    assert after["letter"]["state"] == "replayed"
    assert after["original"] == shown["original"]
    assert [change["outcome"] for change in after["changes"]] == ["refused", "accepted"]
    assert after["changes"][1]["mend"] == MEND
    assert after["changes"][1]["actor"].startswith("key")
    again = service.oak.post(f"{API}/dead-letters/{number}/replay", json={"mend": MEND}).json()
    assert (again["accepted"], again["skipped"]) == (0, [number])


def test_many_letters_by_what_they_have_in_common(service: Service) -> None:
    numbers = [letter(service, ident=f"e{n}") for n in range(3)]
    letter(service, "elm")
    asked = {"filter": {"reason": NO_ID, "upto": numbers[1]}, "mend": MEND}
    done = service.root.post(f"{API}/dead-letters/replay", json=asked).json()
    assert (done["accepted"], done["tried"]) == (2, [])
    listed = service.oak.get(f"{API}/dead-letters", params={"limit": 1}).json()
    assert [one["id"] for one in listed["letters"]] == [numbers[2]]
    page = service.oak.get(
        f"{API}/dead-letters", params={"state": "all", "limit": 2, "before": numbers[2]}
    ).json()
    assert [one["id"] for one in page["letters"]] == [numbers[1], numbers[0]]
    gone = service.root.post(f"{API}/dead-letters/discard", json={"filter": {"campus": "elm"}})
    assert gone.json()["discarded"] == 1
    [group] = service.root.get(f"{API}/dead-letters/groups").json()["groups"]
    assert (group["campus"], group["letters"]) == ("oak", 1)


def test_what_cannot_be_meant_is_refused_and_changes_nothing(service: Service) -> None:
    number = letter(service)
    for verb, body in (
        ("replay", {}),
        ("replay", {"ids": [number], "filter": {}}),
        ("replay", {"ids": [number], "mend": [{"do": "eval"}]}),
        ("replay", {"ids": [number], "mend": [{"do": "set", "field": "a", "value": "\0"}]}),
        ("replay", {"ids": [-1]}),
        ("replay", {"filter": {"sauce": "x"}}),
        ("discard", {"ids": []}),
        ("discard", {"ids": [number], "note": "x" * 501}),
        ("preview", {"ids": list(range(21))}),
    ):
        answer = service.oak.post(f"{API}/dead-letters/{verb}", json=body)
        assert answer.status_code in (400, 422), (verb, body, answer.text)
        assert set(answer.json()) == {"error", "next_step"}
    assert service.oak.get(f"{API}/dead-letters/{number}").json()["changes"] == []
    assert service.oak.get(f"{API}/dead-letters/{2**62}").status_code == 404


def test_a_gap_is_accepted_with_a_reason_once(service: Service) -> None:
    first, second = gap(service), gap(service, first=9)
    page = service.oak.get(f"{API}/gaps", params={"limit": 1}).json()
    assert ([one["id"] for one in page["gaps"]], page["next_cursor"]) == ([second], second)
    path = f"{API}/gaps/{first}/accept"
    assert service.oak.post(path, json={"explanation": ""}).status_code == 422
    done = service.oak.post(path, json={"explanation": "The rows were deleted."})
    assert done.json()["state"] == "accepted"
    assert service.oak.post(path, json={"explanation": "Again."}).status_code == 409
    assert [one["id"] for one in service.oak.get(f"{API}/gaps").json()["gaps"]] == [second]
    ended = service.oak.get(f"{API}/gaps", params={"state": "accepted"}).json()["gaps"]
    assert ended[0]["explanation"].endswith("The rows were deleted.")
    with service.store.transaction(DISTRICT) as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM theon.delivery_gaps").scalar_one() == 2


def test_a_clock_that_is_off_is_found_by_its_kind_and_with_its_source(service: Service) -> None:
    send(service, "oak", {"id": "a", "at": AT})
    gap(service)
    since = datetime.fromtimestamp(AT, UTC)
    with service.store.transaction(Scope("oak")) as conn:
        clock = Gap(CLOCK, "http:lms", "It is behind.", from_at=since, off_s=-3600)
        notice(conn, get_campus(service.store, "oak").id, clock)
    [found] = service.oak.get(f"{API}/gaps", params={"kind": "clock"}).json()["gaps"]
    assert (found["source"], found["off_s"], found["to_at"]) == ("http:lms", -3600, None)
    assert service.root.get(f"{API}/gaps", params={"kind": "silence"}).json()["gaps"] == []
    [source] = service.oak.get(API).json()["sources"]
    # What these tests send does not come live, so nothing of it is timed.
    assert (source["clock_off_s"], source["ahead"], source["least_lag_s"]) == (-3600, 0, None)
