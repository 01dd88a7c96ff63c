"""A long queue: how fast jobs are handed out of it, and how fast the first page of it is read."""

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text

from bench import jobs_kinds
from bench.jobs_work import Result, fresh_store
from theon.jobs import ledger
from theon.jobs.dispatcher import Dispatcher
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.ledger import Message, Outcome
from theon.jobs.query import list_jobs
from theon.jobs.search import parse_search
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

CAMPUSES = 20
OWNERS = 25  # per campus
SLOTS = 250
PER_CALL = 5_000
LEAST_S = 3.0
SNAPSHOT_S = 60.0
WORKER = "bench"
SEARCHES = ("", "state:queued", "state:completed", "campus:c07", "kind:bench.nothing owner:o3")


class Sink:
    """A delivery that keeps what it is given."""

    name = "sink"

    def __init__(self) -> None:
        self.kept: list[Message] = []

    def send(self, messages: Sequence[Message], queue: str, *, together: int = 1) -> None:
        del queue, together
        self.kept += messages

    def close(self) -> None:
        """Nothing is open."""


def fill(store: Store, count: int) -> None:
    """Queue `count` jobs of many campuses and owners, as a large district would have them."""
    for number in range(CAMPUSES):
        add_campus(store, f"c{number:02}", "UTC")
    for start in range(0, count, PER_CALL):
        new = [
            NewJob(
                "bench.nothing", campus=f"c{n % CAMPUSES:02}", owner=f"o{n // CAMPUSES % OWNERS}"
            )
            for n in range(start, min(start + PER_CALL, count))
        ]
        with store.transaction(Scope.district()) as conn:
            enqueue_many(conn, jobs_kinds.kinds(), new)
    with store.owner_transaction() as conn:
        conn.exec_driver_sql("ANALYZE theon.jobs")


_BEAT = """
INSERT INTO theon.job_workers (id, campus_id, host, pid, delivery, queues, state, slots)
SELECT :id, id, 'bench', 0, 'sink', ARRAY[:queue], 'running', :slots
FROM theon.campuses WHERE slug = 'district'
ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp()"""


class Handing:
    """A dispatcher, and a worker that ends at once what it is handed.

    Attributes:
        handed: jobs handed out.
        seconds: that the dispatcher's rounds took.
        worked_s: that beginning and ending the jobs took.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sink = Sink()
        self._dispatcher = Dispatcher(store, jobs_kinds.kinds(), self._sink)
        self.handed = 0
        self.seconds = 0.0
        self.worked_s = 0.0

    def round(self) -> None:
        with self._store.transaction(Scope.district()) as conn:
            given = {"id": WORKER, "queue": jobs_kinds.QUEUE, "slots": SLOTS}
            conn.execute(text(_BEAT), given)
        begun = time.perf_counter()
        self._dispatcher.tick(notified=False)
        handed = time.perf_counter()
        messages, self._sink.kept = self._sink.kept, []
        with self._store.transaction(Scope.district()) as conn:
            ledger.start(conn, messages, WORKER)
        with self._store.transaction(Scope.district()) as conn:
            ended = [Outcome(m.job_id, m.token, "completed", "ended well") for m in messages]
            ledger.finish(conn, ended)
        self.handed += len(messages)
        self.seconds += handed - begun
        self.worked_s += time.perf_counter() - handed

    def run(self, *, least_s: float, most: int) -> Result:
        """Hand out for at least `least_s` or until `most` jobs."""
        until_s = time.perf_counter() + least_s
        while time.perf_counter() < until_s and self.handed < most:
            self.round()
        return {
            "seconds": self.seconds,
            "handed": self.handed,
            "per_s": self.handed / self.seconds,
            "cycles_per_s": self.handed / (self.seconds + self.worked_s),
        }


@contextmanager
def old_snapshot(store: Store, seconds: float) -> Iterator[None]:
    """A query that holds its snapshot, as an analyst's long one does."""
    held = threading.Event()
    over = threading.Event()

    def hold() -> None:
        with store.transaction(Scope.district()) as conn:
            conn.execute(text("DECLARE held CURSOR FOR SELECT * FROM theon.job_history"))
            conn.execute(text("FETCH 1 FROM held"))
            held.set()
            over.wait(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    try:
        yield
    finally:
        over.set()
        thread.join()


def ours_dispatch(count: int) -> Result:
    """Out of a queue of `count`; of a long one also under an old snapshot, and its first page."""
    with fresh_store("queue") as (store, _):
        begun = time.perf_counter()
        fill(store, count)
        filled_s = time.perf_counter() - begun
        found = Handing(store).run(least_s=4 * LEAST_S, most=count * 4 // 5)
        found["enqueued_per_s"] = count / filled_s
        if count >= 100_000:
            found["lists_ms"] = first_pages(store)
            with old_snapshot(store, SNAPSHOT_S + 30):
                held = Handing(store).run(least_s=SNAPSHOT_S, most=count // 2)
                found["held_lists_ms"] = first_pages(store)
            found["held_per_s"] = held["per_s"]
            found["held_cycles_per_s"] = held["cycles_per_s"]
        return found


def first_pages(store: Store) -> dict[str, float]:
    """Milliseconds of the page's query, the 95th percentile of 40, for several searches."""
    found: dict[str, float] = {}
    for campus in ("district", "c07"):
        for words in SEARCHES:
            took: list[float] = []
            for _ in range(41):
                with store.transaction(Scope(campus)) as conn:
                    begun = time.perf_counter()
                    list_jobs(conn, parse_search(words))
                    took.append(1000 * (time.perf_counter() - begun))
            found[f"{campus}: {words or 'all'}"] = statistics.quantiles(took[1:], n=20)[18]
    return found


TASKS: dict[str, Any] = {"ours_dispatch": ours_dispatch}
