"""A voided statement counts nowhere, whatever came first and by whichever road."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from tests.api.xapi_service import ANN, Lrs, make_lrs, statement, voiding

from tests.metrics.conftest import District, district, make_district
from theon.intake.pipeline import ingest
from theon.lake.compaction import compact
from theon.metrics.catalog import get_metric, load_catalog
from theon.metrics.explain import explain
from theon.metrics.tables import ensure_tables
from theon.metrics.verify import verify
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
    max_size=14,
)


@settings(
    max_examples=12,
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
    number = 0
    while number < len(shuffled):
        size, road = data.draw(st.integers(1, 6)), shuffled[number][1]
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
    school.check()
    school.merge()
    school.refresh(rebuild=True)
    assert school.rows == clean.rows
    school.check()


ROADS = st.sampled_from([["lrs"], ["file"], ["lrs", "file"], ["file", "file"], ["lrs", "lrs"]])
VOID = voids(999, 998)  # a file must hold something
