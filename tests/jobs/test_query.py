"""Reading the ledger: newest first, the same whatever the page, fast however long, in scope."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from theon.errors import InputError
from theon.jobs import ledger, query, search
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message, Outcome, Progress
from theon.jobs.query import NoSuchJobError, Page, get_job, list_jobs, remaining
from theon.jobs.search import JobFilter, parse_search
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Count:
    """How far to count."""

    upto: int = 1


@job("test.count", queue="test", category="analytics")
def count(ctx: Any, args: Count) -> None:
    """Count."""


@job("import.rows", queue="imports", category="import")
def rows(ctx: Any, args: Count) -> None:
    """Import rows."""


KINDS = Kinds([count, rows])


def put(store: Store, *new: NewJob) -> list[int]:
    with store.transaction(DISTRICT) as conn:
        return enqueue_many(conn, KINDS, new)


def begin(store: Store, *ids: int) -> list[Message]:
    with store.transaction(DISTRICT) as conn:
        ledger.promote(conn)
        begun = ledger.start(conn, ledger.dispatch(conn, ids), "w")
    return sorted((a.message for a in begun), key=lambda message: message.job_id)


def end(store: Store, messages: Sequence[Message], outcome: str = "completed", **how: Any) -> None:
    with store.transaction(DISTRICT) as conn:
        given = [Outcome(m.job_id, m.token, outcome, transient=False, **how) for m in messages]
        ledger.finish(conn, given)


def listed(store: Store, words: str = "", scope: str = "district", **how: Any) -> list[int]:
    with store.transaction(Scope(scope)) as conn:
        return [j.id for j in list_jobs(conn, parse_search(words), **how).jobs]


# -- search --------------------------------------------------------------------------------


def test_words_become_a_filter() -> None:
    """Tokens by name; the rest is text; two values of one name mean either."""
    found = parse_search(
        "kind:import campus:north,south owner:115 state:pending state:failed lost it"
    )
    assert found == JobFilter(
        kinds=("import",), campuses=("north", "south"), owners=("115",),
        states=("queued", "failed"), text="lost it",
    )  # fmt: skip
    assert parse_search('owner:"Ada L" "http://x/y" KIND:a.b') == JobFilter(
        owners=("Ada L",), text="http://x/y", kinds=("a.b",)
    )
    assert parse_search("") == parse_search("  ") == JobFilter()


def test_a_span_has_both_its_days() -> None:
    """A day is the whole day; either end may be open; a time is a time."""
    day = datetime(2026, 3, 1, tzinfo=UTC)
    assert parse_search("created:2026-03-01") == JobFilter(
        created_from=day, created_before=day.replace(day=2)
    )
    assert parse_search("ended:2026-03-01..2026-03-31").ended_before == day.replace(month=4)
    assert parse_search("ended:..2026-03-01T08:00Z") == JobFilter(
        ended_before=day.replace(hour=8)
    )  # fmt: skip
    assert parse_search("created:2026-03-01..").created_before is None


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("knd:import", r"no token 'knd' \(did you mean kind\?\)"),
        ("http://x", "no token 'http'"),
        ("state:fialed", r"no state 'fialed' \(did you mean failed\?\)"),
        ("kind:", "kind: has no value"),
        ("kind:,", "kind: has no value"),
        ("created:..", "created: has no value"),
        ("created:yesterday", "'yesterday' is no date"),
        ("created:2026-02-30", "'2026-02-30' is no date"),
        ("created:9999-12-31", "'9999-12-31' is no date"),
        ('owner:"Ada', "a double quote is opened"),
        ("a\0b", "text has a NUL"),
        ("owner:a\0b", "owners has a NUL"),
        ("half \ud800", "or half of one"),
    ],
)
def test_words_that_mean_nothing_are_refused_with_what_there_is(words: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        parse_search(words)


@settings(max_examples=300, deadline=None)
@given(st.text('kind:state,owner" created.2026-01.\t\\%_é'))
def test_any_words_are_a_filter_or_an_error_for_a_person(words: str) -> None:
    try:
        parse_search(words)
    except InputError:
        return


# -- lists ---------------------------------------------------------------------------------


@pytest.fixture
def many(store: Store) -> dict[str, list[int]]:
    """Jobs of two campuses, one below the other, of two kinds, in several states."""
    add_campus(store, "north", "UTC")
    add_campus(store, "school", "UTC", parent="north")
    add_campus(store, "south", "UTC")
    ids: dict[str, list[int]] = {}
    for campus in ("north", "school", "south", "district"):
        ids[campus] = put(
            store,
            NewJob(
                "test.count", campus=campus, owner="115", idempotency_key=f"Nightly 50%_{campus}"
            ),
            NewJob("import.rows", campus=campus),
            NewJob("test.count", campus=campus, delay_s=900),
            NewJob("import.rows", campus=campus, owner="7"),
        )
    firsts = [found[0] for found in ids.values()]
    messages = begin(store, *firsts)
    end(store, messages[:2], "failed", error="The LINE was lost", error_kind="LineError")
    end(store, messages[2:3])
    with store.transaction(DISTRICT) as conn:
        last = messages[3]
        ledger.renew(conn, [Progress(last.job_id, last.token, 1, 4, "Reading rows of a\\b")])
    return ids


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"north": 4, "school": 4, "south": 4, "district": 4}),
        ("state:failed", {"north": 1, "school": 1}),
        ("state:queued", {"north": 2, "school": 2, "south": 2, "district": 2}),
        ("state:failed,running,completed", {"north": 1, "school": 1, "south": 1, "district": 1}),
        ("kind:import", {"north": 2, "school": 2, "south": 2, "district": 2}),
        ("kind:impo", {}),
        ("kind:test.count state:scheduled", {"north": 1, "school": 1, "south": 1, "district": 1}),
        ("category:analytics owner:115", {"north": 1, "school": 1, "south": 1, "district": 1}),
        ("queue:imports owner:7 campus:school", {"school": 1}),
        ("campus:north", {"north": 4, "school": 4}),
        ("campus:school,south state:queued", {"school": 2, "south": 2}),
        ("campus:district", {"north": 4, "school": 4, "south": 4, "district": 4}),
        ("line WAS", {"north": 1, "school": 1}),
        ("error:LineError campus:school", {"school": 1}),
        ("50%_s", {"school": 1, "south": 1}),
        ("50__s", {}),
        ('"a\\b"', {"district": 1}),
        ("created:2020-01-01", {}),
        ("created:2020-01-01.. ended:2020-01-01..", {"north": 1, "school": 1, "south": 1}),
    ],
)
def test_a_filter_finds_what_it_says(
    store: Store, many: dict[str, list[int]], words: str, expected: dict[str, int]
) -> None:
    """All of it, newest first, in the district and in the scope of a campus."""
    found = listed(store, words)
    assert found == sorted(found, reverse=True)
    for campus, ids in many.items():
        assert len(set(found) & set(ids)) == expected.get(campus, 0), campus
    if "campus:" not in words:
        below = listed(store, words, scope="north")
        assert below == [i for i in found if i in many["north"] + many["school"]]


def test_a_campus_sees_no_job_of_another(store: Store, many: dict[str, list[int]]) -> None:
    """Not in a list, not by its id, not by naming its campus; and no campus sees the district's."""
    assert set(listed(store, scope="school")) == set(many["school"])
    with store.transaction(Scope("school")) as conn:
        for campus in ("north", "south", "district"):
            with pytest.raises(InputError, match=f"no campus '{campus}' in this scope"):
                list_jobs(conn, JobFilter(campuses=(campus,)))
            for job_id in many[campus]:
                with pytest.raises(NoSuchJobError):
                    get_job(conn, job_id)
    with store.transaction(Scope("nowhere")) as conn:
        assert list_jobs(conn).jobs == ()


def pages(store: Store, chosen: JobFilter, limit: int, scope: str = "district") -> list[Page]:
    found: list[Page] = []
    while not found or found[-1].cursor is not None:
        cursor = found[-1].cursor if found else None
        with store.transaction(Scope(scope)) as conn:
            found.append(list_jobs(conn, chosen, limit=limit, cursor=cursor))
        assert len(found) < 500
    return found


filters = st.builds(
    JobFilter,
    states=st.lists(st.sampled_from(search.STATES), max_size=3).map(tuple),
    kinds=st.sampled_from([(), ("test",), ("import.rows", "test.count"), ("none",)]),
    campuses=st.sampled_from([(), ("north",), ("north", "school"), ("south", "district")]),
    owners=st.sampled_from([(), ("115",), ("", "7")]),
    text=st.sampled_from(["", "lost", "nightly", "%"]),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chosen=filters, limit=st.integers(1, 7), scanned=st.sampled_from([1, 2, 5, 50_000]))
def test_pages_together_are_the_whole_list(
    store: Store, many: dict[str, list[int]], chosen: JobFilter, limit: int, scanned: int
) -> None:
    """Each job once, in order, whatever the size of a page and however few jobs one looks at."""
    with store.transaction(DISTRICT) as conn:
        everything = list_jobs(conn, limit=1_000).jobs
        below = {row.campus for row in list_jobs(conn, JobFilter(campuses=("north",))).jobs}
    campuses = {c for name in chosen.campuses for c in ({"north": below}.get(name) or {name})}
    if "district" in chosen.campuses:
        campuses = set(many)
    expected = [
        row.id
        for row in everything
        if (not chosen.states or row.state in chosen.states)
        and (not chosen.kinds or {row.kind, row.kind.partition(".")[0]} & set(chosen.kinds))
        and (not campuses or row.campus in campuses)
        and (not chosen.owners or row.owner in chosen.owners)
        and chosen.text.lower()
        in f"{row.error or ''}|{row.operation or ''}|{row.idempotency_key or ''}".lower()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "SCANNED_JOBS", scanned)
        found = pages(store, chosen, limit)
    assert [row.id for page in found for row in page.jobs] == expected
    assert all(len(page.jobs) == limit for page in found[:-1] if page.complete)
    assert found[-1].complete


def test_a_page_that_looked_at_enough_says_so(
    store: Store, many: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is short, and its cursor goes on where it stopped."""
    monkeypatch.setattr(query, "SCANNED_JOBS", 3)
    first, *_, last = pages(store, JobFilter(text="nightly 50%_north"), 5)
    assert (first.jobs, first.complete) == ((), False)
    assert first.cursor is not None
    assert (last.cursor, last.complete) == (None, True)


def test_jobs_that_come_meanwhile_shift_no_page(store: Store, many: dict[str, list[int]]) -> None:
    with store.transaction(DISTRICT) as conn:
        first = list_jobs(conn, limit=5)
    put(store, NewJob("test.count"), NewJob("test.count"))
    with store.transaction(DISTRICT) as conn:
        second = list_jobs(conn, limit=5, cursor=first.cursor)
    ids = sorted((i for found in many.values() for i in found), reverse=True)
    assert [j.id for j in (*first.jobs, *second.jobs)] == ids[:10]


@pytest.mark.parametrize("cursor", ["", "x", "am9icw==", "é", "am9icy1iZWZvcmUgLTE=", "a" * 5_000])
def test_a_cursor_that_is_none_is_refused(store: Store, cursor: str) -> None:
    with store.transaction(DISTRICT) as conn, pytest.raises(InputError, match="no cursor"):
        list_jobs(conn, cursor=cursor)


@pytest.mark.parametrize("limit", [0, -1, 1_001])
def test_a_page_has_a_size(store: Store, limit: int) -> None:
    with store.transaction(DISTRICT) as conn, pytest.raises(InputError, match="1 to 1,000 jobs"):
        list_jobs(conn, limit=limit)


@pytest.mark.parametrize(
    ("words", "scope"),
    [
        ("", "district"), ("state:failed", "district"), ("state:completed", "district"),
        ("kind:test", "district"), ("text", "district"), ("campus:north", "district"),
        ("", "north"), ("state:failed", "north"), ("state:completed", "north"), ("text", "north"),
    ],
)  # fmt: skip
def test_no_list_reads_the_whole_ledger(store: Store, words: str, scope: str) -> None:
    """Each statement walks an index backwards and stops; none sorts or scans all jobs."""
    fill(store)
    seen: list[tuple[str, Any]] = []

    def keep(_c: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if "theon.jobs" in statement and "AS m" in statement:
            seen.append((statement, values))

    with store.transaction(Scope(scope)) as conn:
        event.listen(conn, "before_cursor_execute", keep)
        list_jobs(conn, parse_search(words))
        event.remove(conn, "before_cursor_execute", keep)
        assert seen
        for statement, values in list(seen):
            plan = "\n".join(row[0] for row in conn.exec_driver_sql(f"EXPLAIN {statement}", values))
            assert "Seq Scan on jobs" not in plan, plan
            assert "Index Scan Backward" in plan or "Index Only Scan Backward" in plan, plan


def fill(store: Store) -> None:
    """Enough jobs of two campuses that the planner thinks of indexes."""
    add_campus(store, "north", "UTC")
    with store.owner_transaction() as conn:
        conn.exec_driver_sql("ALTER TABLE theon.jobs DISABLE TRIGGER USER")
    with store.transaction(DISTRICT) as conn:
        conn.execute(
            text(
                "INSERT INTO theon.jobs (campus_id, kind, queue, category, arguments, state,"
                " priority, rank_at, ready_at, max_attempts, max_lost, timeout_s, memory_mb)"
                " SELECT CASE n % 2 WHEN 0 THEN 1 ELSE (SELECT max(id) FROM theon.campuses) END,"
                "  'test.count', 'test', 'system', '{}',"
                "  CASE WHEN n % 1000 = 0 THEN 'failed' ELSE 'completed' END, 0, now(), now(), 3,"
                "  3, 60, 64 FROM generate_series(1, 60000) AS n"
            )
        )
    with store.owner_transaction() as conn:
        conn.exec_driver_sql("ALTER TABLE theon.jobs ENABLE TRIGGER USER")
        conn.exec_driver_sql("ANALYZE theon.jobs")


# -- one job -------------------------------------------------------------------------------


def test_all_about_a_job_is_there(store: Store) -> None:
    """Arguments, every change, every attempt with its error, what it needs and who needs it."""
    add_campus(store, "north", "UTC")
    need, job_id, third = put(
        store,
        NewJob("import.rows", label="n"),
        NewJob("test.count", {"upto": 5}, campus="north", after=["n"], label="j", priority="high"),
        NewJob("import.rows", after=["j"]),
    )
    end(store, begin(store, need))
    (message,) = begin(store, job_id)
    with store.transaction(DISTRICT) as conn:
        ledger.checkpoint(conn, message, {"at": 3})
    end(store, [message], "lost")
    end(
        store, begin(store, job_id), "failed", error="E" * 900, error_kind="LineError", stack="at 4"
    )
    with store.transaction(DISTRICT) as conn:
        found = get_job(conn, job_id)
    assert (found.job.state, found.job.campus, found.job.priority) == ("failed", "north", "high")
    assert (found.arguments, found.checkpoint, found.stack) == ({"upto": 5}, {"at": 3}, "at 4")
    assert (len(found.job.error or ""), len(found.error or "")) == (500, 900)
    assert [(c.before, c.after) for c in found.history] == [
        (None, "scheduled"), ("scheduled", "queued"), ("queued", "dispatched"),
        ("dispatched", "running"), ("running", "scheduled"), ("scheduled", "queued"),
        ("queued", "dispatched"), ("dispatched", "running"), ("running", "failed"),
    ]  # fmt: skip
    assert [(a.token, a.outcome, a.error_kind) for a in found.past_attempts] == [
        (1, "lost", None), (2, "failed", "LineError"),
    ]  # fmt: skip
    assert [(n.id, n.kind, n.state) for n in found.needs] == [(need, "import.rows", "completed")]
    assert [(n.id, n.state) for n in found.needed_by] == [(third, "failed")]
    with store.transaction(Scope("north")) as conn:
        hidden = get_job(conn, job_id)
    assert [(n.id, n.kind, n.state) for n in hidden.needs] == [(need, None, None)]
    assert hidden.needed_by == ()  # it is the district's to know who waits there


@pytest.mark.parametrize("job_id", [0, -1, 999, 2**63, 2**70])
def test_a_job_that_is_not_there_is_said_to_be_not_there(store: Store, job_id: int) -> None:
    with store.transaction(DISTRICT) as conn, pytest.raises(NoSuchJobError, match="no job"):
        get_job(conn, job_id)


def test_the_time_that_remains_is_a_range() -> None:
    """From progress, narrower the more is done; else from history, never below nothing."""
    early, late = remaining(10, 10, 100, None), remaining(90, 90, 100, (1.0, 2.0))
    assert early is not None
    assert late is not None
    assert (early.basis, late.basis) == ("progress", "progress")
    assert early.low_s < 90 < early.high_s
    assert late.low_s < 10 < late.high_s
    assert late.high_s / late.low_s < early.high_s / early.low_s
    assert remaining(5, 100, 100, None) == query.Remaining(0, 0, "progress")
    assert remaining(5, 120, 100, None) == query.Remaining(0, 0, "progress")
    assert remaining(5, None, None, (4.0, 9.0)) == query.Remaining(0, 4, "history")
    for done, total in ((None, None), (0, 100), (5, None), (5, 0)):
        assert remaining(5, done, total, None) is None


def test_a_running_job_tells_how_long_it_takes(store: Store) -> None:
    """From what its kind took before, until it tells progress itself."""
    ids = put(store, *[NewJob("test.count")] * 7)
    end(store, begin(store, *ids[:6]))
    with store.transaction(DISTRICT) as conn:
        conn.execute(
            text("UPDATE theon.job_attempts SET started_at = ended_at - interval '300 seconds'")
        )
    (message,) = begin(store, ids[6])
    with store.transaction(DISTRICT) as conn:
        left = get_job(conn, ids[6]).job.remaining
        assert left is not None
        assert left.basis == "history"
        assert 0 < left.low_s <= left.high_s <= 300
        ledger.renew(conn, [Progress(message.job_id, message.token, 1, 2, "Halfway")])
        left = get_job(conn, ids[6]).job.remaining
        assert left is not None
        assert left.basis == "progress"
        assert get_job(conn, ids[0]).job.remaining is None
