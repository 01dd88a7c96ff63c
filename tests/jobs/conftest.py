"""A real worker on the real ledger: supervisor, children and a dispatcher's moves."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from sqlalchemy import text
from tests.jobs import kinds_for_tests

from theon.jobs import ledger
from theon.jobs.deliveries.local import LocalDelivery
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.ledger import Message
from theon.jobs.supervisor import Supervisor
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()
LIMIT_S = 120.0
LONG_S = 600.0  # for messages: nobody sends them again where the first child takes 8 s to begin


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait for what must come true, far longer than it takes; gives what `holds` gave."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        found = holds()
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {LIMIT_S:.0f} s: {what}")


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


class Row(NamedTuple):
    state: str
    reason: str
    token: int
    attempts: int
    lost: int
    result: Any
    error: str | None
    error_kind: str | None
    stack: str | None
    done: float | None
    operation: str | None
    checkpoint: Any
    wait_s: float
    peak_mb: float | None
    worker: str | None


class Shop:
    """Jobs, and one worker at a time that runs them."""

    def __init__(self, store: Store, settings: Settings, folder: Path) -> None:
        self.store = store
        self.settings = settings
        self.notes_path = folder / "notes"
        self.notes_path.touch()
        self.worker: Supervisor | None = None

    def open(self, slots: int = 1, **options: Any) -> Supervisor:
        worker = Supervisor(
            self.store,
            self.settings,
            options.pop("kinds", kinds_for_tests.kinds()),
            kinds_source=kinds_for_tests.SOURCE,
            queues=["try"],
            slots=slots,
            delivery="local",
            **options,
        )
        worker.start()
        self.worker = worker
        return worker

    def close(self) -> None:
        if self.worker is not None:
            self.worker.stop()
            self.worker.join(LIMIT_S)
            assert self.worker.state == "stopped"
            self.worker = None

    def put(self, kind: str, campus: str = "district", owner: str = "", **arguments: Any) -> int:
        arguments.setdefault("notes", str(self.notes_path))
        with self.store.transaction(DISTRICT) as conn:
            new = NewJob(kind, arguments, campus=campus, owner=owner)
            (job_id,) = enqueue_many(conn, kinds_for_tests.kinds(), [new])
        return job_id

    def dispatch(self, ids: Sequence[int]) -> list[Message]:
        """Mark what is queued of `ids` and hand it to the worker."""
        with self.store.transaction(DISTRICT) as conn:
            ledger.promote(conn)
            messages = ledger.dispatch(conn, ids, lease_s=LONG_S)
        if self.worker is not None:
            LocalDelivery(self.worker).send(messages, "try")
        return messages

    def run(self, kind: str, **arguments: Any) -> int:
        job_id = self.put(kind, **arguments)
        assert len(self.dispatch([job_id])) == 1
        return job_id

    def settle(self, *ids: int) -> list[Row]:
        """Dispatch again and again until all have ended."""

        def done() -> bool:
            self.dispatch(ids)
            return all(self.row(i).state in ("completed", "failed", "cancelled") for i in ids)

        until(done, f"jobs {ids} end")
        return [self.row(i) for i in ids]

    def row(self, job_id: int) -> Row:
        with self.store.transaction(DISTRICT) as conn:
            return Row(
                *conn.execute(
                    text(
                        "SELECT state, reason, token, attempts, lost, result, error, error_kind,"
                        " stack, done, operation, checkpoint,"
                        " extract(epoch FROM ready_at - clock_timestamp())::float8,"
                        " peak_memory_mb, worker FROM theon.jobs WHERE id = :id"
                    ),
                    {"id": job_id},
                ).one()
            )

    def ended(self, job_id: int) -> Row:
        """The row once the attempt is over, whatever became of it."""
        until(lambda: self.row(job_id).state not in ("dispatched", "running"), f"{job_id} ends")
        return self.row(job_id)

    def do(self, statement: str, **values: Any) -> list[Any]:
        with self.store.transaction(DISTRICT) as conn:
            found = conn.execute(text(statement), values)
            return list(found.all()) if found.returns_rows else []

    def outcomes(self, job_id: int) -> list[str]:
        return [
            row[0]
            for row in self.do(
                "SELECT outcome FROM theon.job_attempts WHERE job_id = :id ORDER BY token",
                id=job_id,
            )
        ]

    def let_go(self) -> None:
        """Let the jobs that hold go on."""
        kinds_for_tests.gate(str(self.notes_path)).touch()

    def notes(self, count: int = 1) -> list[dict[str, Any]]:
        """What jobs noted, once there are `count` notes."""

        def read() -> list[dict[str, Any]]:
            lines = self.notes_path.read_text("utf-8").splitlines(keepends=True)
            found = [json.loads(line) for line in lines if line.endswith("\n")]
            return found if len(found) >= count else []

        return list(until(read, f"{count} notes"))


@pytest.fixture
def shop(
    store: Store, store_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    monkeypatch.setattr("theon.jobs.inbox.DISPATCH_LEASE_S", LONG_S)
    shop = Shop(store, store_settings, tmp_path)
    yield shop
    shop.close()
