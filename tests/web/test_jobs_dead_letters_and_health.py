"""Pages of dead letters and of health: the ledger's figures, of the reader's campuses only."""

import re

import pytest
from jobs_overviews_site import Pages, figure, part, row, words
from jobs_site import told

from theon.jobs import figures
from theon.settings import Settings
from theon.store.engine import Store
from theon.web.jobs_base import duration


@pytest.fixture
def pages(store: Store, store_settings: Settings) -> Pages:
    return Pages(store, store_settings)


@pytest.fixture
def busy(pages: Pages) -> Pages:
    pages.fill()
    return pages


# -- dead letters --------------------------------------------------------------------------


def opened(pages: Pages, name: str, kind: str, error: str) -> tuple[str, dict[str, str]]:
    """The page of a group, and what its form sends."""
    html = pages.visitor(name).see(f"/dead-letters?kind={kind}&error={error}")
    form = part(html, '<form method="post" class="apart">', "</form>")
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
    fields.pop("csrf_token")
    return html, fields


@pytest.mark.parametrize(("name", "campus"), [("ada", None), ("olga", "oak"), ("eli", "elm")])
def test_groups_are_those_of_the_ledger_in_the_scope_of_the_reader(
    busy: Pages, name: str, campus: str | None
) -> None:
    expected = busy.ledger.do(
        "SELECT kind, coalesce(error_kind, 'no class of error'), count(*)::text"
        " FROM theon.jobs AS j JOIN theon.campuses AS c ON c.id = j.campus_id"
        " WHERE state = 'failed' AND (CAST(:campus AS text) IS NULL OR c.slug = :campus)"
        " GROUP BY 1, 2",
        campus=campus,
    )
    table = part(
        busy.visitor(name).see("/dead-letters"), '<table class="stack" id="groups"', "</table>"
    )
    rows = [
        tuple(words(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL)[:3])
        for line in table.split("<tr>")[2:]
    ]
    assert sorted(rows) == sorted(tuple(found) for found in expected)


def test_a_group_opens_to_its_jobs_and_leads_to_the_list(busy: Pages) -> None:
    html, _ = opened(busy, "ada", "import.slow", "LineError")
    ids = busy.ledger.do(
        "SELECT id FROM theon.jobs WHERE state = 'failed' AND kind = 'import.slow'"
        " AND error_kind = 'LineError' ORDER BY id DESC"
    )
    table = part(html, 'id="group-jobs"', "</table>")
    assert [(int(found),) for found in re.findall(r'href="/jobs/(\d+)"', table)] == ids
    link = "/jobs?q=state%3Afailed+kind%3Aimport.slow+error%3ALineError"
    assert link in html
    listed = busy.visitor("ada").see(link)
    assert all(f"/jobs/{job_id}" in listed for (job_id,) in ids)


def test_a_group_is_retried_with_its_note_on_record(busy: Pages) -> None:
    _, fields = opened(busy, "ada", "import.slow", "LineError")
    said = busy.visitor("ada").done("/dead-letters/retry", note="the line is mended", **fields)
    assert said == "2 jobs are to run again."
    states = busy.ledger.do(
        "SELECT DISTINCT state FROM theon.jobs WHERE reason LIKE 'retried by ada%'"
    )
    assert [state for (state,) in states] == ["scheduled"]
    (detail,) = busy.ledger.do("SELECT detail FROM theon.job_audit WHERE action = 'retry'")[0]
    assert (detail["reason"], detail["count"]) == ("the line is mended", 2)
    html = busy.visitor("ada").see("/dead-letters?kind=import.slow&error=LineError")
    assert "None of them is a dead letter any more" in html


def test_a_group_without_a_class_of_error_is_discarded_and_nothing_else(busy: Pages) -> None:
    before = busy.ledger.one("SELECT count(*) FROM theon.jobs WHERE state = 'failed'")
    _, fields = opened(busy, "ada", "import.slow", "")
    said = busy.visitor("ada").done("/dead-letters/discard", note="of no use", **fields)
    assert said == "1 job is discarded."
    assert busy.ledger.one("SELECT count(*) FROM theon.jobs WHERE state = 'failed'") == before - 1
    reason = busy.ledger.one("SELECT reason FROM theon.jobs WHERE state = 'cancelled'")
    assert reason.startswith("discarded by ada (account:")
    assert reason.endswith(": of no use")


def test_what_fails_after_the_page_was_shown_is_not_touched(busy: Pages) -> None:
    """One acts on what one has seen."""
    _, fields = opened(busy, "ada", "import.slow", "LineError")
    (late,) = busy.ledger.ran("import.slow", {"failed": 1}, seconds=1)
    busy.visitor("ada").done("/dead-letters/discard", note="n", **fields)
    left = busy.ledger.do(
        "SELECT id FROM theon.jobs WHERE state = 'failed' AND kind = 'import.slow'"
        " AND error_kind = 'LineError'"
    )
    assert left == [(late,)]


def test_a_campus_administrator_acts_on_the_dead_letters_of_their_campus_only(
    busy: Pages,
) -> None:
    busy.ledger.ran("test.count", {"failed": 2}, seconds=1, campus="oak")
    html, fields = opened(busy, "olga", "test.count", "LineError")
    assert "2 dead letters" in words(html)
    assert (
        busy.visitor("olga").done("/dead-letters/discard", note="n", **fields).startswith("2 jobs")
    )
    left = busy.ledger.do(
        "SELECT c.slug, count(*) FROM theon.jobs AS j JOIN theon.campuses AS c"
        " ON c.id = j.campus_id WHERE state = 'failed' AND kind = 'test.count' GROUP BY 1"
    )
    assert left == [("elm", 3)]
    assert busy.audit()[-1][1:] == ("discard", "2 jobs", "oak")


@pytest.mark.parametrize(
    "change",
    [{"note": "  "}, {"until": "yesterday"}, {"until": "2026-01-01"}, {"kind": "import"}],
    ids=["no note", "no moment", "no zone", "a room"],
)
def test_an_action_that_says_too_little_or_too_much_changes_nothing(
    busy: Pages, change: dict[str, str]
) -> None:
    _, fields = opened(busy, "ada", "import.slow", "LineError")
    answer = busy.visitor("ada").post("/dead-letters/discard", **{"note": "n", **fields, **change})
    assert answer.status_code == 400
    assert busy.ledger.do("SELECT FROM theon.jobs WHERE state = 'cancelled'") == []


# -- health --------------------------------------------------------------------------------


def card(html: str, target: str) -> str:
    return words(part(html, f'data-target="{target}"', "</li>"))


def test_the_five_targets_have_figure_limit_and_verdict_in_words(busy: Pages) -> None:
    html = busy.visitor("ada").see("/health-of-jobs")
    completed, dead = busy.ledger.do(
        "SELECT count(*) FILTER (WHERE state = 'completed'),"
        " count(*) FILTER (WHERE state = 'failed') FROM theon.jobs"
    )[0]
    tried, bad, mean_s = busy.ledger.do(
        "SELECT count(*), count(*) FILTER (WHERE outcome <> 'completed'),"
        " avg(extract(epoch FROM ended_at - started_at)) FILTER (WHERE outcome = 'completed')"
        " FROM theon.job_attempts"
    )[0]
    completion = card(html, "completion")
    assert completion.startswith(f"Completion {100 * completed / (completed + dead):.1f}%")
    assert "✗ Not met. Target: above 95%" in completion
    assert card(html, "failures").startswith(f"Failures {100 * bad / tried:.1f}%")
    assert "✗ Not met. Target: below 5%" in card(html, "failures")
    assert card(html, "mean_run").startswith(f"Mean run {duration(float(mean_s))} ✓ Met.")
    assert "✓ Met. Target: below 70%" in card(html, "utilisation")
    assert "Target: above 99%" in card(html, "uptime")


def test_the_bottleneck_is_named_with_what_to_do(busy: Pages) -> None:
    html = busy.visitor("ada").see("/health-of-jobs")
    said = words(part(html, 'id="bottleneck"', "</section>"))
    assert "No worker takes jobs of the queue reports, and 4 jobs wait." in said
    assert "Start one: theon worker --queues reports" in said
    olga = words(part(busy.visitor("olga").see("/health-of-jobs"), 'id="bottleneck"', "</section>"))
    assert "No worker takes jobs of the queue reports, and 4 jobs wait." in olga
    busy.ledger.add_worker("reporter", queues="{reports}")
    olga = words(part(busy.visitor("olga").see("/health-of-jobs"), 'id="bottleneck"', "</section>"))
    assert "The queue imports is paused in district by its administrators" in olga


def test_kinds_tell_their_runs_waits_failures_and_memory(busy: Pages) -> None:
    html = busy.visitor("ada").see("/health-of-jobs")
    for kind in ("test.count", "import.slow"):
        found = busy.ledger.do(
            "SELECT count(*), count(*) FILTER (WHERE outcome = 'failed'),"
            " count(*) FILTER (WHERE outcome = 'lost'),"
            " percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at"
            "  - started_at)) FILTER (WHERE outcome = 'completed'),"
            " percentile_cont(0.95) WITHIN GROUP (ORDER BY waited_s)"
            " FROM theon.job_attempts WHERE kind = :kind",
            kind=kind,
        )[0]
        shown = row(html, "kind", kind)
        told = [figure(shown, name) for name in ("attempts", "failed", "lost")]
        assert told == [str(number) for number in found[:3]]
        assert figure(shown, "run-p50") == duration(float(found[3]))
        assert figure(shown, "wait-p95") == duration(float(found[4]))
        assert figure(shown, "memory") == "64 MB"
    slowest = words(part(html, 'id="slowest"', "</ol>"))
    assert slowest.startswith("import.slow p95 1 min 35 s")
    failing = words(part(html, 'id="failing"', "</ol>"))
    assert failing.startswith("import.slow 4 of 10, mostly LineError")


def test_the_chart_stands_for_every_attempt_that_ended(busy: Pages) -> None:
    html = busy.visitor("ada").see("/health-of-jobs")
    tried, bad = busy.ledger.do(
        "SELECT count(*), count(*) FILTER (WHERE outcome <> 'completed') FROM theon.job_attempts"
    )[0]
    chart = part(html, '<svg class="chart"', "</svg>")
    assert f"{tried} in all, {bad} of them failed or lost" in chart
    numbers = part(html, 'id="ended-numbers"', "</details>")
    cells = [int(n) for n in re.findall(r'<td class="figure">(\d+)</td>', numbers)]
    assert sum(cells) == tried


def test_a_window_of_a_day_has_what_an_hour_has_not(pages: Pages) -> None:
    pages.ledger.ran("test.count", {"completed": 2}, seconds=5, ago_s=7_200)
    visitor = pages.visitor("ada")
    assert "None ended in this window; a longer one may tell more" in visitor.see("/health-of-jobs")
    for window in ("day", "week"):
        html = visitor.see(f"/health-of-jobs?window={window}")
        assert figure(row(html, "kind", "test.count"), "attempts") == "2"
        assert f'window={window}" aria-current="page"' in html.replace("&amp;", "&")


@pytest.mark.parametrize(("name", "campus"), [("olga", "oak"), ("eli", "elm")])
def test_a_campus_administrators_dashboard_is_of_their_campus_only(
    busy: Pages, name: str, campus: str
) -> None:
    other = {"oak": "elm", "elm": "oak"}[campus]
    visitor = busy.visitor(name)
    html = visitor.see("/health-of-jobs")
    tried = busy.ledger.one(
        "SELECT count(*) FROM theon.job_attempts AS a JOIN theon.campuses AS c"
        " ON c.id = a.campus_id WHERE slug = :campus",
        campus=campus,
    )
    assert f'id="ended">{tried}<' in html
    assert other not in told(html)
    for target in ("utilisation", "uptime"):
        assert "Told for the whole district only" in card(html, target)
    for elsewhere in (other, "district", "nowhere"):
        answer = visitor.get(f"/health-of-jobs?campus={elsewhere}")
        assert answer.status_code == 400
        assert "data-kind" not in answer.text


def test_the_district_looks_at_one_campus_as_its_administrator_sees_it(busy: Pages) -> None:
    """And at all of them side by side."""
    ada, olga = busy.visitor("ada"), busy.visitor("olga")
    narrowed = ada.see("/health-of-jobs?campus=oak")
    own = olga.see("/health-of-jobs")
    assert part(narrowed, 'id="kinds"', "</table>") == part(own, 'id="kinds"', "</table>")
    html = ada.see("/health-of-jobs")
    for campus in ("oak", "elm"):
        found = busy.ledger.do(
            "SELECT count(*) FILTER (WHERE outcome = 'completed'),"
            " count(*) FILTER (WHERE outcome <> 'completed') FROM theon.job_attempts AS a"
            " JOIN theon.campuses AS c ON c.id = a.campus_id WHERE slug = :campus",
            campus=campus,
        )[0]
        shown = row(html, "campus", campus)
        assert (figure(shown, "completed"), figure(shown, "failed")) == tuple(map(str, found))


def test_figures_say_so_when_not_all_attempts_of_the_window_were_looked_at(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    for minutes in (5, 10, 50):
        pages.ledger.ran("test.count", {"completed": 2}, seconds=5, ago_s=60 * minutes)
    monkeypatch.setattr(figures, "ATTEMPTS_LOOKED_AT", 3)
    html = words(pages.visitor("ada").see("/health-of-jobs"))
    assert "only the latest are looked at" in html
