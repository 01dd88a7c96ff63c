"""The pulse of a worker: leases are renewed, and the ledger hears that the worker lives."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from theon.errors import UnavailableError
from theon.jobs import alone, ledger
from theon.jobs.clerk import Run, Runs
from theon.jobs.ledger import Message, Progress
from theon.store.engine import Store
from theon.store.scope import Scope

RENEW_EVERY_S = 1.0
HEARTBEAT_EVERY_S = 2.0
# A row that is locked longer is renewed apart, so that its siblings are not late.
LOCK_WAIT_MS = 500

_log = logging.getLogger(__name__)


class Pulse:
    """Renews leases every second, finds what was handed to this worker, tells that it lives."""

    def __init__(
        self,
        store: Store,
        runs: Runs,
        worker_id: str,
        held: deque[Message],
        describe: Callable[[], dict[str, Any]],
        wake: Callable[[], None],
        drain: Callable[[], None],
    ) -> None:
        """Nothing is told before `open`.

        Args:
            store: the open store.
            runs: whose leases are renewed.
            worker_id: of this worker.
            held: takes what was handed to this worker.
            describe: gives the columns of its row.
            wake: called after each round.
            drain: called when somebody asks this worker to drain.
        """
        self._store = store
        self._runs = runs
        self._worker_id = worker_id
        self._held = held
        self._describe = describe
        self._wake = wake
        self._drain = drain
        self._registered = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="theon-pulse", daemon=True)

    def open(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Tell once more how the worker is, and end."""
        self._stopping.set()
        self._thread.join(limit_s)

    def _run(self) -> None:
        told_s = float("-inf")
        quiet = False
        while True:
            ending = self._stopping.is_set()
            began_s = time.monotonic()
            try:
                self._hold()
                self._renew()
                if ending or began_s - told_s >= HEARTBEAT_EVERY_S:
                    self._tell()
                    told_s = began_s
                quiet = False
            except Exception as error:
                if not quiet:
                    _log.warning("leases could not be renewed, trying again: %s", error)
                quiet = isinstance(error, UnavailableError)
            if ending:
                return
            self._stopping.wait(max(0.1, RENEW_EVERY_S - (time.monotonic() - began_s)))

    def _tell(self) -> None:
        # A question that was for an earlier worker of this name is over.
        given = {**self._describe(), "first": not self._registered}
        with self._store.transaction(Scope.district()) as conn:
            asked_to_drain = conn.execute(text(_WORKER), given).scalar()
        self._registered = True
        if asked_to_drain:
            self._drain()

    def _hold(self) -> None:
        with ledger.turn(self._store) as conn:
            self._held.extend(alone.hold(conn, [], self._worker_id))

    def _renew(self) -> None:
        runs = self._runs.all()
        apart = [run for run in runs if run.locked]
        together = [run for run in runs if not run.locked]
        try:
            self._renew_some(together)
        except SQLAlchemyError as error:
            if not _is_lock(error):
                raise
            # One row is locked, e.g. by a job that commits its effect with its finish.
            apart += together
        for run in apart:
            try:
                self._renew_some([run])
                run.locked = False
            except SQLAlchemyError as error:
                if not _is_lock(error):
                    raise
                run.locked = True
        self._wake()

    def _renew_some(self, runs: list[Run]) -> None:
        if not runs:
            return
        before_s = time.monotonic()
        wait_ms = LOCK_WAIT_MS if len(runs) > 1 else LOCK_WAIT_MS // 10
        with ledger.turn(self._store) as conn:
            conn.execute(text(f"SET LOCAL lock_timeout = {wait_ms}"))
            told = [Progress(r.message.job_id, r.message.token, *r.progress) for r in runs]
            held = ledger.renew(conn, told, lease_s=ledger.RUN_LEASE_S)
            kept = {Message(h.job_id, h.token): h.cancel_asked for h in held}
            missing = [run for run in runs if run.message not in kept]
            asked = [run for run in runs if kept.get(run.message)]
            reasons = _told(conn, [*missing, *asked]) if missing or asked else {}
        for run in runs:
            if run.message in kept:
                run.lease_until_s = before_s + ledger.RUN_LEASE_S
        for run in asked:
            _, reason = reasons.get(run.message, ("", ""))
            run.cancel = run.cancel or _why_cancelled(reason)
        for run in missing:
            state, _ = reasons.get(run.message, ("", ""))
            # Its own finish under this token: the attempt only has to return.
            if state != "completed" and self._runs.has(run.message):
                run.lost = True


def _told(conn: Any, runs: list[Run]) -> dict[Message, tuple[str, str]]:
    """State and reason of the jobs whose token is still that of the run."""
    found = conn.execute(
        text("SELECT id, token, state, reason FROM theon.jobs WHERE id = ANY (:ids)"),
        {"ids": [run.message.job_id for run in runs]},
    )
    return {Message(job_id, token): (state, reason) for job_id, token, state, reason in found}


def _why_cancelled(reason: str) -> str:
    return reason if reason.startswith("cancelled") else "cancelled while it ran"


def _is_lock(error: SQLAlchemyError) -> bool:
    return isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.LockNotAvailable)


_WORKER = """
INSERT INTO theon.job_workers AS w (id, campus_id, host, pid, delivery, queues, state, slots, busy,
    cpu_percent, memory_mb, memory_free_mb, running)
SELECT :id, c.id, :host, :pid, :delivery, CAST(:queues AS text[]), :state, :slots, :busy,
    :cpu_percent, :memory_mb, :memory_free_mb, CAST(:running AS bigint[])
FROM theon.campuses AS c WHERE c.slug = 'district'
ON CONFLICT (id) DO UPDATE SET state = excluded.state, slots = excluded.slots,
    busy = excluded.busy, heartbeat_at = clock_timestamp(), cpu_percent = excluded.cpu_percent,
    memory_mb = excluded.memory_mb, memory_free_mb = excluded.memory_free_mb,
    running = excluded.running, drain_asked = w.drain_asked AND NOT CAST(:first AS boolean)
RETURNING drain_asked"""
