"""The page of jobs and of one job: who sees what, what is done, and that nothing leaks."""

import re
from datetime import UTC
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from jobs_site import EVIL, KINDS, School
from sqlalchemy import event

from theon.errors import InputError
from theon.jobs.enqueue import NewJob
from theon.jobs.query import Remaining
from theon.jobs.search import STATES, JobFilter, parse_search
from theon.settings import Settings
from theon.store.engine import Store
from theon.web.jobs_base import duration, megabytes
from theon.web.jobs_filter import words_of
from theon.web.jobs_words import read_json, time_left


@pytest.fixture
def school(store: Store, store_settings: Settings) -> School:
    return School(store, store_settings)


def rows_of(html: str) -> list[int]:
    """The ids of the jobs in the table, in order."""
    return [int(found) for found in re.findall(r'<tr id="job-(\d+)"', html)]


def counts_of(html: str) -> dict[str, int]:
    """The counts beside the states; the empty key is all of them."""
    found = re.findall(r'data-state="(\w*)"[^>]*><span>[^<]*</span> <b>([\d,]+)</b>', html)
    return {state: int(number.replace(",", "")) for state, number in found}


def previewed(html: str) -> dict[str, int]:
    found = re.findall(r'<li data-state="(\w+)"><b>([\d,]+)</b>', html)
    return {state: int(number.replace(",", "")) for state, number in found}


class Elements(HTMLParser):
    """The names of the elements and of their attributes in a page, as a browser reads it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


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
        assert "elm" not in html.lower()
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
    assert "elm" not in html.lower()
    seen = school.visitor("root").see(f"/jobs/{mine}")
    assert f'href="/jobs/{other}"' in seen
    assert f"it needs 1 jobs that are not completed: {other}" in seen.replace("It", "it")


def test_why_a_job_waits_is_true_for_the_district_and_tells_of_no_other_campus(
    school: School,
) -> None:
    school.running(kind="import.rows", campus="elm", owner="secret-owner")
    mine = school.put("import.rows", campus="oak")
    html = school.visitor("oak-admin").see(f"/jobs/{mine}")
    assert "Import.rows may run 1 at once, and that many do." in html
    assert "secret" not in html
    assert "elm" not in html.lower()


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


# -- the list ------------------------------------------------------------------------------


def test_every_filter_of_the_page_leads_to_its_jobs(school: School) -> None:
    """All, running, reward and system are a link away; counts say what a state's link shows."""
    reward = school.put("reward.points")
    running, _ = school.running(kind="system.tidy")
    failed = school.failed(kind="import.rows")
    root = school.visitor("root")
    html = root.see("/jobs")
    links = {
        name: unescape(path)
        for path, name in re.findall(
            r'<li><a href="([^"]+)"(?: aria-current="true")?>([^<]+)</a>', html
        )
    }
    assert {"All", "Running", "Reward", "System", "Import"} <= set(links)
    expected = {
        "All": [failed, running, reward],
        "Running": [running],
        "Reward": [reward],
        "System": [running],
        "Import": [failed],
    }
    for name, ids in expected.items():
        assert rows_of(root.see(links[name])) == ids
    for state, ids in {
        "queued": [reward],
        "running": [running],
        "failed": [failed],
        "completed": [],
    }.items():
        link = re.search(rf'<a href="([^"]+)" data-state="{state}"', html)
        assert link is not None
        assert rows_of(root.see(unescape(link[1]))) == ids
        assert counts_of(html)[state] == len(ids)
    # A state's link keeps the rest of the search, and its count is of the same jobs.
    of_system = root.see("/jobs?q=category:system")
    assert counts_of(of_system) == {"": 1, **dict.fromkeys(STATES, 0), "running": 1}
    assert "category:system" in unescape(
        re.search(r'<a href="([^"]+)" data-state="failed"', of_system)[1]
    ).replace("%3A", ":")  # type: ignore[index]


def test_a_search_that_means_nothing_is_kept_and_says_what_is_wrong(school: School) -> None:
    school.put()
    answer = school.visitor("root").get("/jobs?q=knd:import")
    assert answer.status_code == 400
    assert 'value="knd:import"' in answer.text
    assert "There is no token &#39;knd&#39; (did you mean kind?)." in answer.text
    assert rows_of(answer.text) == []
    assert counts_of(answer.text)["queued"] == 1


def test_pages_together_are_the_whole_list(school: School) -> None:
    """Newest first, fifty at a time, following the link to the older ones; and back."""
    ids = school.put_many([NewJob("reward.points", campus="oak") for _ in range(120)])
    root = school.visitor("root")
    path, found = "/jobs?q=kind:reward", []
    for _ in range(3):
        html = root.see(path)
        found.append(rows_of(html))
        link = re.search(r'rel="next" href="([^"]+)"', html)
        path = unescape(link[1]) if link else ""
    assert path == ""
    assert [len(page) for page in found] == [50, 50, 20]
    assert sum(found, []) == ids[::-1]  # noqa: RUF017 - three short lists
    assert ">Newest</a>" in html
    assert root.get("/jobs?cursor=nonsense").status_code == 400


def test_the_list_counts_no_rows(school: School) -> None:
    """Depths come from counters, whatever the length of the ledger."""
    school.put()
    root = school.visitor("root")
    said: list[str] = []

    def hear(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    engine = school.store._app
    event.listen(engine, "before_cursor_execute", hear)
    try:
        for path in ("/jobs", "/jobs?q=state:failed lost", "/jobs?q=category:reward owner:x"):
            root.see(path)
    finally:
        event.remove(engine, "before_cursor_execute", hear)
    lists = [statement for statement in said if "theon.jobs AS j" in statement]
    assert len(lists) >= 3
    assert not any("count(*)" in statement for statement in lists)
    assert any("theon.job_counts" in statement for statement in said)


def test_a_running_job_shows_how_far_it_is(school: School) -> None:
    job_id, message = school.running(owner="ada")
    school.progress(message, 30, 120, "reads rows")
    school.sql(
        "UPDATE theon.jobs SET started_at = started_at - interval '60 s' WHERE id = :i", i=job_id
    )
    root = school.visitor("root")
    for html in (root.see("/jobs"), root.see(f"/jobs/{job_id}")):
        assert '<progress max="120.0" value="30.0"' in html
        assert "reads rows" in html
        assert re.search(r"1 min 4\d s to 5 min 1\d s left", html)


# -- many jobs -----------------------------------------------------------------------------


def test_many_jobs_are_changed_after_a_look_at_how_many(school: School) -> None:
    """The look changes nothing; what matched then is changed, not what came later."""
    queued = school.put_many([NewJob("reward.points", campus="oak") for _ in range(3)])
    running, _ = school.running()
    completed = school.completed()
    other = school.put("system.tidy")
    root = school.visitor("root")
    html = root.post(
        "/jobs/confirm", action="cancel", which="all", q="category:reward", reason="a test"
    ).text
    assert previewed(html) == {"queued": 3, "running": 1}
    assert school.states(*queued, running) == ["queued"] * 3 + ["running"]
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', html))
    fields = {name: unescape(value) for name, value in fields.items()}
    late = school.put()
    said = root.done("/jobs/do", **fields)
    assert said == "4 jobs cancelled. 1 of them still ran and ends in a moment."
    assert school.states(*queued) == ["cancelled"] * 3
    assert school.states(completed, other, late) == ["completed", "queued", "queued"]
    assert school.sql("SELECT cancel_asked FROM theon.jobs WHERE id = :i", i=running)[0][0]
    (line,) = school.sql("SELECT actor, action, detail FROM theon.job_audit")
    assert line.actor == "root (account:1)"
    assert line.detail["reason"] == "a test"
    assert line.detail["count"] == 4


def test_ticked_jobs_are_changed_and_what_does_not_fit_is_told(school: School) -> None:
    failed, completed = school.failed(), school.completed()
    root = school.visitor("root")
    ids = {"which": "ticked", "id": [failed, completed]}
    html = root.post("/jobs/confirm", action="retry", **ids).text
    assert previewed(html) == {"failed": 1}
    assert "will be left alone" in html
    said = root.done("/jobs/do", action="retry", **ids)
    assert said == f"1 job to be run again. 1 skipped: it is completed (job {completed})."
    assert school.states(failed) == ["scheduled"]


def test_a_new_priority_for_all_that_match(school: School) -> None:
    ids = school.put_many([NewJob("reward.points", campus="oak") for _ in range(2)])
    root = school.visitor("root")
    given = {"action": "prioritise", "priority": "urgent", "which": "all", "q": "state:queued"}
    assert previewed(root.post("/jobs/confirm", **given).text) == {"queued": 2}
    assert root.done("/jobs/do", **given) == "2 jobs given another priority."
    assert school.sql("SELECT DISTINCT priority FROM theon.jobs") == [(2,)]
    assert len(ids) == 2


def test_a_retry_that_a_need_forbids_is_refused_with_the_reason(school: School) -> None:
    need = school.put()
    waiting = school.put("system.tidy", after=[need])
    root = school.visitor("root")
    root.done(f"/jobs/{need}/cancel")
    assert school.states(need, waiting) == ["cancelled", "failed"]
    said = root.done("/jobs/do", action="retry", which="all", q="kind:system.tidy")
    assert f"1 refused: it needs job {need}, which is cancelled (job {waiting})." in said
    answer = root.post("/jobs/do", action="retry", which="ticked", id=waiting)
    assert answer.status_code == 400
    assert f"needs job {need}, which is cancelled" in answer.text
    assert school.states(waiting) == ["failed"]


@pytest.mark.parametrize(
    "fields",
    [
        {"action": "explode", "which": "all"},
        {"action": "cancel", "which": "ticked"},
        {"action": "cancel", "which": "ticked", "id": "1; DROP"},
        {"action": "cancel", "which": "ticked", "id": "-1"},
        {"action": "prioritise", "which": "all", "priority": "soon"},
        {"action": "prioritise", "which": "all"},
        {"action": "cancel", "which": "all", "q": "state:fialed"},
        {"action": "cancel", "which": "all", "q": 'owner:"x'},
    ],
    ids=["action", "none ticked", "no id", "negative", "priority", "no priority", "state", "quote"],
)
def test_a_form_for_many_that_means_nothing_is_refused(
    school: School, fields: dict[str, Any]
) -> None:
    job_id = school.put()
    root = school.visitor("root")
    for path in ("/jobs/confirm", "/jobs/do"):
        assert root.post(path, **fields).status_code == 400
    assert school.states(job_id) == ["queued"]


# -- run by hand ---------------------------------------------------------------------------


def test_the_form_has_the_arguments_that_the_kind_takes(school: School) -> None:
    root = school.visitor("root")
    listed = root.see("/jobs/run")
    assert all(f'href="/jobs/run?kind={name}"' in listed for name in KINDS)
    html = unescape(root.see("/jobs/run?kind=import.rows"))
    assert "path: str, limit: int = 10" in html
    assert '"path": null,\n  "limit": 10,\n  "tags": []' in html
    assert '"course": 1' in unescape(root.see("/jobs/run?kind=reward.points"))
    assert root.get("/jobs/run?kind=import.nothing").status_code == 404


def test_a_job_runs_by_hand_once_however_often_the_form_is_sent(school: School) -> None:
    oak = school.visitor("oak-admin")
    form = oak.see("/jobs/run?kind=import.rows")
    once = re.search(r'name="once" value="([^"]+)"', form)
    assert once is not None
    given = {
        "kind": "import.rows", "campus": "oak", "priority": "urgent", "once": once[1],
        "arguments": '{"path": "b.csv"}',
    }  # fmt: skip
    first, second = oak.post("/jobs/run", **given), oak.post("/jobs/run", **given)
    assert first.headers["location"] == second.headers["location"]
    (job,) = school.sql("SELECT kind, owner, priority, arguments FROM theon.jobs")
    assert job.owner.startswith("oak-admin (account:")
    assert (job.kind, job.priority) == ("import.rows", 2)
    assert job.arguments == {"path": "b.csv", "limit": 10, "tags": []}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"path": ', "arguments are not JSON"),
        ('{"path": 5}', "path: Input should be a valid string"),
        ("{}", "path: Field required"),
        ("[1]", "arguments do not fit"),
        ('{"path": "a\\u0000"}', "has a NUL character"),
        ('{"path": "\\ud800"}', "half of one"),
        ('{"path": "a", "limit": NaN}', "has NaN"),
        ('{"path": "a", "limit": 1e999}', "too large"),
        ('{"path": "a", "tags": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ('{"path": "a", "limit": ' + "9" * 5000 + "}", "too long"),
    ],
    ids=["cut", "type", "missing", "list", "nul", "half", "nan", "infinite", "deep", "digits"],
)
def test_arguments_that_do_not_fit_are_kept_and_the_fault_is_told(
    school: School, arguments: str, said: str
) -> None:
    root = school.visitor("root")
    answer = root.post(
        "/jobs/run", kind="import.rows", campus="elm", priority="low", arguments=arguments
    )
    assert answer.status_code == 400
    html = unescape(answer.text)
    assert said in html
    assert f">{arguments}</textarea>" in html
    assert '<option value="elm" selected>' in html
    assert "<option selected>low</option>" in html
    assert school.sql("SELECT count(*) FROM theon.jobs")[0][0] == 0


def test_only_a_system_administrator_chooses_the_arguments_of_a_system_job(school: School) -> None:
    given = {"kind": "system.tidy", "campus": "oak", "arguments": '{"keep_days": 1}'}
    oak = school.visitor("oak-admin")
    answer = oak.post("/jobs/run", **given)
    assert answer.status_code == 403
    assert "only a system administrator" in answer.text.lower()
    failed = school.failed(kind="system.tidy")
    assert oak.post(f"/jobs/{failed}/retry", arguments='{"keep_days": 1}').status_code == 403
    assert school.states(failed) == ["failed"]
    oak.done(f"/jobs/{failed}/retry")
    assert school.states(failed) == ["scheduled"]
    school.visitor("root").done("/jobs/run", **given)


# -- one job -------------------------------------------------------------------------------


def test_a_page_tells_the_whole_life_of_a_job(school: School) -> None:
    """Attempts with outcome, memory and processor; error and stack; result; history; audit."""
    job_id, message = school.running(kind="import.rows", arguments={"path": "life.csv"})
    school.end([message], "failed", transient=True, error="line 7 is bad", error_kind="ValueError",
               stack="File life.py", peak_memory_mb=321.0, cpu_s=2.5)  # fmt: skip
    root = school.visitor("root")
    html = root.see(f"/jobs/{job_id}")
    for words in (
        "scheduled",
        "line 7 is bad",
        "File life.py",
        "321 MB",
        "2.5 s",
        "life.csv",
        "a worker began it",
    ):
        assert words in html
    root.done(f"/jobs/{job_id}/prioritise", priority="high")
    school.end(school.begin(job_id), result={"rows": 12345})
    html = root.see(f"/jobs/{job_id}")
    assert "12345" in html
    assert len(re.findall(r'<rect class="life-running" x=', html)) == 2
    assert re.search(r'<rect class="life-completed" x="997\.0"', html)
    assert "<td>root (account:1)</td><td>prioritise</td>" in html
    assert "nothing is left to do" in html


def test_a_retry_with_other_arguments_drops_the_checkpoint(school: School) -> None:
    """The same arguments keep it; those that do not fit are shown again with the reason."""
    job_id, message = school.running(kind="import.rows")
    school.sql("UPDATE theon.jobs SET checkpoint = '{\"row\": 5}' WHERE id = :i", i=job_id)
    school.end([message], "failed", error="broke")
    oak = school.visitor("oak-admin")
    bad = oak.post(f"/jobs/{job_id}/retry", arguments='{"path": 7}')
    assert bad.status_code == 400
    assert "path: Input should be a valid string" in unescape(bad.text)
    assert '>{"path": 7}</textarea>' in unescape(bad.text)
    assert school.states(job_id) == ["failed"]
    shown = re.search(
        r'<textarea id="arguments"[^>]*>(.*?)</textarea>', oak.see(f"/jobs/{job_id}"), re.DOTALL
    )
    assert shown is not None
    assert (
        oak.done(f"/jobs/{job_id}/retry", arguments=unescape(shown[1])) == "1 job to be run again."
    )
    assert school.sql("SELECT checkpoint FROM theon.jobs")[0][0] == {"row": 5}
    school.end(school.begin(job_id), "failed", error="broke")
    oak.done(f"/jobs/{job_id}/retry", arguments='{"path": "new.csv"}')
    (job,) = school.sql("SELECT arguments, checkpoint, state FROM theon.jobs")
    assert job.arguments["path"] == "new.csv"
    assert (job.checkpoint, job.state) == (None, "scheduled")


def test_an_action_that_does_not_fit_says_so(school: School) -> None:
    job_id = school.completed()
    root = school.visitor("root")
    assert (
        root.done(f"/jobs/{job_id}/cancel")
        == f"0 jobs cancelled. 1 skipped: it is completed (job {job_id})."
    )
    assert root.post(f"/jobs/{job_id}/prioritise", priority="soon").status_code == 400
    assert root.post(f"/jobs/{job_id}/explode").status_code == 404
    assert school.states(job_id) == ["completed"]


def test_a_job_whose_code_is_gone_is_shown_and_can_be_retried(school: School) -> None:
    job_id = school.failed()
    school.sql("UPDATE theon.jobs SET kind = 'gone.kind' WHERE id = :i", i=job_id)
    root = school.visitor("root")
    html = root.see(f"/jobs/{job_id}")
    assert "No code of this installation declares the kind gone.kind" in html
    assert "Retry with other arguments" not in html
    root.done(f"/jobs/{job_id}/retry")
    assert school.states(job_id) == ["scheduled"]


def test_what_was_done_is_said_once(school: School) -> None:
    """What the script asks for to be up to date does not take it from who reads the page."""
    root = school.visitor("root")
    school.put()
    answer = root.post("/jobs/do", action="cancel", which="all", q="")
    to = answer.headers["location"]
    assert "1 job cancelled." not in root.client.get(to, headers={"X-Live": "1"}).text
    assert "1 job cancelled." in root.see(to)
    assert "1 job cancelled." not in root.see(to)


def test_a_search_that_takes_too_long_is_refused_in_words(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(conn: Any, *_: Any, **__: Any) -> Any:
        conn.exec_driver_sql("SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)")

    monkeypatch.setattr("theon.web.jobs_list.list_jobs", slow)
    answer = school.visitor("root").get("/jobs")
    assert answer.status_code == 503
    assert "took too long" in answer.text


# -- words ---------------------------------------------------------------------------------

_VALUES = st.lists(
    st.text(min_size=1, max_size=8).filter(
        lambda s: s == s.strip() and s and not set(s) & set('",\0') and s.isprintable()
    ),
    max_size=2, unique=True,
).map(tuple)  # fmt: skip
_FILTERS = st.builds(
    JobFilter,
    states=st.lists(st.sampled_from(STATES), max_size=2, unique=True).map(tuple),
    kinds=_VALUES,
    owners=_VALUES,
    campuses=_VALUES,
    created_from=st.none() | st.datetimes(timezones=st.just(UTC)),
    ended_before=st.none() | st.datetimes(timezones=st.just(UTC)),
    text=st.text(max_size=12).filter(lambda s: not set(s) & set('"\0') and s.isprintable()),
)


@given(_FILTERS)
def test_a_filter_in_words_is_the_same_filter(chosen: JobFilter) -> None:
    assert parse_search(words_of(chosen)) == chosen


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"), (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"),
        (200, "3 min 20 s"), (7500, "2 h 5 min"), (352_800, "4 d 2 h"), (-1, "0.0 s"),
    ],
    ids=str,
)  # fmt: skip
def test_durations_are_in_units_that_fit(seconds: float | None, said: str) -> None:
    assert duration(seconds) == (said if seconds is not None else "\N{EN DASH}")


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (Remaining(60, 120, "progress"), "1 min to 2 min left"),
        (Remaining(0, 30, "history"), "up to 30 s left"),
        (Remaining(0, 0, "history"), "longer than such jobs usually take"),
        (Remaining(0, 0.2, "progress"), "done in a moment"),
        (Remaining(20, 20.2, "progress"), "20 s left"),
    ],
    ids=["range", "open", "late", "soon", "same"],
)
def test_time_that_remains_is_a_range(left: Remaining, said: str) -> None:
    assert time_left(left) == said


def test_megabytes_become_gigabytes() -> None:
    assert [megabytes(n) for n in (None, 12.4, 1536)] == ["\N{EN DASH}", "12 MB", "1.5 GB"]


def test_nothing_typed_is_no_arguments() -> None:
    assert read_json(" \n") == {}
    with pytest.raises(InputError, match="not JSON"):
        read_json("{'a': 1}")
