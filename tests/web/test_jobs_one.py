"""The page of one job: its life, what can be done to it, its timeline."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
from jobs_site import School

from theon.jobs import admin
from theon.jobs.query import Change
from theon.jobs.search import STATES
from theon.web.jobs_timeline import LANES_AT_MOST, timeline

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


ACTIONS = ("cancel", "retry", "discard", "prioritise")


@pytest.mark.parametrize("state", STATES)
def test_the_page_offers_what_fits_the_state(school: School, state: str) -> None:
    job_id = school.in_state(state)
    html = school.visitor("root").see(f"/jobs/{job_id}")
    assert f'data-state="{state}"' in html
    offered = {name for name in ACTIONS if f'action="/jobs/{job_id}/{name}"' in html}
    assert offered == {
        name for name in ACTIONS if state in admin.Action(name, priority="low").states
    }


@pytest.mark.parametrize("outcome", ["completed", "failed", "lost", "released", "cancelled"])
def test_every_way_that_an_attempt_may_end_is_shown(school: School, outcome: str) -> None:
    job_id, message = school.running()
    school.end([message], outcome, transient=True, reason="told why")
    html = school.visitor("root").see(f"/jobs/{job_id}")
    assert re.search(rf'<span class="state \w*">{outcome}</span>', html)
    assert "told why" in html


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


# -- the timeline --------------------------------------------------------------------------

START = datetime(2026, 3, 1, 8, tzinfo=UTC)


def steps(*given: tuple[float, str]) -> list[Change]:
    """Changes of state so many seconds after the start."""
    found: list[Change] = []
    for at_s, after in given:
        before = found[-1].after if found else None
        found.append(Change(START + timedelta(seconds=at_s), before, after, 0, 0, None, ""))
    return found


def drawn(history: list[Change], now_s: float) -> list[tuple[int, str, float, float]]:
    line = timeline(history, START + timedelta(seconds=now_s))
    assert line is not None
    return [(s.lane, s.state, s.x, s.width) for s in line.segments]


def test_a_lane_is_an_attempt_with_its_wait() -> None:
    history = steps((0, "queued"), (10, "dispatched"), (20, "running"), (50, "scheduled"),
                    (60, "queued"), (70, "dispatched"), (80, "running"))  # fmt: skip
    assert drawn(history, 100) == [
        (0, "queued", 0, 100), (0, "dispatched", 100, 100), (0, "running", 200, 300),
        (1, "scheduled", 500, 100), (1, "queued", 600, 100), (1, "dispatched", 700, 100),
        (1, "running", 800, 200),
    ]  # fmt: skip


def test_an_ended_job_takes_no_time_until_it_is_retried() -> None:
    """Its end is a mark; a discard stands beside it, a retry begins a lane."""
    ended = steps((0, "queued"), (60, "running"), (100, "failed"))
    assert drawn(ended, 10_000) == [
        (0, "queued", 0, 600), (0, "running", 600, 400), (0, "failed", 997, 3),
    ]  # fmt: skip
    again = steps(
        (0, "queued"), (40, "running"), (50, "failed"), (90, "scheduled"), (100, "failed")
    )
    assert [(lane, state) for lane, state, _, _ in drawn(again, 200)] == [
        (0, "queued"), (0, "running"), (0, "failed"), (1, "scheduled"), (1, "failed"),
    ]  # fmt: skip
    discarded = steps((0, "queued"), (40, "failed"), (90, "cancelled"))
    assert {lane for lane, *_ in drawn(discarded, 200)} == {0}


def test_very_many_attempts_are_drawn_from_the_end() -> None:
    history = steps(*((n, "running" if n % 2 else "scheduled") for n in range(200)))
    line = timeline(history, START + timedelta(seconds=200))
    assert line is not None
    assert (line.lanes, line.left_out) == (LANES_AT_MOST, 100 - LANES_AT_MOST)
    assert all(s.x >= 0 and s.x + s.width <= 1000.05 for s in line.segments)
    assert timeline([], START) is None


def test_a_job_without_a_moment_is_drawn_as_well() -> None:
    assert drawn(steps((0, "queued"), (0, "cancelled")), 5) == [
        (0, "queued", 0, 3), (0, "cancelled", 0, 3),
    ]  # fmt: skip
