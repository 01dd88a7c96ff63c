"""Pages of queues, workers and schedules: the ledger's figures, of the reader's campuses only."""

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from jobs_ledger_of_a_day import EVIL
from jobs_overviews_site import PAGES, Pages, figure, part, row, words
from jobs_site import told

from theon.jobs.figures import WorkerFigures
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope
from theon.web.jobs_base import duration
from theon.web.jobs_queues import describe_worker

POSTS = (
    "/queues/pause",
    "/queues/resume",
    "/schedules/pause",
    "/schedules/resume",
    "/schedules/run",
    "/dead-letters/retry",
    "/dead-letters/discard",
)
TOUCHED = """
SELECT (SELECT count(*) FROM theon.job_audit), (SELECT count(*) FROM theon.job_pauses),
    (SELECT count(*) FROM theon.job_schedules WHERE paused_at IS NOT NULL),
    (SELECT count(*) FROM theon.jobs WHERE state = 'failed'), (SELECT count(*) FROM theon.jobs)"""


@pytest.fixture
def pages(store: Store, store_settings: Settings) -> Pages:
    return Pages(store, store_settings)


@pytest.fixture
def busy(pages: Pages) -> Pages:
    pages.fill()
    return pages


# -- who -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_whoever_is_not_signed_in_is_led_to_sign_in_and_back(pages: Pages, path: str) -> None:
    answer = pages.stranger().get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/sign-in?next={path}")


@pytest.mark.parametrize("name", ["tom", "lea"])
def test_teachers_and_learners_see_none_of_it_and_change_nothing(busy: Pages, name: str) -> None:
    visitor = busy.visitor(name)
    before = busy.ledger.do(TOUCHED)
    for path in PAGES:
        assert visitor.get(path).status_code == 403
    for path in POSTS:
        assert visitor.post(path, what="kind:test.count", name="test.hourly").status_code == 403
    assert busy.ledger.do(TOUCHED) == before


@pytest.mark.parametrize("path", POSTS)
def test_a_form_that_no_page_of_ours_sent_changes_nothing(busy: Pages, path: str) -> None:
    """Neither without the proof nor from another site."""
    visitor = busy.visitor("ada")
    before = busy.ledger.do(TOUCHED)
    fields = {
        "what": "queue:test", "minutes": "", "name": "test.hourly", "kind": "test.count",
        "error": "LineError", "note": "n", "until": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    assert visitor.post(path, proven=False, **fields).status_code == 403
    proof = {"csrf_token": visitor.client.cookies["theon_csrf"]}
    elsewhere = {"Origin": "https://elsewhere.example"}
    answer = visitor.client.post(path, data={**fields, **proof}, headers=elsewhere)
    assert answer.status_code == 403
    assert busy.ledger.do(TOUCHED) == before


def test_a_service_reads_the_pages_and_gets_no_buttons(busy: Pages) -> None:
    visitor = busy.visitor("sam")
    for path in PAGES:
        html = visitor.see(path)
        assert html.count("<form") == 1  # to sign out
    for path in POSTS:
        assert visitor.post(path, what="kind:test.count").status_code == 403


@pytest.mark.parametrize("name", ["ada", "olga"])
def test_nothing_that_somebody_wrote_becomes_markup(busy: Pages, name: str) -> None:
    """Names, reasons, errors and operations are shown as text; the pages have no inline code."""
    visitor = busy.visitor(name)
    seen = ""
    for path in (*PAGES, "/dead-letters?kind=import.slow&error=LineError"):
        html = visitor.see(path)
        assert EVIL not in html
        assert re.search(r"<[^>]*\s(style|on\w+)=", html) is None
        seen += html
    assert seen.count("&lt;img src=x onerror=alert(1)&gt;") >= 3


@pytest.mark.parametrize("path", PAGES)
def test_what_is_empty_says_what_would_stand_there_and_why_it_does_not(
    pages: Pages, path: str
) -> None:
    html = words(pages.visitor("ada").see(path))
    assert "would stand here" in html
    assert re.search(r"\b(None|no|No|Nothing|none|None of)\b", html)


# -- queues --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "campus"), [("ada", None), ("olga", "oak"), ("eli", "elm")])
def test_depths_are_the_ledgers_in_the_scope_of_the_reader(
    busy: Pages, name: str, campus: str | None
) -> None:
    html = busy.visitor(name).see("/queues")
    for queue in ("test", "imports", "reports"):
        shown = row(html, "queue", queue)
        for state in ("queued", "scheduled", "dispatched", "running", "failed"):
            expected = busy.ledger.one(
                "SELECT count(*) FROM theon.jobs AS j JOIN theon.campuses AS c"
                " ON c.id = j.campus_id WHERE j.queue = :queue AND j.state = :state"
                " AND (CAST(:campus AS text) IS NULL OR c.slug = :campus)",
                queue=queue,
                state=state,
                campus=campus,
            )
            assert figure(shown, state, mark="state").split()[0] == str(expected)
    total = busy.ledger.one(
        "SELECT count(*) FROM theon.jobs AS j JOIN theon.campuses AS c ON c.id = j.campus_id"
        " WHERE state = 'queued' AND (CAST(:campus AS text) IS NULL OR c.slug = :campus)",
        campus=campus,
    )
    assert f'id="total-queued">{total}<' in html


def test_rates_and_waits_are_those_of_the_last_hour(busy: Pages) -> None:
    shown = row(busy.visitor("ada").see("/queues"), "queue", "test")
    ended, p50_s, p95_s = busy.ledger.do(
        "SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY a.waited_s),"
        " percentile_cont(0.95) WITHIN GROUP (ORDER BY a.waited_s)"
        " FROM theon.job_attempts AS a JOIN theon.jobs AS j ON j.id = a.job_id"
        " WHERE j.queue = 'test' AND a.ended_at > clock_timestamp() - interval '1 hour'"
    )[0]
    assert figure(shown, "rate") == f"{ended / 60:.1f}"
    assert (figure(shown, "p50"), figure(shown, "p95")) == (duration(p50_s), duration(p95_s))


def test_a_queue_with_waiting_jobs_and_no_worker_says_so(busy: Pages) -> None:
    """Whoever reads it, although not everybody sees the workers."""
    for name in ("ada", "olga"):
        html = busy.visitor(name).see("/queues")
        assert "no worker takes it" in words(row(html, "queue", "reports"))
        assert "open" in words(row(html, "queue", "test"))
    assert "open 2 workers" in words(row(busy.visitor("ada").see("/queues"), "queue", "test"))


def test_a_queue_is_paused_with_reason_and_end_and_resumed_both_on_record(pages: Pages) -> None:
    visitor = pages.visitor("ada")
    said = visitor.done(
        "/queues/pause", what="queue:test", campus="district", reason=EVIL, minutes="60"
    )
    assert "The queue test is paused for 1 hour" in said
    html = visitor.see("/queues")
    assert "paused" in words(row(html, "queue", "test"))
    listed = words(part(html, 'id="pauses"', "</table>"))
    assert "queue test district, so every campus ada (account:" in listed
    assert EVIL in listed
    left_s = pages.ledger.one(
        "SELECT extract(epoch FROM until - clock_timestamp())::float8 FROM theon.job_pauses"
    )
    assert 3_500 < left_s <= 3_600
    assert "goes on" in visitor.done("/queues/resume", what="queue:test", campus="district")
    assert pages.ledger.do("SELECT FROM theon.job_pauses") == []
    actor = pages.audit()[0][0]
    assert re.fullmatch(r"ada \(account:\d+\)", actor)
    assert pages.audit() == [
        (actor, "pause", "queue test", "district"),
        (actor, "resume", "queue test", "district"),
    ]


def test_the_button_of_a_queue_pauses_it_until_somebody_resumes_it(pages: Pages) -> None:
    """It sends what its form holds, and asks first."""
    visitor = pages.visitor("ada")
    form = part(row(visitor.see("/queues"), "queue", "test"), "<form", "</form>")
    assert "data-confirm=" in form
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
    fields.pop("csrf_token")
    visitor.done("/queues/pause", **fields)
    assert pages.ledger.do("SELECT value, until FROM theon.job_pauses") == [("test", None)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"what": "queue:nowhere", "minutes": ""}, "There is no queue"),
        ({"what": "galaxy:all", "minutes": ""}, "cannot be paused"),
        ({"what": "kind:test.count", "minutes": "7"}, "no duration"),
        ({"what": "kind:test.count", "campus": "ash", "minutes": ""}, "There is no campus"),
        ({}, "cannot be paused"),
    ],
    ids=["queue", "subject", "minutes", "campus", "nothing"],
)
def test_a_pause_that_cannot_be_is_refused_with_what_is_wrong(
    pages: Pages, fields: dict[str, str], said: str
) -> None:
    answer = pages.visitor("ada").post("/queues/pause", **fields)
    assert answer.status_code == 400
    assert said.lower() in words(answer.text).lower()
    assert pages.ledger.do("SELECT FROM theon.job_pauses") == []


def test_a_campus_administrator_pauses_kinds_and_jobs_of_their_own_campus_only(
    pages: Pages,
) -> None:
    """Queues are shared: they belong to the district's people."""
    olga = pages.visitor("olga")
    olga.done("/queues/pause", what="kind:test.count", campus="oak", minutes="15")
    olga.done("/queues/pause", what="campus:oak", campus="", minutes="")
    assert olga.post("/queues/pause", what="queue:test", campus="oak").status_code == 403
    for fields in ({"what": "kind:test.count", "campus": "elm"}, {"what": "campus:elm"}):
        assert olga.post("/queues/pause", minutes="", **fields).status_code == 400
    assert olga.post("/queues/pause", what="campus:district", minutes="").status_code == 400
    html = olga.see("/queues")
    assert "queue:test" not in html
    assert "elm" not in told(html)
    assert "paused in oak" in words(row(html, "queue", "test"))
    assert [(line[1], line[2], line[3]) for line in pages.audit()] == [
        ("pause", "kind test.count", "oak"), ("pause", "campus oak", "oak"),
    ]  # fmt: skip
    eli = pages.visitor("eli")
    assert eli.post("/queues/resume", what="kind:test.count", campus="oak").status_code == 400
    assert len(pages.ledger.do("SELECT FROM theon.job_pauses")) == 2


def test_a_pause_further_up_is_told_to_whom_it_holds_and_they_cannot_end_it(busy: Pages) -> None:
    """A queue that the district paused is not open for a campus."""
    olga = busy.visitor("olga")
    html = olga.see("/queues")
    assert "paused in district" in words(row(html, "queue", "imports"))
    listed = words(part(html, 'id="pauses"', "</table>"))
    assert "queue imports district" in listed
    assert "ada" not in listed.partition("kind report.weekly")[0]
    assert "above your campus" in listed
    refused = olga.post("/queues/resume", what="queue:imports", campus="district")
    assert refused.status_code == 403
    busy.ledger.do("UPDATE theon.job_pauses SET subject = 'kind', value = 'import.slow'")
    refused = olga.post("/queues/resume", what="kind:import.slow", campus="district")
    assert refused.status_code == 400


# -- workers -------------------------------------------------------------------------------


def worker_card(html: str, name: str) -> str:
    return part(html, f'data-worker="{name}"', "</article>")


def test_workers_show_slots_memory_heartbeat_and_what_each_does(busy: Pages) -> None:
    html = busy.visitor("ada").see("/queues")
    busy_one = worker_card(html, "w-1")
    assert (figure(busy_one, "used"), figure(busy_one, "free")) == ("2", "2")
    ids = [
        i for (i,) in busy.ledger.do("SELECT id FROM theon.jobs WHERE worker = 'w-1' AND"
        " state = 'running'")
    ]  # fmt: skip
    assert len(ids) == 2
    assert all(f'href="/jobs/{job_id}"' in busy_one for job_id in ids)
    assert "812 MB of the worker; 5.3 GB free on its machine" in words(busy_one)
    assert "131% of one core" in words(busy_one)
    draining = worker_card(html, "w-2")
    assert (figure(draining, "used"), figure(draining, "free")) == ("1", "0")
    assert "draining: it begins nothing more" in words(draining)
    assert "silent for" in words(worker_card(html, "w-3"))
    gone = words(part(html, 'id="gone"', "</table>"))
    assert re.search(r"w-4 dead .* w-5 stopped", gone)


def test_a_workers_utilisation_is_the_time_its_slots_were_held(busy: Pages) -> None:
    held_s = busy.ledger.one(
        "SELECT (SELECT sum(extract(epoch FROM ended_at - started_at)) FROM theon.job_attempts"
        "  WHERE worker = 'w-1' AND ended_at > clock_timestamp() - interval '1 hour')::float8"
        " + (SELECT coalesce(sum(extract(epoch FROM clock_timestamp() - started_at)), 0)"
        "  FROM theon.jobs WHERE worker = 'w-1' AND state = 'running')::float8"
    )
    share = figure(worker_card(busy.visitor("ada").see("/queues"), "w-1"), "share")
    percent = float(share.partition("%")[0])
    assert percent == pytest.approx(100 * held_s / (1_800 * 4), abs=1.5)


@pytest.mark.parametrize("name", ["olga", "eli", "sam"])
def test_whoever_may_not_see_workers_reads_nothing_of_them(busy: Pages, name: str) -> None:
    visitor = busy.visitor(name)
    for path in PAGES:
        said = told(visitor.see(path))
        assert re.search(r"w-\d", said) is None
        assert "host-1" not in said
        assert "slots in use" not in said


def test_a_worker_is_asked_to_drain_after_a_question_and_on_record(busy: Pages) -> None:
    """One that drains already, or is silent for long, has no button."""
    visitor = busy.visitor("ada")
    html = visitor.see("/queues")
    assert re.findall(r'name="worker" value="([^"]*)"', html) == ["w-1", "w-3"]
    form = part(worker_card(html, "w-1"), '<form method="post" action="/queues/drain"', "</form>")
    assert "Drain the worker w-1? It begins nothing more" in form
    assert "w-1 is asked to drain" in visitor.done("/queues/drain", worker="w-1")
    assert "asked to drain" in words(worker_card(visitor.see("/queues"), "w-1"))
    assert busy.audit()[-1][1:] == ("drain", "worker w-1", "district")
    again = visitor.post("/queues/drain", worker="w-4")
    assert again.status_code == 400
    assert "is at work" in again.text
    assert busy.ledger.do("SELECT id FROM theon.job_workers WHERE drain_asked") == [("w-1",)]


def test_whoever_may_not_steer_workers_drains_none(busy: Pages) -> None:
    assert busy.visitor("olga").post("/queues/drain", worker="w-1").status_code == 403
    assert busy.visitor("ada").post("/queues/drain", proven=False, worker="w-1").status_code == 403
    assert busy.ledger.do("SELECT id FROM theon.job_workers WHERE drain_asked") == []


def seen_worker(state: str, heartbeat_age_s: float) -> WorkerFigures:
    return WorkerFigures(
        "w", "h", 1, "local", ("q",), state, 1, 0, datetime.now(UTC), heartbeat_age_s,
        None, None, None, (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "age_s", "said"),
    [
        ("running", 1.0, "working"),
        ("running", 9.0, "silent for 9 s"),
        ("draining", 1.0, "draining: it begins nothing more"),
        ("lost", 60.0, "dead: it has not been heard of, and its jobs went back"),
        ("stopped", 60.0, "stopped"),
    ],
    ids=["running", "silent", "draining", "lost", "stopped"],
)
def test_the_state_of_a_worker_is_told_in_words(state: str, age_s: float, said: str) -> None:
    assert describe_worker(seen_worker(state, age_s))[1] == said


# -- schedules -----------------------------------------------------------------------------


def schedule(html: str, name: str) -> str:
    return part(html, f'data-schedule="{name}"', "</section>")


def test_the_next_five_times_are_those_of_the_campus_and_of_utc(busy: Pages) -> None:
    def upcoming() -> tuple[datetime, ...]:
        with busy.store.transaction(Scope.district()) as conn:
            (state,) = busy.scheduler.upcoming(conn, name="test.nightly")
        return state.upcoming

    visitor, before = busy.visitor("ada"), upcoming()
    html = visitor.see("/schedules")
    nightly = schedule(html, "test.nightly")
    assert "At 02:00 every day, time of Asia/Kolkata" in words(nightly).replace(" ,", ",")
    night = row(nightly, "campus", "district")
    times = [datetime.fromisoformat(t) for t in re.findall(r'<time datetime="([^"]*)">', night)]
    shown = tuple(times[:5])
    assert shown in (before, upcoming())  # the first may have come while one looked
    for at in shown:
        local = at.astimezone(ZoneInfo("Asia/Kolkata"))
        assert f"{local:%a} {local.day} {local:%b %Y}, 02:00 IST" in night
    following = night.partition('data-label="Next"')[2].partition("</td>")[0]
    assert words(following).count("20:30 UTC on") == 5  # the last run stands in another cell
    hourly = row(schedule(html, "test.hourly"), "campus", "oak")
    assert len(re.findall(r"\d\d:15 (?:GMT|BST)</time>", hourly)) >= 5


def test_missed_runs_are_counted_and_marked(busy: Pages) -> None:
    html = busy.visitor("ada").see("/schedules")
    hourly = schedule(html, "test.hourly")
    for campus in ("district", "oak", "elm"):
        expected = busy.ledger.one(
            "SELECT sum(fire_times) FROM theon.job_schedule_runs AS r JOIN theon.campuses AS c"
            " ON c.id = r.campus_id WHERE schedule = 'test.hourly' AND outcome = 'missed'"
            " AND slug = :campus",
            campus=campus,
        )
        assert expected >= 5
        shown = row(hourly, "campus", campus)
        assert figure(shown, "missed") == f"⚠ {expected}"
        assert words(shown).count("missed: nothing was there to start it") >= 5
        assert 'class="missed"' in shown
    assert "missed in the last 30 days" in words(hourly)


def test_rules_and_the_job_of_the_last_run_are_told(busy: Pages) -> None:
    shown = schedule(busy.visitor("ada").see("/schedules"), "test.hourly")
    assert "of missed runs, the latest is made up for" in words(shown)
    assert "no run begins while the one before it runs" in words(shown)
    job_id = busy.ledger.one(
        "SELECT job_id FROM theon.job_schedule_runs AS r JOIN theon.campuses AS c"
        " ON c.id = r.campus_id WHERE job_id IS NOT NULL AND slug = 'oak'"
    )
    assert f'<a href="/jobs/{job_id}">' in row(shown, "campus", "oak")


def test_a_schedule_is_paused_and_resumed_in_one_campus_or_in_all(busy: Pages) -> None:
    visitor = busy.visitor("ada")
    assert visitor.done("/schedules/pause", name="test.hourly", campus="elm").endswith("in elm.")
    html = schedule(visitor.see("/schedules"), "test.hourly")
    assert "Nothing while it is paused: by ada" in words(row(html, "campus", "elm"))
    assert "paused" not in words(row(html, "campus", "oak"))
    said = visitor.done("/schedules/pause", name="test.hourly")
    assert "in 2 campuses" in said
    assert "in 3 campuses" in visitor.done("/schedules/resume", name="test.hourly")
    assert busy.ledger.one("SELECT count(*) FROM theon.job_schedules WHERE paused_by <> ''") == 0


def test_run_now_leads_to_its_job(busy: Pages) -> None:
    visitor = busy.visitor("olga")
    busy.ledger.do(
        "UPDATE theon.jobs SET state = 'cancelled' WHERE id IN"
        " (SELECT job_id FROM theon.job_schedule_runs)"
    )
    answer = visitor.post("/schedules/run", name="test.hourly", campus="oak")
    job_id = busy.ledger.one("SELECT max(id) FROM theon.jobs")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/jobs/{job_id}")
    again = visitor.post("/schedules/run", name="test.hourly", campus="oak")
    assert again.status_code == 409
    assert "former run has not ended" in words(again.text)
    assert "by hand" in row(visitor.see("/schedules"), "campus", "oak")


def test_a_campus_administrator_sees_and_steers_the_schedules_of_their_campus_only(
    busy: Pages,
) -> None:
    olga = busy.visitor("olga")
    html = olga.see("/schedules")
    assert re.findall(r'<tr data-campus="(\w+)"', html) == ["oak"]
    assert "test.nightly" not in html
    for path in ("/schedules/pause", "/schedules/resume", "/schedules/run"):
        assert olga.post(path, name="test.hourly", campus="elm").status_code == 400
        assert olga.post(path, name="test.nightly").status_code == 400
    olga.done("/schedules/pause", name="test.hourly")
    paused = busy.ledger.do(
        "SELECT c.slug FROM theon.job_schedules JOIN theon.campuses AS c ON c.id = campus_id"
        " WHERE paused_at IS NOT NULL"
    )
    assert paused == [("oak",)]


def test_the_ledger_has_all_that_these_pages_tell_of(busy: Pages) -> None:
    """Else the tests would look at nothing."""
    found = busy.ledger.do("SELECT DISTINCT state FROM theon.jobs")
    assert {"queued", "scheduled", "running", "completed", "failed"} <= {s for (s,) in found}
    assert busy.ledger.one("SELECT count(*) FROM theon.job_pauses") == 2
