"""One measured task of the job system per process: `python -m bench.jobs_work TASK COUNT`.

Prints one line of JSON: seconds, peak_mb and what else the task found. All use an embedded
PostgreSQL of their own with the settings that Theon gives it, so with fsync.
"""

import asyncio
import json
import random
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from sqlalchemy import text

from bench import data, jobs_kinds
from bench.jobs_services import SLOTS, bare_celery_worker, redis, wait_for, worker
from theon.jobs.deliveries.celery import CeleryDelivery
from theon.jobs.deliveries.local import LocalDelivery
from theon.jobs.dispatcher import Dispatcher
from theon.jobs.enqueue import NewJob, enqueue, enqueue_many
from theon.jobs.supervisor import Supervisor
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Result = dict[str, Any]
WARM_UP = 400
PER_CALL = 1_000
LATENCIES = 400
OPEN = "SELECT EXISTS (SELECT FROM theon.jobs WHERE state = ANY (:states))"
OPEN_STATES = ["scheduled", "queued", "dispatched", "running"]


@contextmanager
def fresh_store(name: str, **changes: Any) -> Iterator[tuple[Store, Settings]]:
    """A store in a new home; the home is removed afterwards."""
    home = data.FOLDER / f"jobs-{name}"
    shutil.rmtree(home, ignore_errors=True)
    settings = Settings(home=home, postgres_url=None, postgres_app_url=None, **changes)
    try:
        with Store.open(settings) as store:
            yield store, settings
    finally:
        shutil.rmtree(home, ignore_errors=True)


def put(store: Store, count: int, kind: str = "bench.nothing") -> None:
    """Enqueue `count` jobs, as many per call as a careful caller would."""
    for start in range(0, count, PER_CALL):
        new = [NewJob(kind)] * min(PER_CALL, count - start)
        with store.transaction(Scope.district()) as conn:
            enqueue_many(conn, jobs_kinds.kinds(), new)


def all_ended(store: Store) -> bool:
    with store.transaction(Scope.district()) as conn:
        return not conn.execute(text(OPEN), {"states": OPEN_STATES}).scalar()


def run_all(store: Store, count: int) -> float:
    """Seconds from the first call that enqueues to the last outcome in the ledger."""
    put(store, WARM_UP)
    wait_for(lambda: all_ended(store), "the first jobs")
    begun = time.perf_counter()
    put(store, count)
    wait_for(lambda: all_ended(store), "the jobs", limit_s=1200)
    seconds = time.perf_counter() - begun
    with store.transaction(Scope.district()) as conn:
        completed, changes = conn.execute(
            text(
                "SELECT (SELECT count(*) FROM theon.jobs WHERE state = 'completed'),"
                " (SELECT count(*) FROM theon.job_history)"
            )
        ).one()
    assert completed == count + WARM_UP, completed
    assert changes >= 4 * completed, changes
    return seconds


@contextmanager
def embedded() -> Iterator[Store]:
    """Supervisor and dispatcher in this process, as `theon serve` has them."""
    with fresh_store("embedded") as (store, settings):
        kinds = jobs_kinds.kinds()
        supervisor = Supervisor(
            store, settings, kinds, kinds_source=jobs_kinds.SOURCE, queues=[jobs_kinds.QUEUE],
            slots=SLOTS, delivery="local",
        )  # fmt: skip
        dispatcher = Dispatcher(store, kinds, LocalDelivery(supervisor))
        supervisor.start()
        dispatcher.start()
        try:
            yield store
        finally:
            dispatcher.stop()
            dispatcher.join(10)
            supervisor.stop()
            supervisor.join(30)


@contextmanager
def on_redis() -> Iterator[Store]:
    """A worker on Redis; the dispatcher is in this process."""
    with redis() as url, fresh_store("celery", redis_url=url) as (store, settings):
        delivery = CeleryDelivery(url)
        dispatcher = Dispatcher(store, jobs_kinds.kinds(), delivery)
        with worker(settings.home_dir, url):
            dispatcher.start()
            try:
                yield store
            finally:
                dispatcher.stop()
                dispatcher.join(10)
                delivery.close()


def ours_jobs_embedded(count: int) -> Result:
    with embedded() as store:
        return {"seconds": run_all(store, count)}


def ours_jobs_celery(count: int) -> Result:
    with on_redis() as store:
        return {"seconds": run_all(store, count)}


def theirs_jobs_celery(count: int) -> Result:
    """Publish, and wait for the last: its queue is first in, first out."""
    with (
        redis() as url,
        bare_celery_worker(url),
        Redis.from_url(url, socket_timeout=None) as client,
    ):
        app = jobs_kinds.bare_celery(url)
        tasks = app.tasks
        with app.producer_pool.acquire(block=True) as producer:

            def publish(number: int) -> None:
                for _ in range(number):
                    tasks["bench.nothing"].apply_async(producer=producer)
                tasks["bench.mark"].apply_async(args=("end",), producer=producer)

            publish(WARM_UP)
            assert client.blpop(jobs_kinds.MARK, 60)
            begun = time.perf_counter()
            publish(count)
            assert client.blpop(jobs_kinds.MARK, 1200)
            return {"seconds": time.perf_counter() - begun}


def theirs_jobs_procrastinate(count: int) -> Result:
    """The faster of few and many tasks at a time; enqueued in batches, like ours."""
    with fresh_store("procrastinate") as (store, _):
        url = store._owner.url.set(drivername="postgresql")
        with store.owner_transaction() as conn:
            conn.exec_driver_sql("CREATE SCHEMA procrastinate")
        conninfo = url.render_as_string(hide_password=False)
        found = [asyncio.run(_procrastinate(conninfo, count, n)) for n in (SLOTS, 10 * SLOTS)]
    return {"seconds": min(found)}


async def _procrastinate(conninfo: str, count: int, concurrency: int) -> float:
    import procrastinate  # noqa: PLC0415 - only this task needs it

    connector = procrastinate.PsycopgConnector(
        conninfo=conninfo, kwargs={"options": "-c search_path=procrastinate"}
    )
    app = procrastinate.App(connector=connector)
    done = asyncio.Event()
    left = 0

    @app.task(name="bench_nothing")
    async def nothing() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    async def run(number: int) -> None:
        nonlocal left
        left = number
        done.clear()
        for start in range(0, number, PER_CALL):
            some = min(PER_CALL, number - start)
            await nothing.batch_defer_async(*[{} for _ in range(some)])
        await done.wait()

    async with app.open_async():
        exists = await connector.execute_query_one_async(
            "SELECT to_regclass('procrastinate.procrastinate_jobs') IS NOT NULL AS there"
        )
        if not exists["there"]:
            await app.schema_manager.apply_schema_async()
        work = asyncio.create_task(
            app.run_worker_async(concurrency=concurrency, install_signal_handlers=False)
        )
        await run(WARM_UP)
        begun = time.perf_counter()
        await run(count)
        seconds = time.perf_counter() - begun
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    return seconds


def _latencies(store: Store, count: int) -> Result:
    """Milliseconds from the call that asks for a job to the job's first line, one at a time."""
    put(store, WARM_UP)
    wait_for(lambda: all_ended(store), "the first jobs")
    chance = random.Random(7)  # noqa: S311 - keeps no secret
    time.sleep(2.0)
    for _ in range(count):
        with store.transaction(Scope.district()) as conn:
            new = NewJob("bench.latency", jobs_kinds.Asked(time.time()))
            enqueue(conn, jobs_kinds.kinds(), new)
        time.sleep(chance.uniform(0.06, 0.14))
    wait_for(lambda: all_ended(store), "the last jobs")
    with store.transaction(Scope.district()) as conn:
        found = conn.execute(
            text("SELECT result FROM theon.jobs WHERE kind = 'bench.latency' ORDER BY id")
        ).scalars()
        waits_ms = sorted(1000 * float(value) for value in found)
    assert len(waits_ms) == count
    parts = statistics.quantiles(waits_ms, n=100)
    return {"seconds": sum(waits_ms) / 1000, "p50_ms": parts[49], "p99_ms": parts[98]}


def ours_latency_embedded(count: int) -> Result:
    with embedded() as store:
        return _latencies(store, count)


def ours_latency_celery(count: int) -> Result:
    with on_redis() as store:
        return _latencies(store, count)


def main() -> None:
    from bench.jobs_queue import TASKS as OF_QUEUES  # noqa: PLC0415 - it uses this module

    task, count = sys.argv[1], int(sys.argv[2])
    tasks: dict[str, Callable[[int], Result]] = {**TASKS, **OF_QUEUES}
    found = tasks[task](count)
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    sys.stdout.write(json.dumps(found) + "\n")


TASKS: dict[str, Callable[[int], Result]] = {
    task.__name__: task
    for task in (
        ours_jobs_embedded, ours_jobs_celery, theirs_jobs_celery, theirs_jobs_procrastinate,
        ours_latency_embedded, ours_latency_celery,
    )
}  # fmt: skip


if __name__ == "__main__":
    main()
