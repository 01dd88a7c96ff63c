"""What people do over HTTP: one job, many by ids or filter, queues, pauses and schedules."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from tests.api.jobs_service import DISTRICT, JOBS, Service

from theon.jobs import admin
from theon.jobs.enqueue import NewJob

ACTIONS = f"{JOBS}/actions"


def act(service: Service, **body: Any) -> Any:
    return service.oak.post(ACTIONS, json=body)


def audit(service: Service) -> list[tuple[str, str]]:
    with service.store.transaction(DISTRICT) as conn:
        found = conn.execute(text("SELECT action, subject FROM theon.job_audit ORDER BY id"))
        return [(action, subject) for action, subject in found]


# -- one job -------------------------------------------------------------------------------


def test_one_job_is_cancelled_retried_discarded_and_prioritised(service: Service) -> None:
    """Each answers the job as it is now, and is on record with who did it."""
    job_id = service.one()
    base = f"{JOBS}/{job_id}"
    job = service.oak.post(f"{base}/prioritise", json={"priority": "urgent"}).json()
    assert (job["id"], job["priority"], job["state"]) == (job_id, "urgent", "queued")
    job = service.oak.post(f"{base}/cancel", json={"reason": "a mistake"}).json()
    subject = service.oak.get("/api/v1/me").json()["subject"]
    assert (job["state"], job["reason"]) == ("cancelled", f"cancelled by {subject}: a mistake")
    job = service.oak.post(f"{base}/retry", json={"arguments": {"upto": 9}}).json()
    assert job["state"] == "scheduled"
    assert service.oak.get(base).json()["arguments"]["upto"] == 9
    service.end(service.begin(job_id), "failed", error="e")
    assert service.oak.post(f"{base}/discard").json()["state"] == "cancelled"
    done = [(name, f"job {job_id}") for name in ("prioritise", "cancel", "retry", "discard")]
    assert audit(service) == done


def test_what_does_not_fit_the_state_of_a_job_is_409(service: Service) -> None:
    """It says what the job is; nothing is on record."""
    queued, failed = service.one(), service.failed()
    for job_id, action, body, state in (
        (failed, "cancel", None, "failed"),
        (failed, "prioritise", {"priority": "low"}, "failed"),
        (queued, "retry", None, "queued"),
        (queued, "discard", None, "queued"),
    ):
        answer = service.oak.post(f"{JOBS}/{job_id}/{action}", json=body)
        assert answer.status_code == 409
        assert answer.json()["error"] == f"job {job_id} was left alone: it is {state}"
    assert audit(service) == []


def test_a_running_job_is_asked_to_end(service: Service) -> None:
    job_id = service.one()
    service.begin(job_id)
    job = service.oak.post(f"{JOBS}/{job_id}/cancel").json()
    assert (job["state"], job["cancel_asked"]) == ("running", True)


def test_a_job_whose_need_ended_badly_is_not_retried_alone(service: Service) -> None:
    first = service.one()
    second = service.one(after=[first])
    service.oak.post(f"{JOBS}/{first}/cancel")
    answer = service.oak.post(f"{JOBS}/{second}/retry")
    assert answer.status_code == 400
    assert f"it needs job {first}, which is cancelled" in answer.json()["error"]
    both = act(service, action="retry", ids=[first, second])
    assert both.json()["counts"]["changed"] == 2


def test_arguments_that_do_not_fit_are_refused_and_the_job_stays(service: Service) -> None:
    failed = service.failed()
    for arguments in ({"upto": "far"}, [], "x"):
        answer = service.oak.post(f"{JOBS}/{failed}/retry", json={"arguments": arguments})
        assert answer.status_code == 400, answer.text
    assert service.state(failed) == "failed"


# -- many jobs -----------------------------------------------------------------------------


def test_an_action_by_filter_changes_what_its_preview_said(service: Service) -> None:
    """Jobs in other states, of other kinds and of other campuses are left alone."""
    wanted = [service.one(), service.one(delay_s=900)]
    running = service.one()
    service.begin(running)
    others = [service.failed(), service.one("import.rows"), service.one(campus="elm")]
    body = {"action": "cancel", "filter": {"kind": ["room.count"]}, "reason": "wrong term"}
    preview = service.oak.post(f"{ACTIONS}/preview", json=body).json()
    assert preview == {"count": 3, "exact": True, "sample": [running, *reversed(wanted)]}
    assert [service.state(job_id) for job_id in wanted] == ["queued", "scheduled"]
    done = act(service, **body).json()
    assert done["counts"] == {"changed": 3, "asked": 1, "skipped": 0, "refused": 0}
    assert (done["changed"], done["asked"]) == ([*wanted, running], [running])
    assert [service.state(job_id) for job_id in others] == ["failed", "queued", "queued"]
    assert audit(service) == [("cancel", "3 jobs")]


def test_very_many_jobs_are_changed_in_batches(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer counts all and names the first thousand; each batch is on record."""
    monkeypatch.setattr(admin, "JOBS_PER_BATCH", 500)
    service.put(*(NewJob("room.count", campus="oak") for _ in range(1_200)))
    done = act(service, action="cancel", filter={"state": ["queued"]}).json()
    assert done["counts"]["changed"] == 1_200
    assert len(done["changed"]) == 1_000
    assert audit(service) == [
        ("cancel", "500 jobs"),
        ("cancel", "500 jobs"),
        ("cancel", "200 jobs"),
    ]


def test_an_action_by_ids_tells_what_it_left_alone(service: Service) -> None:
    """Of an unknown id nothing is changed."""
    queued, failed = service.one(), service.failed()
    preview = service.oak.post(
        f"{ACTIONS}/preview", json={"action": "discard", "ids": [queued, failed]}
    )
    assert preview.json() == {"count": 1, "exact": True, "sample": [failed]}
    answer = act(service, action="discard", ids=[queued, failed, 999_999])
    assert answer.status_code == 404
    assert service.state(failed) == "failed"
    done = act(service, action="discard", ids=[queued, failed]).json()
    assert (done["changed"], done["skipped"]) == ([failed], {str(queued): "it is queued"})
    done = act(service, action="prioritise", ids=[queued], priority="high").json()
    assert done["changed"] == [queued]


def test_many_dead_letters_are_retried_with_other_arguments(service: Service) -> None:
    """By a filter that names their kind; one that does not is refused."""
    failed = [service.failed(), service.failed()]
    other = service.failed(kind="import.rows")
    edited = {"action": "retry", "arguments": {"upto": 7}}
    for chosen in ({"state": ["failed"]}, {"kind": ["room"]}, {"kind": ["room.count", "room"]}):
        answer = act(service, **edited, filter=chosen)
        assert answer.status_code == 400
        assert "one kind" in answer.json()["error"]
    done = act(service, **edited, filter={"kind": ["room.count"], "state": ["failed"]}).json()
    assert done["changed"] == failed
    for job_id in failed:
        assert service.oak.get(f"{JOBS}/{job_id}").json()["arguments"]["upto"] == 7
    assert service.state(other) == "failed"
    assert act(service, **edited, ids=[other]).json()["changed"] == [other]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"action": "explode", "ids": [1]}, 422, "action"),
        ({"action": "cancel"}, 422, "ids or filter"),
        ({"action": "cancel", "ids": [1], "filter": {"state": ["queued"]}}, 422, "ids or filter"),
        ({"action": "cancel", "ids": []}, 422, "ids"),
        ({"action": "cancel", "filter": {}}, 400, "all jobs"),
        ({"action": "cancel", "filter": {"q": "  "}}, 400, "all jobs"),
        ({"action": "cancel", "filter": {"state": ["fialed"]}}, 400, "did you mean failed"),
        ({"action": "cancel", "filter": {"stat": ["failed"]}}, 422, "stat"),
        ({"action": "cancel", "filter": {"limit": 5}}, 422, "limit"),
        ({"action": "prioritise", "ids": [1]}, 422, "priority"),
        ({"action": "prioritise", "ids": [1], "priority": "asap"}, 422, "priority"),
        ({"action": "cancel", "ids": [1], "priority": "low"}, 422, "priority"),
        ({"action": "cancel", "ids": [1], "arguments": {}}, 422, "arguments"),
    ],
    ids=str,
)
def test_an_action_that_means_nothing_is_refused(
    service: Service, body: dict[str, Any], status: int, words: str
) -> None:
    """A filter that says nothing too, for it would be every job."""
    job_id = service.one()
    for path in (ACTIONS, f"{ACTIONS}/preview"):
        answer = service.oak.post(path, json=body)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"], answer.text
    assert service.state(job_id) == "queued"


# -- queues and pauses ---------------------------------------------------------------------


def test_a_queue_is_paused_and_resumed(service: Service) -> None:
    """With whose, why and until when; its jobs say why they wait."""
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    given = {"campus": "oak", "reason": "exams", "until": until}
    paused = service.root.post("/api/v1/queues/rooms/pause", json=given).json()
    assert (paused["subject"], paused["value"], paused["campus"]) == ("queue", "rooms", "oak")
    assert (paused["reason"], datetime.fromisoformat(paused["until"]).isoformat()) == (
        "exams", until,
    )  # fmt: skip
    assert service.oak.get("/api/v1/pauses").json()["pauses"] == [paused]
    queues = {q["queue"]: q["paused"] for q in service.oak.get("/api/v1/queues").json()["queues"]}
    assert queues == {"house": [], "imports": [], "rooms": [paused]}
    why = service.oak.get(f"{JOBS}/{service.one()}").json()["why_waiting"]
    assert "paused" in why
    resume = "/api/v1/queues/rooms/resume"
    assert service.root.post(resume).status_code == 400  # it is not the district's
    assert service.root.post(resume, json={"campus": "oak"}).status_code == 204
    assert service.oak.get("/api/v1/pauses").json()["pauses"] == []


def test_kinds_and_campuses_are_paused_too(service: Service) -> None:
    for subject, value, campus in (
        ("kind", "room.count", "district"),
        ("campus", "elm", "elm"),
        ("queue", "rooms", "district"),
    ):
        wanted = {"subject": subject, "value": value}
        answer = service.root.post("/api/v1/pauses", json=wanted)
        assert (answer.status_code, answer.json()["campus"]) == (201, campus)
        assert service.root.post("/api/v1/pauses/resume", json=wanted).status_code == 204
        again = service.root.post("/api/v1/pauses/resume", json=wanted)
        assert again.status_code == 400
        assert "not paused" in again.json()["error"]


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"subject": "queue", "value": "none"}, 400),
        ({"subject": "kind", "value": "room.paint"}, 400),
        ({"subject": "campus", "value": "nowhere"}, 400),
        ({"subject": "queue", "value": "rooms", "campus": "nowhere"}, 400),
        ({"subject": "queue", "value": "rooms", "until": "2020-01-01T00:00:00Z"}, 400),
        ({"subject": "worker", "value": "w"}, 422),
    ],
    ids=str,
)
def test_a_pause_of_nothing_is_refused(
    service: Service, wanted: dict[str, str], status: int
) -> None:
    assert service.root.post("/api/v1/pauses", json=wanted).status_code == status
    assert service.root.get("/api/v1/pauses").json()["pauses"] == []


# -- schedules -----------------------------------------------------------------------------


def test_a_schedule_is_paused_resumed_and_run(service: Service) -> None:
    """In one campus or in all; run twice while its job has not ended is 409."""
    base = "/api/v1/schedules/room.nightly"
    assert service.root.post(f"{base}/pause", json={"campus": "oak"}).json() == {"campuses": 1}
    assert service.root.post(f"{base}/pause").json() == {"campuses": 2}
    assert service.root.post(f"{base}/pause").json() == {"campuses": 0}
    (oak,) = service.oak.get("/api/v1/schedules").json()["schedules"]
    assert oak["paused_by"] == service.root.get("/api/v1/me").json()["subject"]
    assert oak["upcoming"] == []
    assert service.root.post(f"{base}/resume").json() == {"campuses": 3}
    answer = service.oak.post(f"{base}/run")
    assert answer.status_code == 201
    (job_id,) = answer.json()["jobs"]
    job = service.oak.get(f"{JOBS}/{job_id}").json()["job"]
    subject = service.oak.get("/api/v1/me").json()["subject"]
    assert (job["kind"], job["campus"], job["owner"]) == ("room.count", "oak", subject)
    again = service.oak.post(f"{base}/run")
    assert again.status_code == 409
    assert f"job {job_id}" in again.json()["error"]
    (oak,) = service.oak.get("/api/v1/schedules").json()["schedules"]
    assert [(run["outcome"], run["job_id"]) for run in oak["runs"]] == [("by hand", job_id)]


def test_a_schedule_that_is_not_there_is_404(service: Service) -> None:
    for action in ("pause", "resume", "run"):
        answer = service.root.post(f"/api/v1/schedules/room.never/{action}")
        assert answer.status_code == 404
        assert "no schedule 'room.never'" in answer.json()["error"]
