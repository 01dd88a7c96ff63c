"""The pages of jobs: who sees what, and that nothing leaks or is let in."""

import re
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient
from jobs_site import EVIL, Elements, School, counts_of, previewed, rows_of, told

from theon.jobs.search import STATES

# -- who sees what -------------------------------------------------------------------------

PAGES = ("/jobs", "/jobs/1", "/jobs/run")
POSTS = ("/jobs/confirm", "/jobs/do", "/jobs/run", "/jobs/1/cancel", "/jobs/1/retry")


@pytest.mark.parametrize("path", PAGES)
def test_whoever_is_not_signed_in_is_led_to_sign_in_and_back(school: School, path: str) -> None:
    answer = TestClient(school.app, follow_redirects=False).get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/sign-in?next={path}")


@pytest.mark.parametrize("name", ["oak-teacher", "oak-learner"])
def test_teachers_and_learners_see_no_jobs(school: School, name: str) -> None:
    job_id = school.failed()
    visitor = school.visitor(name)
    for path in ("/jobs", f"/jobs/{job_id}", "/jobs/run"):
        answer = visitor.get(path)
        assert answer.status_code == 403
        assert "reward.points" not in answer.text
    for path in (f"/jobs/{job_id}/retry", "/jobs/run", "/jobs/do", "/jobs/confirm"):
        assert (
            visitor.post(path, action="retry", id=job_id, kind="reward.points").status_code == 403
        )
    assert school.states(job_id) == ["failed"]


def test_a_service_reads_and_runs_but_controls_nothing(school: School) -> None:
    job_id = school.put()
    visitor = school.visitor("oak-service")
    listed, one = visitor.see("/jobs"), visitor.see(f"/jobs/{job_id}")
    assert rows_of(listed) == [job_id]
    assert 'href="/jobs/run"' in listed
    for html in (listed, one):
        assert 'type="checkbox"' not in html
        assert '/jobs/confirm" hidden' not in html
        assert "Do something" not in html
    for path in (f"/jobs/{job_id}/cancel", "/jobs/do", "/jobs/confirm"):
        assert visitor.post(path, action="cancel", id=job_id).status_code == 403
    assert school.states(job_id) == ["queued"]
    assert "is in the queue" in visitor.done("/jobs/run", kind="reward.points", campus="oak")


def test_a_system_administrator_sees_all_campuses(school: School) -> None:
    ids = [school.put(campus=campus) for campus in ("oak", "elm", "district")]
    assert rows_of(school.visitor("root").see("/jobs")) == ids[::-1]


def test_a_campus_administrator_sees_nothing_of_another_campus(school: School) -> None:
    """Not in lists, counts, suggestions, forms, or by guessing ids; and changes nothing there."""
    mine = school.failed(campus="oak", owner="mine")
    other = school.failed(campus="elm", owner="secret-owner", error="secret-error")
    whole = school.put(campus="district", owner="secret-owner")
    oak = school.visitor("oak-admin")
    for path in (
        "/jobs",
        "/jobs?q=state:failed",
        f"/jobs/{mine}",
        "/jobs/run",
        "/jobs/run?kind=import.rows",
    ):
        html = oak.see(path)
        assert "secret" not in html
        assert "elm" not in told(html)
        assert "District" not in html
    assert rows_of(oak.see("/jobs")) == [mine]
    assert counts_of(oak.see("/jobs")) == {"": 1, **dict.fromkeys(STATES, 0), "failed": 1}
    for job_id in (other, whole, 10**6, 2**63 - 1, 2**70):
        answer = oak.get(f"/jobs/{job_id}")
        assert answer.status_code == 404
        assert "secret" not in answer.text
        for name in ("cancel", "retry", "discard", "prioritise"):
            given = {"priority": "high", "arguments": "{}"}
            assert oak.post(f"/jobs/{job_id}/{name}", **given).status_code in (400, 404)
    for path in ("/jobs/confirm", "/jobs/do"):
        for action in ("cancel", "retry", "discard", "prioritise"):
            answer = oak.post(
                path, action=action, priority="high", which="ticked", id=[mine, other]
            )
            assert answer.status_code == 404
            assert "secret" not in answer.text
            answer = oak.post(path, action=action, priority="high", which="all", q="campus:elm")
            assert answer.status_code == 400
    assert oak.get("/jobs?q=campus:elm").status_code == 400
    refused = oak.post("/jobs/run", kind="reward.points", campus="elm", arguments="{}")
    assert refused.status_code == 400
    assert "no campus &#39;elm&#39;" in refused.text
    assert school.states(mine, other, whole) == ["failed", "failed", "queued"]
    assert school.sql("SELECT count(*) FROM theon.jobs")[0][0] == 3


def test_what_is_done_by_filter_ends_at_the_campus(school: School) -> None:
    mine, other = school.failed(campus="oak"), school.failed(campus="elm")
    oak = school.visitor("oak-admin")
    assert previewed(oak.post("/jobs/confirm", action="discard", which="all", q="").text) == {
        "failed": 1
    }
    assert oak.done("/jobs/do", action="discard", which="all", q="") == "1 job discarded."
    assert school.states(mine, other) == ["cancelled", "failed"]


def test_a_need_in_another_campus_is_a_number_and_nothing_more(school: School) -> None:
    other = school.put(campus="elm", owner="secret-owner")
    mine = school.put(campus="oak", after=[other])
    html = school.visitor("oak-admin").see(f"/jobs/{mine}")
    assert f"job {other}, not of your campuses" in html
    assert "secret" not in html
    assert "elm" not in told(html)
    seen = school.visitor("root").see(f"/jobs/{mine}")
    assert f'href="/jobs/{other}"' in seen
    assert f"It needs a job that is not completed: {other}." in seen
    assert "It needs a job that is not completed." in html


def test_why_a_job_waits_is_true_for_the_district_and_tells_of_no_other_campus(
    school: School,
) -> None:
    school.running(kind="import.rows", campus="elm", owner="secret-owner")
    mine = school.put("import.rows", campus="oak")
    html = school.visitor("oak-admin").see(f"/jobs/{mine}")
    assert "Import.rows may run 1 at once, and that many do." in html
    assert "secret" not in html
    assert "elm" not in told(html)


# -- forms come from our pages -------------------------------------------------------------


@pytest.mark.parametrize("path", POSTS)
def test_a_form_that_proves_nothing_changes_nothing(school: School, path: str) -> None:
    job_id = school.put()
    root = school.visitor("root")
    given: dict[str, Any] = {
        "action": "cancel", "id": job_id, "which": "all", "kind": "reward.points",
        "arguments": "{}",
    }  # fmt: skip
    assert root.post(path, proven=False, **given).status_code == 403
    elsewhere = {**given, "csrf_token": root.client.cookies["theon_csrf"]}
    answer = root.client.post(path, data=elsewhere, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert school.states(job_id) == ["queued"]
    assert school.sql("SELECT count(*) FROM theon.jobs")[0][0] == 1


def test_what_people_and_jobs_say_is_shown_as_it_is_written(school: School) -> None:
    """Owner, operation, error, class of error, stack, arguments, result, reason and search."""
    failed = school.failed(
        kind="import.rows", arguments={"path": EVIL}, owner=EVIL, error=EVIL, error_kind=EVIL,
        idempotency_key=EVIL,
    )  # fmt: skip
    running, message = school.running(owner=EVIL)
    school.progress(message, 1, 2, EVIL)
    completed = school.completed(result={EVIL: EVIL})
    root = school.visitor("root")
    root.done(f"/jobs/{failed}/retry", arguments='{"path": "<script>alert(4)</script>"}')
    root.done(f"/jobs/{failed}/cancel", reason=EVIL)
    school.sql("UPDATE theon.jobs SET checkpoint = CAST(:c AS jsonb)", c='{"<script>": "<img>"}')
    shown = [
        root.see("/jobs"),
        root.get(f"/jobs?q={EVIL}").text,
        root.post("/jobs/confirm", action="cancel", which="all", q="", reason=EVIL).text,
        root.post("/jobs/run", kind=EVIL, campus=EVIL, arguments=EVIL, priority=EVIL).text,
        root.post("/jobs/run", kind="import.rows", campus=EVIL, arguments=EVIL).text,
        root.get(f"/jobs/run?kind={EVIL}").text,
        root.post(f"/jobs/{completed}/retry", arguments=EVIL).text,
        *(root.see(f"/jobs/{job_id}") for job_id in (failed, running, completed)),
    ]
    for html in shown:
        nonces = re.findall(r"<script nonce=\"[\w-]+\">", html)
        assert len(nonces) == len(re.findall("<script", html)) == 1
        elements = Elements(html)
        assert not elements.names & {"img", "iframe", "object", "embed", "base"}
        assert not [name for name in elements.attributes if name.startswith("on")]
        assert "style" not in elements.attributes
    assert unescape(shown[0]).count(EVIL) >= 2


def test_pages_allow_nothing_but_our_own(school: School) -> None:
    """A nonce of its own for each answer, no inline handlers or styles, nothing kept."""
    root, job_id = school.visitor("root"), school.failed()
    policies = set()
    for path in ("/jobs", f"/jobs/{job_id}", "/jobs/run", "/jobs/run?kind=import.rows"):
        answer = root.get(path)
        policy = answer.headers["content-security-policy"]
        policies.add(policy)
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy)
        assert nonce is not None
        assert answer.text.count(f'nonce="{nonce[1]}"') == 2
        assert "style=" not in answer.text
        assert answer.headers["cache-control"] == "no-store"
    assert len(policies) == 4
