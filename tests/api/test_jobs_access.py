"""Who may do what with jobs over HTTP, and that nobody reaches another campus."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from tests.access.conftest import proof, sign_in
from tests.api.jobs_service import DISTRICT, Service

from theon.access.roles import Permission, Role
from theon.jobs.enqueue import NewJob

API = "/api/v1"
# Route, body, the permission it takes. {job} and {failed} are jobs of oak.
ROUTES: list[tuple[str, str, Any, Permission]] = [
    ("GET", "/jobs", None, Permission.JOBS_READ),
    ("GET", "/jobs/summary", None, Permission.JOBS_READ),
    ("GET", "/jobs/kinds", None, Permission.JOBS_RUN),
    ("GET", "/jobs/{job}", None, Permission.JOBS_READ),
    ("POST", "/jobs", {"kind": "room.count"}, Permission.JOBS_RUN),
    ("POST", "/jobs/batch", {"jobs": [{"kind": "room.count"}]}, Permission.JOBS_RUN),
    ("POST", "/jobs/{job}/cancel", {"reason": "x"}, Permission.JOBS_CONTROL),
    ("POST", "/jobs/{failed}/retry", None, Permission.JOBS_CONTROL),
    ("POST", "/jobs/{failed}/discard", None, Permission.JOBS_CONTROL),
    ("POST", "/jobs/{job}/prioritise", {"priority": "low"}, Permission.JOBS_CONTROL),
    (
        "POST", "/jobs/actions/preview", {"action": "cancel", "filter": {"queue": ["rooms"]}},
        Permission.JOBS_CONTROL,
    ),
    (
        "POST", "/jobs/actions", {"action": "cancel", "filter": {"queue": ["none"]}},
        Permission.JOBS_CONTROL,
    ),
    ("GET", "/queues", None, Permission.JOBS_READ),
    ("POST", "/queues/rooms/pause", None, Permission.QUEUES_CONTROL),
    ("GET", "/pauses", None, Permission.JOBS_READ),
    ("POST", "/pauses", {"subject": "kind", "value": "room.count"}, Permission.JOBS_CONTROL),
    ("POST", "/pauses", {"subject": "queue", "value": "rooms"}, Permission.QUEUES_CONTROL),
    (
        "POST", "/pauses/resume", {"subject": "kind", "value": "room.count"},
        Permission.JOBS_CONTROL,
    ),
    ("POST", "/workers/w1/drain", None, Permission.QUEUES_CONTROL),
    ("GET", "/schedules", None, Permission.JOBS_READ),
    ("POST", "/schedules/room.nightly/pause", None, Permission.SCHEDULES_CONTROL),
    ("POST", "/schedules/room.nightly/resume", None, Permission.SCHEDULES_CONTROL),
    ("POST", "/schedules/room.nightly/run", None, Permission.SCHEDULES_CONTROL),
    ("GET", "/workers", None, Permission.WORKERS_READ),
    ("GET", "/dead-letters", None, Permission.JOBS_READ),
    ("GET", "/health-of-jobs", None, Permission.JOBS_READ),
]  # fmt: skip
READS = {Role.SYSTEM_ADMINISTRATOR, Role.CAMPUS_ADMINISTRATOR, Role.SERVICE}
ADMINISTRATORS = READS - {Role.SERVICE}
# Said once more in plain words, so that a slip in the table of roles shows here.
MAY = {
    Permission.JOBS_READ: READS,
    Permission.JOBS_RUN: READS,
    Permission.JOBS_CONTROL: ADMINISTRATORS,
    Permission.SCHEDULES_CONTROL: ADMINISTRATORS,
    Permission.QUEUES_CONTROL: {Role.SYSTEM_ADMINISTRATOR},
    Permission.WORKERS_READ: {Role.SYSTEM_ADMINISTRATOR},
}


def ask(client: TestClient, method: str, path: str, body: Any = None, **how: Any) -> Any:
    return client.request(method, API + path, json=body, **how)


@pytest.mark.parametrize("role", list(Role), ids=[role.value for role in Role])
def test_every_route_is_for_the_roles_that_the_table_says(service: Service, role: Role) -> None:
    """Who may not, changes nothing and is told so in the one shape."""
    with service.store.transaction(DISTRICT) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.job_workers (id, campus_id, host, pid, delivery, queues, state,"
                " slots) SELECT 'w1', id, 'here', 1, 'local', '{rooms}', 'running', 4"
                " FROM theon.campuses WHERE slug = 'district'"
            )
        )
    for method, path, body, permission in ROUTES:
        job, failed = service.one(), service.failed()
        answer = ask(service.client(role), method, path.format(job=job, failed=failed), body)
        if role in MAY[permission]:
            assert answer.status_code in (200, 201, 202, 204), (path, answer.text)
        else:
            assert answer.status_code == 403, (path, answer.text)
            assert set(answer.json()) == {"error", "next_step"}
            assert (service.state(job), service.state(failed)) == ("queued", "failed"), path


def test_without_signing_in_every_route_answers_401(service: Service) -> None:
    job, failed = service.one(), service.failed()
    for method, path, body, _ in ROUTES:
        answer = ask(service.client(), method, path.format(job=job, failed=failed), body)
        assert answer.status_code == 401, path
        assert set(answer.json()) == {"error", "next_step"}


def test_a_change_by_session_needs_the_proof_of_our_own_pages(
    service: Service, account: Callable[[Role], str]
) -> None:
    """Every route that changes something; with the proof it works."""
    client = TestClient(service.app)
    sign_in(client, account(Role.SYSTEM_ADMINISTRATOR))
    job, failed = service.one(), service.failed()
    for method, path, body, _ in ROUTES:
        answer = ask(client, method, path.format(job=job, failed=failed), body)
        assert answer.status_code == (200 if method == "GET" else 403), path
    assert (service.state(job), service.state(failed)) == ("queued", "failed")
    answer = ask(client, "POST", f"/jobs/{job}/cancel", headers=proof(client))
    assert (answer.status_code, service.state(job)) == (200, "cancelled")


# -- another campus ------------------------------------------------------------------------


@pytest.fixture
def elm(service: Service) -> dict[str, int]:
    """Jobs of the other school."""
    return {"job": service.one(campus="elm"), "failed": service.failed(campus="elm")}


def test_another_campuss_jobs_are_not_there(service: Service, elm: dict[str, int]) -> None:
    """Not in lists, counts, figures or by their number; whoever is above sees them."""
    district = service.one(campus="district")
    mine = service.one(campus="oak")
    for client in (service.oak, service.client(Role.SERVICE, "oak")):
        listed = ask(client, "GET", "/jobs").json()["jobs"]
        assert [found["id"] for found in listed] == [mine]
        states = ask(client, "GET", "/jobs/summary").json()["states"]
        assert (states["queued"], states["failed"]) == (1, 0)
        queues = {q["queue"]: q["waiting"] for q in ask(client, "GET", "/queues").json()["queues"]}
        assert queues == {"rooms": 1, "imports": 0, "house": 0}
        assert ask(client, "GET", "/dead-letters").json()["groups"] == []
        assert ask(client, "GET", "/health-of-jobs").json()["kinds"] == []
        for hidden in (*elm.values(), district):
            answer = ask(client, "GET", f"/jobs/{hidden}")
            assert answer.status_code == 404
            assert f"no job {hidden}" in answer.json()["error"]
        for slug in ("elm", "district"):
            answer = ask(client, "GET", f"/jobs?campus={slug}")
            assert answer.status_code == 400, answer.text
    assert len(ask(service.root, "GET", "/jobs").json()["jobs"]) == 4


def test_another_campuss_jobs_are_not_changed(service: Service, elm: dict[str, int]) -> None:
    """By no route: one, many by id, many by filter. Of a mixed list nothing is changed."""
    mine = service.one(campus="oak")
    for path, body in (
        ("/jobs/{job}/cancel", None),
        ("/jobs/{failed}/retry", None),
        ("/jobs/{failed}/retry", {"arguments": {"upto": 2}}),
        ("/jobs/{failed}/discard", None),
        ("/jobs/{job}/prioritise", {"priority": "urgent"}),
        ("/jobs/actions", {"action": "cancel", "ids": [mine, elm["job"]]}),
        ("/jobs/actions", {"action": "retry", "ids": [elm["failed"]], "arguments": {"upto": 2}}),
        ("/jobs/actions/preview", {"action": "cancel", "ids": [elm["job"]]}),
    ):
        answer = ask(service.oak, "POST", path.format(**elm), body)
        assert answer.status_code == 404, (path, answer.text)
    filtered = {"action": "retry", "filter": {"state": ["failed"]}}
    assert ask(service.oak, "POST", "/jobs/actions/preview", filtered).json()["count"] == 0
    assert ask(service.oak, "POST", "/jobs/actions", filtered).json()["changed"] == []
    everywhere = {"action": "cancel", "filter": {"queue": ["rooms"]}}
    assert ask(service.oak, "POST", "/jobs/actions", everywhere).json()["changed"] == [mine]
    assert {name: service.state(job) for name, job in elm.items()} == {
        "job": "queued", "failed": "failed",
    }  # fmt: skip
    with service.store.transaction(DISTRICT) as conn:
        priorities = text("SELECT DISTINCT priority FROM theon.jobs")
        assert conn.execute(priorities).scalars().all() == [0]


def test_nobody_enqueues_for_another_campus(service: Service, elm: dict[str, int]) -> None:
    """Nor makes a job wait for one of its jobs, which would tell how that one ends."""
    for campus in ("elm", "district", "nowhere"):
        answer = ask(service.oak, "POST", "/jobs", {"kind": "room.count", "campus": campus})
        assert answer.status_code == 400
        assert f"no campus '{campus}'" in answer.json()["error"]
    answer = ask(service.oak, "POST", "/jobs", {"kind": "room.count", "after": [elm["job"]]})
    assert answer.status_code == 400
    assert "does not exist in this scope" in answer.json()["error"]
    assert ask(service.oak, "GET", "/jobs").json()["jobs"] == []


def test_a_key_of_another_campus_is_its_own(service: Service) -> None:
    """The same idempotency key in two campuses is two jobs; neither sees the other's."""
    service.put(NewJob("room.count", campus="elm", idempotency_key="k"))
    answer = ask(service.oak, "POST", "/jobs", {"kind": "room.count", "idempotency_key": "k"})
    assert (answer.status_code, answer.json()["campus"]) == (201, "oak")


def test_schedules_of_another_campus_are_not_reached(service: Service) -> None:
    """A campus administrator sees, pauses and runs their own campus's only."""
    names = [
        (s["name"], s["campus"]) for s in ask(service.oak, "GET", "/schedules").json()["schedules"]
    ]
    assert names == [("room.nightly", "oak")]
    for name, body in (("room.nightly", {"campus": "elm"}), ("house.weekly", None)):
        for action in ("pause", "resume", "run"):
            answer = ask(service.oak, "POST", f"/schedules/{name}/{action}", body)
            assert answer.status_code == 404, answer.text
    assert ask(service.oak, "POST", "/schedules/room.nightly/pause").json() == {"campuses": 1}
    found = ask(service.root, "GET", "/schedules?name=room.nightly").json()["schedules"]
    assert {s["campus"]: bool(s["paused_by"]) for s in found} == {
        "district": False, "elm": False, "oak": True,
    }  # fmt: skip


def test_a_need_of_another_campus_shows_nothing_but_its_number(service: Service) -> None:
    hidden = service.one(campus="elm")
    waiting = service.one(campus="oak", after=[hidden])
    found = ask(service.oak, "GET", f"/jobs/{waiting}").json()
    assert found["needs"] == [{"id": hidden, "kind": None, "campus": None, "state": None}]
