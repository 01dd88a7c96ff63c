"""The job system's own background work."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text

from theon.jobs import upkeep
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.errors import TransientError
from theon.jobs.kinds import Kinds
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

KINDS = Kinds(upkeep.JOBS)


@dataclass
class Context:
    """What a job of the job system uses of its context, with what it logged."""

    store: Store
    settings: Settings
    campus: str = "district"
    lines: list[str] = field(default_factory=list)

    def log(self, message: str, **details: Any) -> None:
        self.lines.append(message)

    def progress(self, done: float, total: float | None = None, operation: str = "") -> None:
        pass


@pytest.fixture
def ctx(store: Store, store_settings: Settings) -> Context:
    return Context(store, store_settings)


def ended(store: Store, count: int, state: str, days_ago: int) -> list[int]:
    """Jobs that came to this end so many days ago."""
    with store.transaction(Scope.district()) as conn:
        ids = enqueue_many(conn, KINDS, [NewJob("system.health")] * count)
        path = {"completed": ("dispatched", "running", "completed"), "cancelled": ("cancelled",)}
        steps = path.get(state, ("dispatched", "running", "failed"))
        for step in steps:
            conn.execute(
                text(
                    "UPDATE theon.jobs SET state = :state, ended_at = clock_timestamp()"
                    " - make_interval(days => :days) WHERE id = ANY (:ids)"
                ),
                {"state": step, "days": days_ago, "ids": ids},
            )
    return ids


def left(store: Store) -> set[int]:
    with store.transaction(Scope.district()) as conn:
        return set(conn.execute(text("SELECT id FROM theon.jobs")).scalars())


def test_retention_removes_what_ended_long_ago_and_nothing_else(ctx: Context):
    """Dead letters stay longer than completed jobs; what has not ended stays for ever."""
    old = ended(ctx.store, 3, "completed", 31) + ended(ctx.store, 2, "cancelled", 31)
    young = ended(ctx.store, 2, "completed", 29)
    letters = ended(ctx.store, 2, "failed", 31)
    with ctx.store.transaction(Scope.district()) as conn:
        waiting = enqueue_many(conn, KINDS, [NewJob("system.health")])
    cleaned = upkeep.clean(ctx, upkeep.RetainJobs())  # type: ignore[arg-type]
    assert cleaned.jobs == len(old)
    assert left(ctx.store) == {*young, *letters, *waiting}
    assert upkeep.clean(ctx, upkeep.RetainJobs(dead_letters_days=30)).dead_letters == 2  # type: ignore[arg-type]


def test_history_goes_with_its_job_and_counters_agree(ctx: Context):
    ended(ctx.store, 4, "completed", 40)
    upkeep.clean(ctx, upkeep.RetainJobs())  # type: ignore[arg-type]
    with ctx.store.transaction(Scope.district()) as conn:
        assert conn.execute(text("SELECT count(*) FROM theon.job_history")).scalar_one() == 0
        assert conn.execute(text("SELECT sum(delta) FROM theon.job_counts")).scalar_one() == 0


def test_a_job_that_another_one_waits_for_stays(ctx: Context):
    """Its end is what the other one waits for, however long that takes."""
    [needed] = ended(ctx.store, 1, "completed", 400)
    with ctx.store.transaction(Scope.district()) as conn:
        enqueue_many(conn, KINDS, [NewJob("system.health", after=[needed], delay_s=3600)])
    assert upkeep.clean(ctx, upkeep.RetainJobs()).jobs == 0  # type: ignore[arg-type]
    assert needed in left(ctx.store)


def test_a_campus_removes_its_own_only(ctx: Context):
    from theon.roster.campuses import add_campus

    add_campus(ctx.store, "elm", "UTC")
    old = ended(ctx.store, 1, "completed", 99)
    ctx.campus = "elm"
    assert upkeep.clean(ctx, upkeep.RetainJobs()).jobs == 0  # type: ignore[arg-type]
    assert left(ctx.store) == set(old)


def test_health_names_what_needs_a_person(ctx: Context):
    ended(ctx.store, 2, "failed", 1)
    report = upkeep.examine(ctx)  # type: ignore[arg-type]
    assert report.dead_letters == 2
    assert report.warnings == tuple(ctx.lines)
    assert "2 dead letters" in report.warnings[0]


def test_a_disk_that_is_nearly_full_fails_the_check(ctx: Context, monkeypatch: pytest.MonkeyPatch):
    """The message says where and what to do."""
    monkeypatch.setattr(upkeep, "LEAST_FREE_BYTES", 1 << 62)
    with pytest.raises(TransientError, match="are free") as caught:
        upkeep.examine(ctx)  # type: ignore[arg-type]
    assert "THEON_HOME" in caught.value.next_step
