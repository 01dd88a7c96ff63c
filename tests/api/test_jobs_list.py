"""Lists of jobs, one job, and figures over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import text
from tests.api.jobs_service import DISTRICT, JOBS, Service

from theon.access.roles import Role
from theon.api import jobs_requests
from theon.jobs import query
from theon.jobs.enqueue import NewJob


def listed(service: Service, parameters: str = "", role: Any = None) -> list[int]:
    client = service.root if role is None else service.client(role)
    answer = client.get(f"{JOBS}?{parameters}")
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["jobs"]]


@pytest.fixture
def many(service: Service) -> dict[str, int]:
    """A job of each sort, oldest first."""
    service.put(NewJob("room.count", campus="oak", owner="115", idempotency_key="night 1"))
    failed = service.failed()
    elm = service.one("import.rows", campus="elm")
    later = service.one(campus="oak", delay_s=900)
    running = service.one("import.rows", campus="oak")
    service.begin(running)
    return {"owned": 1, "failed": failed, "elm": elm, "later": later, "running": running}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("", ["running", "later", "elm", "failed", "owned"]),
        ("state=failed", ["failed"]),
        ("state=failed&state=scheduled", ["later", "failed"]),
        ("state=pending", ["elm", "owned"]),
        ("kind=import", ["running", "elm"]),
        ("kind=room.count&state=queued", ["owned"]),
        ("category=analytics", ["later", "failed", "owned"]),
        ("queue=imports&campus=oak", ["running"]),
        ("campus=elm", ["elm"]),
        ("campus=district&state=failed", ["failed"]),
        ("owner=115", ["owned"]),
        ("error=KeyError", ["failed"]),
        ("q=it broke", ["failed"]),
        ("q=kind:import state:running", ["running"]),
        ("q=night&owner=115", ["owned"]),
        ("limit=2", ["running", "later"]),
    ],
    ids=str,
)
def test_a_list_has_the_jobs_that_match_newest_first(
    service: Service, many: dict[str, int], parameters: str, expected: list[str]
) -> None:
    assert listed(service, quote(parameters, safe="=&")) == [many[name] for name in expected]


def test_a_list_is_of_a_span_of_time(service: Service, many: dict[str, int]) -> None:
    """Created or ended from a moment, and before one."""
    now = datetime.now(UTC)
    past, future = (quote((now + timedelta(hours=n)).isoformat()) for n in (-1, 1))
    assert listed(service, f"created_from={past}&created_before={future}") == listed(service)
    assert listed(service, f"created_from={future}") == []
    assert listed(service, f"ended_from={past}&ended_before={future}") == [many["failed"]]
    assert listed(service, f"ended_before={past}") == []


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ("state=fialed", 400, "did you mean failed"),
        ("q=knd:x", 400, "did you mean kind"),
        ("q=state:failed&state=queued", 400, "q and a parameter both"),
        ("campus=nowhere", 400, "no campus 'nowhere'"),
        ("cursor=x", 400, "no cursor"),
        ("limit=0", 422, "limit"),
        ("limit=1001", 422, "limit"),
        ("created_from=yesterday", 422, "created_from"),
        ("statee=failed", 422, "statee"),
    ],
    ids=str,
)
def test_what_means_nothing_is_refused(
    service: Service, parameters: str, status: int, words: str
) -> None:
    """Also a parameter that does not exist: it would otherwise be no filter at all."""
    answer = service.root.get(f"{JOBS}?{parameters}")
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert answer.json()["next_step"]


@pytest.mark.parametrize(
    "parameters", ["", "&state=queued", "&kind=import", "&campus=oak", "&q=broke"], ids=str
)
def test_cursors_walk_through_every_job_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, parameters: str
) -> None:
    """Also where a page ends because enough jobs were looked at, and while jobs are added."""
    for n in range(30):
        service.one("import.rows" if n % 3 else "room.count", campus="oak" if n % 2 else "elm")
    service.failed()
    whole = listed(service, f"limit=1000{parameters}")
    monkeypatch.setattr(query, "SCANNED_JOBS", 7)
    seen: list[int] = []
    cursor: str | None = ""
    while cursor is not None:
        after = f"&cursor={quote(cursor)}" if cursor else ""
        page = service.root.get(f"{JOBS}?limit=4{parameters}{after}").json()
        seen += [job["id"] for job in page["jobs"]]
        assert page["complete"] or page["next_cursor"]
        cursor = page["next_cursor"]
        service.one("import.rows")
    assert seen == whole


def test_a_page_that_takes_too_long_ends(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with what to do, instead of a database that works for nobody."""

    def slow(conn: Any, *_: Any, **__: Any) -> Any:
        conn.execute(text("SELECT pg_sleep(60)"))

    monkeypatch.setattr("theon.api.jobs.list_jobs", slow)
    monkeypatch.setattr(jobs_requests, "READ_LIMIT_S", 1)
    answer = service.root.get(JOBS)
    assert answer.status_code == 503
    assert "1 seconds" in answer.json()["error"]
    assert "narrower" in answer.json()["next_step"]


def test_one_job_is_shown_with_all_that_happened(service: Service) -> None:
    """History, attempts, errors with stack, what it needs and what needs it."""
    first = service.one(owner="115")
    second = service.one(after=[first])
    service.end(
        service.begin(first), "failed", error="it broke", error_kind="KeyError", stack="line 1"
    )
    found = service.oak.get(f"{JOBS}/{first}").json()
    assert [change["after"] for change in found["history"]] == [
        "queued", "dispatched", "running", "failed",
    ]  # fmt: skip
    (attempt,) = found["past_attempts"]
    assert (attempt["outcome"], attempt["error_kind"], attempt["stack"]) == (
        "failed", "KeyError", "line 1",
    )  # fmt: skip
    assert found["job"]["error"] == found["error"] == "it broke"
    assert found["needed_by"] == [
        {"id": second, "kind": "room.count", "campus": "oak", "state": "failed"}
    ]
    assert found["why_waiting"] == ""
    missing = service.oak.get(f"{JOBS}/999999")
    assert missing.status_code == 404
    assert "no job 999999" in missing.json()["error"]


def test_counts_are_of_every_state(service: Service, many: dict[str, int]) -> None:
    assert service.root.get(f"{JOBS}/summary").json() == {
        "states": {
            "scheduled": 1, "queued": 2, "dispatched": 0, "running": 1, "completed": 0,
            "failed": 1, "cancelled": 0,
        }
    }  # fmt: skip


def test_queues_schedules_dead_letters_and_health_are_shown(
    service: Service, many: dict[str, int]
) -> None:
    """Depths with what is declared and empty, next times, groups, targets and a sentence."""
    queues = {q["queue"]: q for q in service.root.get("/api/v1/queues").json()["queues"]}
    assert {name: q["waiting"] for name, q in queues.items()} == {
        "house": 0, "imports": 1, "rooms": 1,
    }  # fmt: skip
    assert queues["rooms"]["depth"]["failed"] == 1
    assert queues["rooms"]["ended_per_minute"] > 0
    assert queues["rooms"]["wait_p50_s"] is not None
    found = service.root.get("/api/v1/schedules?campus=oak&upcoming=3").json()["schedules"]
    assert [(s["name"], len(s["upcoming"])) for s in found] == [("room.nightly", 3)]
    (group,) = service.root.get("/api/v1/dead-letters").json()["groups"]
    assert (group["kind"], group["error_kind"], group["count"], group["newest_id"]) == (
        "room.count", "KeyError", 1, many["failed"],
    )  # fmt: skip
    health = service.root.get("/api/v1/health-of-jobs?window_s=600").json()
    assert {target["name"] for target in health["targets"]} == {
        "completion", "mean_run", "failures", "utilisation", "uptime",
    }  # fmt: skip
    failures = next(t for t in health["targets"] if t["name"] == "failures")
    assert (failures["value"], failures["met"]) == (1.0, False)
    assert health["most_failing"][0]["kind"] == "room.count"
    assert "No worker takes jobs" in health["bottleneck"]["sentence"]
    assert 0 < health["window_s"] <= 600


def test_workers_are_shown_to_whoever_may_see_them(service: Service) -> None:
    """Also one that is silent, as lost."""
    with service.store.transaction(DISTRICT) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.job_workers (id, campus_id, host, pid, delivery, queues, state,"
                " slots, busy, heartbeat_at) SELECT 'w' || n, id, 'here', 1, 'local', '{rooms}',"
                " 'running', 4, 2, clock_timestamp() - n * interval '1 hour'"
                " FROM theon.campuses, generate_series(0, 1) AS n WHERE slug = 'district'"
            )
        )
    workers = service.root.get("/api/v1/workers").json()["workers"]
    assert [(w["id"], w["state"], w["slots"], w["queues"]) for w in workers] == [
        ("w0", "running", 4, ["rooms"]), ("w1", "lost", 4, ["rooms"]),
    ]  # fmt: skip
    assert service.client(Role.SERVICE, "district").get("/api/v1/workers").status_code == 403
