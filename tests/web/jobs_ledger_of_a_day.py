"""A ledger as after a busy hour: jobs in many states, workers, pauses and missed runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from theon.jobs import admin, ledger
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message, Outcome
from theon.jobs.schedules import Schedule
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()
EVIL = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Count:
    """How far to count."""

    upto: int = 1


@job("test.count", queue="test", max_attempts=2)
def count(ctx: Any, args: Count) -> None:
    """Count."""


@job("import.slow", queue="imports")
def slow(ctx: Any, args: Count) -> None:
    """Be slow."""


@job("report.weekly", queue="reports")
def report(ctx: Any, args: Count) -> None:
    """Report."""


KINDS = Kinds([count, slow, report])
# Workers at work: seconds since they were heard of. After 15 they would count as lost.
BEATS = {"w-1": 0.0, "w-2": 0.0, "w-3": 7.0}
SCHEDULES = (
    Schedule("test.hourly", "test.count", "15 * * * *", per_campus=True, summary="Counts."),
    Schedule("test.nightly", "import.slow", "0 2 * * *", timezone="Asia/Kolkata", summary="Slow."),
)


class Ledger:
    """Moves of the ledger, and what no move makes in a moment: the past."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def do(self, statement: str, **values: Any) -> list[Any]:
        with self.store.transaction(DISTRICT) as conn:
            found = conn.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def one(self, statement: str, **values: Any) -> Any:
        return self.do(statement, **values)[0][0]

    def put(self, *new: NewJob) -> list[int]:
        with self.store.transaction(DISTRICT) as conn:
            return enqueue_many(conn, KINDS, new)

    def begin(self, *ids: int, worker: str = "w-1") -> list[Message]:
        with self.store.transaction(DISTRICT) as conn:
            ledger.promote(conn)
            return [a.message for a in ledger.start(conn, ledger.dispatch(conn, ids), worker)]

    def end(self, messages: list[Message], outcome: str = "completed", **how: Any) -> None:
        given = [
            Outcome(m.job_id, m.token, outcome, **{"transient": False, **how}) for m in messages
        ]
        with self.store.transaction(DISTRICT) as conn:
            ledger.finish(conn, given)

    def ran(
        self,
        kind: str,
        outcomes: Mapping[str, int],
        *,
        seconds: float,
        campus: str = "oak",
        ago_s: float = 60,
        error_kind: str | None = "LineError",
        error: str = "line 4 is wrong",
    ) -> list[int]:
        """Jobs whose only attempt took so long and ended so long ago; each waited 7 s."""
        done = []
        for outcome, number in outcomes.items():
            ids = self.put(*[NewJob(kind, campus=campus)] * number)
            bad = outcome != "completed"
            self.end(
                self.begin(*ids),
                outcome,
                peak_memory_mb=64.0,
                cpu_s=seconds / 2,
                error_kind=error_kind if bad else None,
                error=error if bad else None,
            )
            done += ids
        self.do(
            "UPDATE theon.job_attempts SET waited_s = 7,"
            " ended_at = clock_timestamp() - make_interval(secs => :ago_s),"
            " started_at = clock_timestamp() - make_interval(secs => :ago_s + :seconds)"
            " WHERE job_id = ANY (:ids)",
            ids=done,
            ago_s=ago_s,
            seconds=seconds,
        )
        return done

    def add_worker(
        self,
        name: str,
        *,
        state: str = "running",
        beat_s: float = 0.0,
        slots: int = 4,
        queues: str = "{test,imports}",
    ) -> None:
        """A worker that began half an hour ago and was heard of `beat_s` seconds ago."""
        self.do(
            "INSERT INTO theon.job_workers (id, campus_id, host, pid, delivery, queues, state,"
            " slots, busy, started_at, heartbeat_at, cpu_percent, memory_mb, memory_free_mb)"
            " SELECT :name, id, 'host-1', 4711, 'celery', CAST(:queues AS text[]), :state,"
            " :slots, 0, clock_timestamp() - interval '30 minutes',"
            " clock_timestamp() - make_interval(secs => :beat_s), 131.0, 812.0, 5300.0"
            " FROM theon.campuses WHERE slug = 'district'",
            name=name,
            state=state,
            beat_s=beat_s,
            slots=slots,
            queues=queues,
        )

    def beat(self) -> None:
        """Those that are at work were heard of as `fill` says, seen from this moment."""
        for name, beat_s in BEATS.items():
            self.do(
                "UPDATE theon.job_workers"
                " SET heartbeat_at = clock_timestamp() - make_interval(secs => :beat_s)"
                " WHERE id = :name",
                name=name,
                beat_s=beat_s,
            )


def fill(store: Store) -> Ledger:
    """A busy hour of the campuses oak and elm; the queue of reports has no worker."""
    made = Ledger(store)
    made.add_worker("w-1")
    made.add_worker("w-2", state="draining", slots=2)
    made.add_worker("w-3", beat_s=BEATS["w-3"])
    made.add_worker("w-4", beat_s=300.0)
    made.add_worker("w-5", state="stopped", beat_s=900.0)
    for minutes in range(2, 58, 5):
        made.ran("test.count", {"completed": minutes % 7 + 3}, seconds=4, ago_s=60 * minutes)
    made.ran("test.count", {"completed": 5, "failed": 3}, seconds=6, ago_s=300, campus="elm")
    made.ran("import.slow", {"completed": 6}, seconds=95, ago_s=900)
    made.ran("import.slow", {"failed": 2, "lost": 1}, seconds=20, error=f"Row 7: {EVIL}")
    made.ran("import.slow", {"failed": 1}, seconds=3, error_kind=None, campus="elm")
    made.put(*[NewJob("report.weekly", campus="oak")] * 4)
    made.put(*[NewJob("test.count", campus="oak")] * 3, NewJob("test.count", campus="elm"))
    made.put(NewJob("import.slow", campus="oak", delay_s=900))
    made.begin(*made.put(*[NewJob("test.count", campus="oak")] * 2))
    made.begin(*made.put(NewJob("import.slow", campus="elm")), worker="w-2")
    made.do(
        "UPDATE theon.jobs SET done = 30, total = 80, operation = :operation"
        " WHERE state = 'running'",
        operation=f"rows {EVIL}",
    )
    with store.transaction(DISTRICT) as conn:
        admin.pause(conn, KINDS, "queue", "imports", "ada (account:1)", reason=f"disk full {EVIL}")
        until = conn.execute(text("SELECT clock_timestamp()")).scalar_one() + timedelta(hours=4)
        admin.pause(
            conn, KINDS, "kind", "report.weekly", "ada (account:1)", campus="oak", until=until
        )
    return made
