"""What the metrics do in the background is what the commands do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from theon.errors import ConflictError
from theon.metrics.catalog import load_catalog
from theon.metrics.jobs import SCHEDULES, RefreshMetrics, run_refresh
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

AT = datetime(2026, 9, 14, 9, 0, tzinfo=UTC)


@dataclass
class Context:
    """What a refresh uses of its job's context, with the progress that it told."""

    store: Store
    settings: Settings
    campus: str
    steps: list[str] = field(default_factory=list)

    def log(self, message: str, **details: Any) -> None:
        pass

    def progress(self, done: float, total: float | None = None, operation: str = "") -> None:
        self.steps.append(operation)


@pytest.fixture
def run(district: Any) -> Callable[..., Any]:
    def run(campus: str, **arguments: bool) -> Any:
        ctx = Context(district.store, district.settings, campus)
        summary = run_refresh(ctx, RefreshMetrics(**arguments))  # type: ignore[arg-type]
        return summary, ctx

    return run


def test_a_campus_refreshes_itself_alone(district: Any, run: Callable[..., Any]):
    """Each campus has a run of its own, so none does another's work."""
    here, there = district.campus(), district.campus()
    for campus in (here, there):
        district.put(campus, [{"id": "a", "at": AT}])
    summary, ctx = run(here)
    assert summary.campuses == [here]
    assert summary.rows_written["user_course_week"] == 1
    assert any("Computing cells" in step for step in ctx.steps)
    assert run(here)[0].rows_written == {}
    assert run("district")[0].campuses == []


def test_all_campuses_below_are_refreshed_if_asked(district: Any, run: Callable[..., Any]):
    campus = district.campus()
    district.put(campus, [{"id": "a", "at": AT}])
    assert campus in run("district", below=True)[0].campuses


def test_a_verification_that_finds_a_difference_fails_the_job(
    district: Any, run: Callable[..., Any]
):
    """It says which row differs and what to run."""
    campus = district.campus()
    district.put(campus, [{"id": "a", "at": AT}])
    run(campus, verify=True)
    with district.store.transaction(Scope(campus)) as conn:
        table = load_catalog()["course_day"].table
        conn.execute(text(f"UPDATE {table} SET total_actions = 7"))
    with pytest.raises(ConflictError, match="total_actions") as caught:
        run(campus, verify=True)
    assert "--rebuild" in caught.value.next_step
    run(campus, rebuild=True, verify=True)


def test_the_schedules_are_those_that_were_promised():
    """Hourly at :15, daily at 02:00, monthly on the 1st, in the campus's own time."""
    lines = {s.name: (s.cron, s.per_campus, s.timezone) for s in SCHEDULES}
    assert lines["metrics.hourly"] == ("15 * * * *", True, None)
    assert lines["metrics.daily"] == ("0 2 * * *", True, None)
    assert lines["metrics.monthly"][0].split()[2:] == ["1", "*", "*"]
