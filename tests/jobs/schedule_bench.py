"""A scheduler on a real ledger, with a clock that tests put."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from theon.jobs import ledger
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Outcome
from theon.jobs.schedules import Schedule, Scheduler
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Count:
    """How far to count."""

    upto: int = 1


@job("test.count", queue="test")
def count(ctx: Any, args: Count) -> None:
    """Count."""


KINDS = Kinds([count])
HOURLY = Schedule("hourly", "test.count", "0 * * * *", timezone="UTC", may_overlap=True)
START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


def at(words: str) -> datetime:
    return datetime.fromisoformat(words).replace(tzinfo=UTC)


class Clock:
    """A clock that stands still until it is put."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now
        self.asked: Callable[[], None] | None = None  # what happens while somebody looks at it

    def __call__(self) -> datetime:
        if self.asked is not None:
            asked, self.asked = self.asked, None
            asked()
        return self.now


class Bench:
    """A scheduler, its clock, and what the tables say."""

    def __init__(self, store: Store, *schedules: Schedule, start: datetime = START) -> None:
        self.store, self.clock = store, Clock(start)
        self.scheduler = Scheduler(store, KINDS, schedules, clock=self.clock)
        self.scheduler.tick()

    def tick(self, words: str) -> int:
        self.clock.now = at(words)
        return self.scheduler.tick()

    def runs(self, name: str = "hourly", campus: str = "district") -> dict[str, str]:
        return {
            f"{fire_at:%d %H:%M}": outcome
            for fire_at, outcome in self.do(
                "SELECT fire_at, outcome FROM theon.job_schedule_runs AS r"
                " JOIN theon.campuses AS c ON c.id = r.campus_id"
                " WHERE schedule = :name AND c.slug = :campus ORDER BY fire_at",
                name=name,
                campus=campus,
            )
        }

    def do(self, statement: str, **values: Any) -> list[Any]:
        with self.store.transaction(DISTRICT) as conn:
            found = conn.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def jobs(self) -> int:
        return int(self.do("SELECT count(*) FROM theon.jobs")[0][0])


def end_all(store: Store, outcome: str = "completed") -> None:
    """Run every queued job to its end."""
    with store.transaction(DISTRICT) as conn:
        ids = conn.execute(text("SELECT id FROM theon.jobs WHERE state = 'queued'")).scalars()
        begun = ledger.start(conn, ledger.dispatch(conn, ids.all()), "w")
        ended = [Outcome(a.job_id, a.token, outcome, transient=False) for a in begun]
        ledger.finish(conn, ended)
