"""The dispatcher: looks after the ledger and hands out jobs. Any number may run at once."""

import logging
import time
from math import ceil
from statistics import fmean

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from theon.errors import TheonError
from theon.jobs import alone, candidates, ledger, policy, predict, situation
from theon.jobs.delivery import Delivery
from theon.jobs.enqueue import CHANNEL
from theon.jobs.kinds import Kinds
from theon.loops import Loop
from theon.store.engine import Store

LONGEST_SLEEP_S = 1.0
LONGEST_BACKOFF_S = 5.0
LOOK_EVERY_S = 0.05  # while jobs come one after another
CARE_S = 1.0
FOLD_S = 30.0
LEARN_S = 5.0
SHORT_COST = 0.1  # of a slot; jobs as short as this travel together
MOST_TOGETHER = 32

_Parcels = dict[tuple[str, int], list[ledger.Message]]  # (queue, together) to messages

_log = logging.getLogger(__name__)


class Dispatcher(Loop):
    """Chooses by policy, marks, commits, sends. Use `tick`, or `start` and `stop`."""

    def __init__(self, store: Store, kinds: Kinds, delivery: Delivery) -> None:
        super().__init__("dispatcher")
        self._store = store
        self._kinds = kinds
        self._delivery = delivery
        self._buffer = candidates.Candidates(kinds)
        self._predictor = predict.Predictor()
        self._usual_cost = 1.0
        self._looked_s = self._care_at_s = self._fold_at_s = self._learn_at_s = 0.0
        self._next_due_s: float | None = None

    def tick(self, *, notified: bool = True) -> int:
        """One round; returns how many jobs were handed out.

        Raises:
            UnavailableError: the database or the broker is away. Marks that were committed
                come back when their lease ends.
        """
        # What was just enqueued goes first: somebody may wait for it. But nothing goes before
        # history was read for the first time.
        first = notified and self._learn_at_s > 0
        handed = self._hand_out(notified=True) if first else 0
        if handed and time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return handed
        with ledger.turn(self._store, durable=False) as conn:
            queued = self._look_after(conn)
        if queued or not first:
            handed += self._hand_out(notified=notified)
        return handed

    def _hand_out(self, *, notified: bool) -> int:
        with ledger.turn(self._store, durable=False) as conn:
            marked = self._mark(conn, notified=notified)
        # After the commit: a message must never be faster than its mark.
        for (queue, together), messages in marked.items():
            self._delivery.send(messages, queue, together=together)
        return sum(map(len, marked.values()))

    def run(self) -> None:
        """Rounds, until `stop`."""
        failures = 0
        while not self._stopping.is_set():
            for heard in self._store.listen(CHANNEL, timeout_s=self._sleep_s):
                if self._stopping.is_set():
                    return
                try:
                    # While there is more to hand out, no notification is waited for.
                    notified = heard is not None
                    while self.tick(notified=notified) and not self._stopping.is_set():
                        notified = False
                    failures = 0
                except (TheonError, DBAPIError) as error:
                    failures += 1
                    _log.warning("the dispatcher cannot work, and tries again: %s", error)
                    self._stopping.wait(min(LONGEST_BACKOFF_S, 0.1 * 2 ** min(failures, 8)))
                except Exception:
                    failures += 1
                    _log.exception("the dispatcher met an error that it does not know")
                    self._stopping.wait(min(LONGEST_BACKOFF_S, 0.1 * 2 ** min(failures, 8)))

    def _sleep_s(self) -> float:
        due_s = LONGEST_SLEEP_S if self._next_due_s is None else self._next_due_s
        return max(0.001, min(LONGEST_SLEEP_S, due_s))

    def _look_after(self, conn: Connection) -> int:
        """What time brings about; returns how many jobs it put into the queue."""
        self._looked_s = now_s = time.monotonic()
        queued = ledger.promote(conn)
        self._next_due_s = ledger.next_ready_s(conn)
        if now_s >= self._care_at_s:
            queued += sum(ledger.expire(conn))
            _lose_silent_workers(conn)
            # While an old snapshot is held this slows down; it may take a tenth of the time.
            self._care_at_s = now_s + max(CARE_S, 10 * (time.monotonic() - now_s))
        if now_s >= self._fold_at_s:
            _fold_counts(conn)
            self._fold_at_s = now_s + FOLD_S
        if now_s >= self._learn_at_s:
            self._predictor = predict.load(conn)
            self._learn_at_s = now_s + max(LEARN_S, 20 * (time.monotonic() - now_s))
        return queued

    def _cost(self, kind: str) -> float:
        if kind not in self._kinds:
            return 1.0
        return predict.slot_cost(self._predictor.predict(self._kinds[kind], None).p50_s)

    def _mark(self, conn: Connection, *, notified: bool) -> _Parcels:
        # Before anything is counted: two that count at the same time would fill the same room.
        if not _alone(conn):
            return {}
        now = situation.read(conn, self._kinds, self._cost)
        live = now.workers
        room = sum(worker.room for worker in live)
        if room <= 0:
            return {}
        # Enough for a choice, and enough to fill the room with jobs as short as those of late.
        wanted = min(candidates.BUFFER, ceil(4 * room + room / self._usual_cost) + 64)
        found = self._buffer.first(conn, wanted, self._predictor, notified=notified)
        now_s = time.time()
        choice = policy.choose(found, now.running, now.limits, live, now_s)
        if not choice.chosen:
            return {}
        costs = {candidate.job_id: candidate.cost for candidate in found}
        self._usual_cost = fmean(costs[job_id] for job_id in choice.chosen)
        messages = ledger.dispatch(conn, [i for i in choice.chosen if i not in choice.alone])
        if choice.alone:
            alone.dispatch_alone(conn, choice.alone)
        self._buffer.remove(set(choice.chosen))
        by_id = {message.job_id: message for message in messages}
        of_choice = {candidate.job_id: candidate for candidate in found}
        chosen = [(of_choice[i], by_id[i]) for i in choice.chosen if i in by_id]
        return _parcels(chosen, len(live))


def _parcels(chosen: list[tuple[policy.Candidate, ledger.Message]], workers: int) -> _Parcels:
    """The messages per queue, in the order of the choice; short jobs travel together.

    Of these every worker gets two pieces at least, so that none has all the work.
    """
    parcels: _Parcels = {}
    short = sum(candidate.cost <= SHORT_COST for candidate, _ in chosen)
    piece = max(1, min(MOST_TOGETHER, short // (2 * max(1, workers))))
    for candidate, message in chosen:
        together = piece if candidate.cost <= SHORT_COST else 1
        parcels.setdefault((candidate.queue, together), []).append(message)
    return parcels


def _alone(conn: Connection) -> bool:
    """Whether this transaction is the only one that counts and hands out."""
    return bool(
        conn.execute(
            text("SELECT pg_try_advisory_xact_lock(hashtext('theon.jobs.dispatch'))")
        ).scalar()
    )


def _lose_silent_workers(conn: Connection) -> None:
    conn.execute(
        text(
            "UPDATE theon.job_workers SET state = 'lost' WHERE state IN ('running', 'draining')"
            " AND heartbeat_at < clock_timestamp() - make_interval(secs => :alive_s)"
        ),
        {"alive_s": situation.ALIVE_S},
    )


def _fold_counts(conn: Connection) -> None:
    """Replace the deltas of a counter by their sum; rows that another folds are left alone."""
    conn.execute(
        text(
            "WITH taken AS (DELETE FROM theon.job_counts WHERE ctid IN (SELECT ctid"
            "  FROM theon.job_counts FOR UPDATE SKIP LOCKED) RETURNING *)"
            " INSERT INTO theon.job_counts (campus_id, queue, kind, state, delta)"
            " SELECT campus_id, queue, kind, state, sum(delta) FROM taken"
            " GROUP BY 1, 2, 3, 4 HAVING sum(delta) <> 0"
        )
    )
