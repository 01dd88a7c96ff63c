"""A voided statement counts nowhere, whatever came first and by whichever road."""

import gzip
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from tests.api.xapi_service import ANN, Lrs, make_lrs, statement, voiding
from tests.metrics.conftest import District, district, make_district

from theon.intake.door import accept
from theon.intake.mapped import read_arrival
from theon.intake.pipeline import ingest
from theon.lake.compaction import compact
from theon.metrics.catalog import get_metric, load_catalog
from theon.metrics.explain import explain
from theon.metrics.tables import ensure_tables
from theon.metrics.verify import verify
from theon.outcomes.retracting import open_retractions
from theon.pipeline import land_all
from theon.roster.campuses import get_campus
from theon.store.scope import Scope

__all__ = ["district", "make_district"]

Statement = dict[str, Any]
VERBS = "http://adlnet.gov/expapi/verbs/"
TYPES = "http://adlnet.gov/expapi/activities/"
START = datetime(2026, 10, 23, 12, 0, tzinfo=UTC)
PEOPLE = [ANN, {"mbox": "mailto:ben@example.org"}]
LOOKED = {"verb": {"id": VERBS + "experienced"}, "object": {"id": "https://lms/page/1"}}
PASSED = {
    "verb": {"id": VERBS + "passed"},
    "object": {"id": "https://lms/quiz/1", "definition": {"type": TYPES + "assessment"}},
    "result": {"score": {"raw": 8, "min": 0, "max": 10}},
}
FAILED = {**PASSED, "result": {"score": {"raw": 2, "min": 0, "max": 10}}}
DONE = {"verb": {"id": VERBS + "completed"}, "object": {"id": "https://lms/page/2"}}


def made(number: int, what: Statement, minute: int, person: int = 0) -> Statement:
    course = {"id": "https://lms/course/6", "definition": {"type": TYPES + "course"}}
    return statement(
        id=str(UUID(int=number)),
        actor=PEOPLE[person],
        timestamp=(START + timedelta(minutes=minute)).isoformat(),
        context={"contextActivities": {"parent": [course]}},
        **what,
    )


def voids(number: int, target: int, minute: int = 0) -> Statement:
    """A statement that voids the statement of that number, which there may be or not."""
    at = (START + timedelta(days=1, minutes=minute)).isoformat()
    return voiding(str(UUID(int=target)).upper(), id=str(UUID(int=number)), timestamp=at)


class School:
    """A campus that statements come to, by the record store or in files."""

    def __init__(self, base: District, lrs: Lrs) -> None:
        self.base = base
        self.slug = base.campus()
        self._lrs = lrs.of(self.slug)

    def send(self, statements: list[Statement]) -> None:
        answer = self._lrs.post(statements)
        assert answer.status_code == 200, answer.text

    def read_file(self, statements: list[Statement]) -> None:
        path = self.base.folder / f"statements-{next(self.base.numbers)}.json"
        path.write_text(json.dumps(statements))
        ingest(
            self.base.store, self.base.lake, self.base.settings,
            location=str(path), format="xapi", campus=self.slug,
        )  # fmt: skip

    def refresh(self, *, rebuild: bool = False) -> None:
        land_all(self.base.store, self.base.lake, self.base.settings)
        self.base.refresh(self.slug, rebuild=rebuild)

    def merge(self) -> None:
        compact(self.base.lake, self.base.settings, self.slug, fan_in=2)

    @property
    def rows(self) -> dict[str, list[dict[str, Any]]]:
        return self.base.all_rows(self.slug)

    def check(self) -> None:
        report = verify(self.base.store, self.base.lake, self.base.settings, campus=self.slug)
        assert report.ok, [d.sentence() for d in report.differences]

    def facts(self) -> int:
        with self.base.store.transaction(Scope(self.slug)) as conn:
            return int(conn.execute(text("SELECT count(*) FROM theon.outcome_facts")).scalar_one())


@pytest.fixture
def make_school(make_district: Callable[[], District], tmp_path: Path) -> Any:
    base = make_district()
    ensure_tables(base.store, load_catalog())
    base.campus()
    slug = base.campus()
    with make_lrs(base.store, base.settings, slug) as lrs:
        yield lambda: School(base, lrs)


# The same instant, the borders of slots and hours, and sessions that a voided statement held
# together.
minutes = st.one_of(st.sampled_from([0, 14, 15, 29, 30, 59, 60, 89]), st.integers(0, 60 * 30))
told = st.lists(
    st.tuples(st.sampled_from([LOOKED, LOOKED, PASSED, FAILED, DONE]), minutes, st.integers(0, 1)),
    min_size=2,
    max_size=10,
)


@settings(
    max_examples=6,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=told, data=st.data())
def test_metrics_are_those_of_the_statements_that_were_never_voided(
    make_school: Callable[[], School], drawn: list[Any], data: st.DataObject
) -> None:
    """Any order, roads, batches and repetitions, beside refreshes and compactions."""
    statements = [made(n, *what) for n, what in enumerate(drawn, 1)]
    # Of those that came, of one that never comes, and of voiding statements, which cannot be.
    targets = data.draw(
        st.lists(st.integers(1, len(statements)) | st.sampled_from([900, 101]), max_size=6)
    )
    voidings = [voids(100 + n, target, n) for n, target in enumerate(targets)]
    everything = [(one, road) for one in statements + voidings for road in data.draw(ROADS)]
    shuffled = data.draw(st.permutations(everything))
    school, clean = make_school(), make_school()
    school.read_file([VOID])
    school.refresh()  # the first one derives all facts; from now on they are the observers'
    number = 0
    while number < len(shuffled):
        size, road = data.draw(st.integers(1, 9)), shuffled[number][1]
        batch = [one for one, its in shuffled[number : number + size] if its == road]
        once = list({one["id"]: one for one in batch}.values())
        (school.send if road == "lrs" else school.read_file)(once)
        rest = [pair for pair in shuffled[number : number + size] if pair[1] != road]
        shuffled = [*shuffled[: number + len(batch)], *rest, *shuffled[number + size :]]
        number += len(batch)
        then = data.draw(st.sampled_from(["nothing", "nothing", "land", "refresh", "merge"]))
        if then == "land":
            land_all(school.base.store, school.base.lake, school.base.settings)
        elif then != "nothing":
            getattr(school, then)()
    school.refresh()
    clean.read_file([one for n, one in enumerate(statements, 1) if n not in targets] or [VOID])
    clean.refresh()
    assert school.rows == clean.rows
    school.merge()
    school.refresh(rebuild=True)
    assert school.rows == clean.rows
    school.check()


ROADS = st.sampled_from([["lrs"], ["file"], ["lrs", "file"], ["file", "file"], ["lrs", "lrs"]])
VOID = voids(999, 998)  # a file must hold something


def test_a_voided_outcome_is_gone_in_the_same_transaction(make_school: Any) -> None:
    """A score that counts no longer leaves its column, and stays away if it is sent again."""
    school = make_school()
    school.send([made(1, PASSED, 0)])
    (week,) = school.rows["user_course_week"]
    assert (week["quizzes_attempted"], week["quizzes_avg_score"]) == (1, 80)
    school.send([voids(100, 1), made(2, LOOKED, 5)])
    assert school.rows["user_course_week"] == []
    school.send([voids(101, 4)])
    school.send([made(4, DONE, 2)])
    with school.base.store.transaction(Scope(school.slug)) as conn:
        campus = get_campus(school.base.store, school.slug)
        assert open_retractions(conn, campus.id) == {}  # the store knows them all
    school.send([made(1, PASSED, 0)])
    school.read_file([made(1, PASSED, 0)])
    assert school.facts() == 0
    school.refresh()
    (week,) = school.rows["user_course_week"]
    assert (week["total_actions"], week["quizzes_attempted"]) == (1, None)


def test_explain_says_that_an_event_was_retracted(make_school: Any) -> None:
    school = make_school()
    school.read_file([made(1, LOOKED, 0), made(2, LOOKED, 5), made(3, PASSED, 9), voids(9, 3)])
    school.send([voids(100, 1)])
    school.refresh()
    (week,) = school.rows["user_course_week"]
    key = {name: str(week[name]) for name in ("user_id", "course_id", "week_start")}
    found = explain(
        school.base.store, school.base.lake, school.base.settings,
        get_metric("user_course_week"), campus=school.slug, key=key,
    )  # fmt: skip
    reasons = [(e["event_id"][-1], e["counts"], e["reason"]) for e in found.events.to_pylist()]
    assert reasons == [("1", False, "retracted"), ("2", True, None), ("3", False, "retracted")]
    assert found.facts.num_rows == 0
    assert "2 do not count: retracted." in found.sentences
    assert found.sentences[-1] == "The published row is exactly what these events give."


def test_only_a_statement_voids(make_school: Any) -> None:
    """An event of another source that bears the name takes nothing back."""
    school = make_school()
    school.send([made(1, LOOKED, 0)])
    event = {"id": "n", "event_name": "StatementVoided", "occurred_at": "2026-10-23T12:00:00Z",
             "object_id": str(UUID(int=1))}  # fmt: skip
    campus = get_campus(school.base.store, school.slug)
    with school.base.store.transaction(Scope(school.slug)) as conn:
        accept(conn, campus, "http:x", read_arrival(pa.array([json.dumps(event)]), "native"))
    school.refresh()
    (week,) = school.rows["user_course_week"]
    assert week["total_actions"] == 1


def test_voidings_and_statements_on_all_roads_at_once(make_school: Any) -> None:
    """Real threads: whichever is first, the other finds it."""
    school, clean = make_school(), make_school()
    every = [made(n, [LOOKED, PASSED][n % 2], 7 * n) for n in range(1, 41)]
    voidings = [voids(100 + n, n) for n in range(1, 31)]
    start = threading.Barrier(5)

    def work(do: Callable[[list[Statement]], None], statements: list[Statement]) -> None:
        start.wait()
        for low in range(0, len(statements), 5):
            do(statements[low : low + 5])

    def land_often() -> None:
        start.wait()
        for _ in range(8):
            school.refresh()

    with ThreadPoolExecutor(5) as pool:
        jobs = [
            pool.submit(work, school.send, every[:20]),
            pool.submit(work, school.read_file, every[20:]),
            pool.submit(work, school.send, voidings[10:]),
            pool.submit(work, school.read_file, voidings[:10]),
            pool.submit(land_often),
        ]
        for job in jobs:
            job.result()
    school.refresh()
    clean.read_file(every[30:])
    clean.refresh()
    assert school.rows == clean.rows
    school.check()


def test_a_rebuild_finds_in_the_lake_what_was_taken_back(make_school: Any) -> None:
    """Voidings that came before anybody noted them, or whose notes were lost."""
    school = make_school()
    school.read_file([made(1, LOOKED, 0), made(2, PASSED, 5), made(3, LOOKED, 9)])
    school.refresh()
    school.read_file([voids(101, 1), voids(102, 2)])
    with school.base.store.transaction(Scope(school.slug)) as conn:
        conn.execute(text("DELETE FROM theon.retractions"))
    school.refresh()
    (week,) = school.rows["user_course_week"]
    assert week["total_actions"] == 2
    school.refresh(rebuild=True)
    school.refresh()
    (week,) = school.rows["user_course_week"]
    assert (week["total_actions"], week["quizzes_attempted"]) == (1, None)
    school.check()


@pytest.mark.real_data
def test_real_statements_that_are_voided_might_never_have_been(
    make_school: Any, moodle_data: Path
) -> None:
    """Every eighth, by the record store and in files, before and after."""
    folder = moodle_data.parent / "xapi"
    found: dict[str, Statement] = {}
    for name in ("moodle", "datasim"):
        raw = gzip.decompress((folder / f"{name}_statements.json.gz").read_bytes())
        found |= {one["id"]: one for one in json.loads(raw)}
    every, gone = list(found.values()), set(list(found)[::8])
    voidings = [voiding(i, id=str(UUID(int=n)), timestamp=START.isoformat())
                for n, i in enumerate(sorted(gone), 1)]  # fmt: skip
    school, clean = make_school(), make_school()
    school.send(voidings[::3])
    school.read_file(every[::2])
    school.refresh()
    school.read_file(voidings[1::3])
    school.refresh()
    before = school.rows
    school.read_file(every[1::2])
    school.send(voidings[2::3])
    school.refresh()
    clean.read_file([one for one in every if one["id"] not in gone])
    clean.refresh()
    assert school.rows == clean.rows != before
    assert len(clean.rows["user_course_week"]) > 10
    school.check()
