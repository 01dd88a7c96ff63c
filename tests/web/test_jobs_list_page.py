"""The page of all jobs: filters, counts, pages, actions for many, a run by hand."""

import re
from html import unescape
from typing import Any

import pytest
from jobs_site import KINDS, School, counts_of, previewed, rows_of
from sqlalchemy import event

from theon.jobs import admin
from theon.jobs.enqueue import NewJob
from theon.jobs.search import STATES

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
        "UPDATE theon.jobs SET started_at = started_at - interval '1 h' WHERE id = :i", i=job_id
    )
    root = school.visitor("root")
    for html in (root.see("/jobs"), root.see(f"/jobs/{job_id}")):
        assert '<progress max="120.0" value="30.0"' in html
        assert "reads rows" in html
        assert re.search(r"1 h 4\d min to 5 h 1\d min left", html)


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


@pytest.mark.parametrize("action", ["cancel", "retry", "discard", "prioritise"])
@pytest.mark.parametrize("state", STATES)
def test_each_action_is_shown_before_it_is_done_whatever_the_states(
    school: School, state: str, action: str
) -> None:
    """Also where nothing fits; and then there is nothing to confirm."""
    job_id = school.in_state(state)
    given = {"action": action, "priority": "low", "reason": "x", "q": f"state:{state}"}
    fits = state in admin.Action(action, priority="low").states
    root = school.visitor("root")
    for which in ("all", "ticked"):
        answer = root.post("/jobs/confirm", which=which, id=job_id, **given)
        assert answer.status_code == 200
        assert previewed(answer.text) == ({state: 1} if fits else {})
        assert ("Yes: " in answer.text) is fits
    changed = root.done("/jobs/do", which="ticked", id=job_id, **given)
    assert changed.startswith("1 job " if fits else "0 jobs ")


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
        {"action": "cancel", "which": "all", "until": "soon"},
    ],
    ids=[
        "action",
        "none ticked",
        "no id",
        "negative",
        "priority",
        "no priority",
        "state",
        "quote",
        "until",
    ],
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
        ("", "path: Field required"),
        ("[1]", "arguments do not fit"),
        ('{"path": "a\\u0000"}', "has a NUL character"),
        ('{"path": "\\ud800"}', "half of one"),
        ('{"path": "a", "limit": NaN}', "has NaN"),
        ('{"path": "a", "limit": 1e999}', "too large"),
        ('{"path": "a", "tags": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
        ('{"path": "a", "limit": ' + "9" * 5000 + "}", "too long"),
    ],
    ids=[
        "cut",
        "type",
        "missing",
        "nothing",
        "list",
        "nul",
        "half",
        "nan",
        "infinite",
        "deep",
        "digits",
    ],
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
