"""Running jobs over HTTP: once per key, at their time, refused at once when something is wrong."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from tests.api.jobs_service import DISTRICT, JOBS, Service

from theon.api import jobs_requests
from theon.api.jobs_models import Priority
from theon.jobs.enqueue import PRIORITIES, NewJob

BATCH = f"{JOBS}/batch"


def run(client: TestClient, kind: str = "room.count", **body: Any) -> Any:
    return client.post(JOBS, json={"kind": kind, **body})


def send(client: TestClient, path: str, body: str) -> Any:
    """A body as it stands, for what no JSON library would write."""
    return client.post(path, content=body, headers={"Content-Type": "application/json"})


def refused(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "next_step"}
    for word in words:
        assert word in answer.json()["error"], answer.text


def test_a_job_is_run_by_hand(service: Service) -> None:
    """It belongs to the caller and, unless they say otherwise, to their campus."""
    answer = run(service.oak, arguments={"upto": 3}, priority="high")
    assert answer.status_code == 201
    job = answer.json()
    assert (job["campus"], job["state"], job["priority"]) == ("oak", "queued", "high")
    assert job["owner"] == service.oak.get("/api/v1/me").json()["subject"]
    assert answer.headers["location"] == f"{JOBS}/{job['id']}"
    assert answer.headers["cache-control"] == "no-store"
    shown = service.oak.get(answer.headers["location"]).json()
    assert shown["arguments"] == {"upto": 3, "word": "", "any": None}
    assert [change["after"] for change in shown["history"]] == ["queued"]
    assert shown["why_waiting"] == "no worker serves the queue rooms"
    elsewhere = run(service.root, campus="elm").json()
    assert (elsewhere["campus"], run(service.root).json()["campus"]) == ("elm", "district")


def test_a_key_makes_one_job(service: Service) -> None:
    """201 the first time, 200 with the same job afterwards; in the body or as the header."""
    first = run(service.oak, idempotency_key="k", arguments={"upto": 1})
    second = run(service.oak, idempotency_key="k", arguments={"upto": 2})
    third = service.oak.post(JOBS, json={"kind": "room.count"}, headers={"Idempotency-Key": "k"})
    both = service.oak.post(
        JOBS,
        json={"kind": "room.count", "idempotency_key": "k"},
        headers={"Idempotency-Key": "k"},
    )
    answers = (first, second, third, both)
    assert [answer.status_code for answer in answers] == [201, 200, 200, 200]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert run(service.oak, "import.rows", idempotency_key="k").status_code == 201
    two = service.oak.post(
        JOBS,
        json={"kind": "room.count", "idempotency_key": "a"},
        headers={"Idempotency-Key": "b"},
    )
    refused(two, 400, "two keys")
    empty = service.oak.post(JOBS, json={"kind": "room.count"}, headers={"Idempotency-Key": " "})
    refused(empty, 400, "empty")


def test_requests_at_the_same_moment_with_one_key_make_one_job(service: Service) -> None:
    """Exactly one of them is told that it made it."""
    client = service.oak
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: run(client, idempotency_key="k"), range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 11 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_job_waits_for_its_time(service: Service) -> None:
    """As a delay or as a moment, which without a zone is in UTC; one that is over is no wait."""
    hour = datetime.now(UTC) + timedelta(hours=1)
    naive = hour.replace(tzinfo=None).isoformat()
    for how in ({"delay_s": 3600}, {"ready_at": hour.isoformat()}, {"ready_at": naive}):
        job = run(service.oak, **how).json()
        assert job["state"] == "scheduled"
        ready_at = datetime.fromisoformat(job["ready_at"])
        assert abs(ready_at - hour) < timedelta(minutes=1), how
    over = (hour - timedelta(days=2)).isoformat()
    assert run(service.oak, ready_at=over).json()["state"] == "queued"
    refused(run(service.oak, ready_at=hour.isoformat(), delay_s=5), 422, "not both")
    refused(run(service.oak, ready_at="9999-12-31T00:00:00Z"), 400, "ten years")
    refused(run(service.oak, delay_s=1e300), 422, "delay_s")


def test_jobs_of_a_batch_need_each_other_by_label(service: Service) -> None:
    """All are enqueued or none; ids come in the order of the batch."""
    first = service.one()
    answer = service.oak.post(
        BATCH,
        json={
            "jobs": [
                {"kind": "room.count", "label": "b", "after": ["a", first]},
                {"kind": "import.rows", "label": "a", "idempotency_key": "k"},
            ]
        },
    )
    assert answer.status_code == 201
    last, middle = answer.json()["jobs"]
    assert (last["label"], last["new"], middle["label"], middle["new"]) == ("b", True, "a", True)
    shown = service.oak.get(f"{JOBS}/{last['id']}").json()
    assert [need["id"] for need in shown["needs"]] == [first, middle["id"]]
    assert shown["why_waiting"].startswith("it needs 2 jobs")
    again = {"jobs": [{"kind": "import.rows", "idempotency_key": "k"}, {"kind": "room.count"}]}
    known, new = service.oak.post(BATCH, json=again).json()["jobs"]
    assert (known["id"], known["new"], new["new"]) == (middle["id"], False, True)
    twice = {"jobs": [{"kind": "room.count", "idempotency_key": "twice"}] * 2}
    once, same = service.oak.post(BATCH, json=twice).json()["jobs"]
    assert (once["id"], once["new"], same["new"]) == (same["id"], True, False)


def test_what_cannot_run_is_refused_in_the_ledgers_words(service: Service) -> None:
    """An unknown kind, a need that is not there or ended badly, a circle; nothing is enqueued."""
    failed = service.failed()
    for body, words in (
        ({"kind": "room.cuont"}, "did you mean room.count"),
        ({"kind": "room.count", "after": [999_999]}, "job 999999, which it needs, does not exist"),
        ({"kind": "room.count", "after": [failed]}, f"job {failed}, which it needs, is failed"),
        ({"kind": "room.count", "after": ["x"]}, "no job of the batch has that label"),
        ({"kind": "room.count", "label": "a", "after": ["a"]}, "a → a"),
        ({"kind": "room.count", "campus": "nowhere"}, "no campus 'nowhere'"),
        ({"kind": "room.count", "arguments": {"upto": "far"}}, "upto"),
        ({"kind": "room.count", "arguments": [1]}, "arguments"),
        ({"kind": "room.count", "arguments": None}, "arguments"),
    ):
        refused(service.oak.post(JOBS, json=body), 400, words)
        good = {"kind": "room.count"}
        refused(service.oak.post(BATCH, json={"jobs": [good, body]}), 400, words)
    circle = [
        {"kind": "room.count", "label": "a", "after": ["b"]},
        {"kind": "room.count", "label": "b", "after": ["a"]},
    ]
    refused(service.oak.post(BATCH, json={"jobs": circle}), 400, "wait for each other")
    assert len(service.oak.get(JOBS).json()["jobs"]) == 1


def test_only_a_system_administrator_chooses_the_arguments_of_system_jobs(
    service: Service,
) -> None:
    """One job, a batch, a retry of one, of many by ids and by filter: everywhere."""
    days = {"days": 0}
    failed = service.failed(kind="house.clean")
    many = {"action": "retry", "arguments": days}
    for path, body in (
        (JOBS, {"kind": "house.clean", "arguments": days}),
        (BATCH, {"jobs": [{"kind": "house.clean", "arguments": days}]}),
        (f"{JOBS}/{failed}/retry", {"arguments": days}),
        (f"{JOBS}/actions", {**many, "ids": [failed]}),
        (f"{JOBS}/actions", {**many, "filter": {"kind": ["house.clean"]}}),
    ):
        refused(service.oak.post(path, json=body), 403, "arguments of house.clean")
    assert service.state(failed) == "failed"
    assert run(service.oak, "house.clean").status_code == 201
    assert run(service.root, "house.clean", arguments=days).status_code == 201
    assert service.root.post(f"{JOBS}/{failed}/retry", json={"arguments": days}).is_success
    assert service.root.get(f"{JOBS}/{failed}").json()["arguments"] == days


def test_kinds_say_what_they_take(service: Service) -> None:
    """Enough for a form: a JSON schema, the limits, and whether the arguments are free."""
    kinds = {kind["name"]: kind for kind in service.oak.get(f"{JOBS}/kinds").json()["kinds"]}
    assert set(kinds) == {"room.count", "import.rows", "house.clean"}
    count = kinds["room.count"]
    assert count["arguments"]["properties"]["upto"] == {
        "default": 1, "title": "Upto", "type": "integer",
    }  # fmt: skip
    assert (count["queue"], count["category"], count["summary"]) == ("rooms", "analytics", "Count.")
    assert (count["max_attempts"], count["at_once"], count["per_minute"]) == (2, 3, None)
    assert (count["arguments_are_free"], kinds["house.clean"]["arguments_are_free"]) == (
        True,
        False,
    )
    free = service.root.get(f"{JOBS}/kinds").json()["kinds"]
    assert all(kind["arguments_are_free"] for kind in free)


# -- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("{", "body"),
        ("[]", "body"),
        ("", "body"),
        ("{}", "kind"),
        ('{"kind": 5}', "kind"),
        ('{"kind": ""}', "kind"),
        ('{"kind": "room.count", "priority": "asap"}', "priority"),
        ('{"kind": "room.count", "prority": "low"}', "prority"),
        ('{"kind": "room.count", "delay_s": -1}', "delay_s"),
        ('{"kind": "room.count", "delay_s": NaN}', "delay_s"),
        ('{"kind": "room.count", "after": [-1]}', "after.0"),
        ('{"kind": "room.count", "after": [1e30]}', "after.0"),
        ('{"kind": "room.count", "after": 5}', "after"),
        ('{"kind": "room.count", "deadline_at": "soon"}', "deadline_at"),
        ('{"kind": "a\\u0000b"}', "kind"),
        ('{"kind": "a\\ud800b"}', "kind"),
        ('{"kind": "room.count", "campus": "a\\u0000b"}', "campus"),
        ('{"kind": "room.count", "label": "a\\ud800b"}', "label"),
        ('{"kind": "room.count", "idempotency_key": "a\\u0000b"}', "idempotency_key"),
        ('{"kind": "room.count", "arguments": {"word": "a\\u0000b"}}', "arguments"),
        ('{"kind": "room.count", "arguments": {"word": "a\\ud800b"}}', "arguments"),
        ('{"kind": "room.count", "arguments": {"any": {"a\\u0000b": 1}}}', "arguments"),
        ('{"kind": "room.count", "arguments": {"any": [1, [NaN]]}}', "arguments"),
        ('{"kind": "room.count", "arguments": {"any": 1e999}}', "arguments"),
        (
            '{"kind": "room.count", "arguments": {"any": ' + "[" * 300 + "]" * 300 + "}}",
            "arguments",
        ),
    ],
    ids=lambda value: "".join(c if c.isalnum() else "-" for c in value)[:60],
)
def test_a_body_that_does_not_fit_names_its_field(service: Service, body: str, named: str) -> None:
    refused(send(service.oak, JOBS, body), 422, named)


@pytest.mark.parametrize(
    "body",
    ['{"kind": "\xff"}'.encode("latin-1"), b"[" * 100_000, b'{"kind": ' + b"1" * 5_000 + b"}"],
    ids=["no text", "too deep", "a number too long"],
)
def test_a_body_that_is_no_json_is_refused_in_the_same_shape(service: Service, body: bytes) -> None:
    answer = service.oak.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert set(answer.json()) == {"error", "next_step"}


STRANGE = ("a%00b", "%ED%A0%80", "%FF", "%22", "%5C", "'", "..", "%E2%82%AC", "9" * 40)


@pytest.mark.parametrize(
    "path",
    [
        "/jobs?state={}", "/jobs?kind={}", "/jobs?category={}", "/jobs?queue={}",
        "/jobs?campus={}", "/jobs?owner={}", "/jobs?error={}", "/jobs?q={}", "/jobs?cursor={}",
        "/jobs?limit={}", "/jobs?created_from={}", "/jobs?x={}", "/jobs/{}", "/queues?window_s={}",
        "/schedules?name={}", "/schedules?campus={}", "/schedules?upcoming={}", "/jobs/{}/x",
        "/health-of-jobs?window_s={}",
    ],
    ids=str,
)  # fmt: skip
def test_whatever_is_asked_for_is_answered(service: Service, path: str) -> None:
    """With what there is, or with words; never with a fault of ours."""
    service.one()
    client = service.root
    for strange in STRANGE:
        answer = client.get("/api/v1" + path.format(strange))
        assert answer.status_code in (200, 400, 404, 422), (strange, answer.text)
        if answer.status_code != 200:
            assert set(answer.json()) == {"error", "next_step"}, (strange, answer.text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jobs/{job}/cancel", '{{"reason": "{}"}}'),
        ("/jobs/{failed}/discard", '{{"reason": "{}"}}'),
        ("/jobs/{failed}/retry", '{{"arguments": {{"word": "{}"}}}}'),
        ("/jobs/{failed}/retry", '{{"arguments": {{"any": {{"{}": "x"}}}}}}'),
        ("/jobs/{job}/prioritise", '{{"priority": "{}"}}'),
        ("/jobs/actions", '{{"action": "{}", "ids": [1]}}'),
        ("/jobs/actions", '{{"action": "cancel", "filter": {{"q": "{}"}}}}'),
        ("/jobs/actions", '{{"action": "cancel", "filter": {{"owner": ["{}"]}}}}'),
        ("/jobs/actions", '{{"action": "cancel", "filter": {{"campus": ["{}"]}}}}'),
        ("/jobs/actions", '{{"action": "cancel", "ids": [{job}], "reason": "{}"}}'),
        ("/jobs/actions/preview", '{{"action": "cancel", "filter": {{"error": ["{}"]}}}}'),
        ("/queues/rooms/pause", '{{"reason": "{}"}}'),
        ("/queues/rooms/pause", '{{"campus": "{}"}}'),
        ("/queues/rooms/pause", '{{"until": "{}"}}'),
        ("/queues/rooms/resume", '{{"campus": "{}"}}'),
        ("/pauses", '{{"subject": "kind", "value": "{}"}}'),
        ("/pauses", '{{"subject": "campus", "value": "{}"}}'),
        ("/pauses/resume", '{{"subject": "queue", "value": "{}"}}'),
        ("/schedules/room.nightly/run", '{{"campus": "{}"}}'),
    ],
    ids=lambda value: "".join(c if c.isalnum() else "-" for c in value)[:60],
)
def test_texts_that_no_database_keeps_are_refused_by_every_route(
    service: Service, path: str, body: str
) -> None:
    """A NUL character and half of one; nothing is changed by it."""
    job, failed = service.one(), service.failed()
    for words in ("a\\u0000b", "a\\ud800b"):
        given = body.replace("{job}", str(job)).format(words)
        answer = send(service.root, "/api/v1" + path.format(job=job, failed=failed), given)
        refused(answer, 422)
    assert (service.state(job), service.state(failed)) == ("queued", "failed")


def test_names_in_addresses_that_no_database_keeps_are_refused(service: Service) -> None:
    for path in (
        "/queues/a%00b/pause", "/queues/a%00b/resume", "/schedules/a%00b/run",
        "/schedules/a%00b/pause", "/schedules/a%00b/resume",
    ):  # fmt: skip
        refused(service.root.post("/api/v1" + path), 422)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(
    st.sampled_from(["kind", "arguments", "campus", "priority", "delay_s", "after", "label"]), _JSON
))  # fmt: skip
def test_whatever_is_sent_is_kept_or_refused(service: Service, body: dict[str, Any]) -> None:
    answer = send(service.oak, JOBS, json.dumps({"kind": "room.count", **body}))
    assert answer.status_code in (201, 400, 422), answer.text


def test_an_unknown_route_answers_in_the_same_shape(service: Service) -> None:
    """Outside of the API the framework's own answer stays as it is."""
    refused(service.oak.get("/api/v1/nothing"), 404)
    refused(service.oak.delete(JOBS), 405)
    assert service.oak.get("/nothing").json() == {"detail": "Not Found"}


def test_who_waits_too_long_for_another_is_told_to_come_back(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """409, and nothing has changed."""
    monkeypatch.setattr(jobs_requests, "LOCK_LIMIT_S", 1)
    (job_id,) = service.put(NewJob("room.count", campus="oak"))
    with service.store.transaction(DISTRICT) as conn:
        conn.execute(text("SELECT id FROM theon.jobs WHERE id = :id FOR UPDATE"), {"id": job_id})
        refused(service.oak.post(f"{JOBS}/{job_id}/cancel"), 409, "somebody else")
    assert service.state(job_id) == "queued"


def test_openapi_describes_every_route(service: Service) -> None:
    """A summary, what it answers, and the one shape of all refusals."""
    paths = service.client().get("/openapi.json").json()["paths"]
    routes = {
        (method, path): found
        for path, methods in paths.items()
        for method, found in methods.items()
        if "error" in json.dumps(found.get("responses", {}).get("422", {})) or "Problem" in
        json.dumps(found)
    }  # fmt: skip
    assert ("get", "/api/v1/jobs/events") in routes
    assert len(routes) >= 25
    for name, found in routes.items():
        assert found["summary"], name
        assert found["description"], name
        good = next(answer for code, answer in found["responses"].items() if code[0] == "2")
        assert good.get("content") or "204" in found["responses"], name
        assert found["responses"]["422"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Problem"
        }, name


def test_priorities_have_the_ledgers_words() -> None:
    assert get_args(Priority) == tuple(PRIORITIES)
