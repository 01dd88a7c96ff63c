"""Kafka to lake and metrics: `python -m bench.kafka_work TASK EVENTS` prints one line of JSON.

The broker, the producer that fills its topics beforehand, the consumer, PostgreSQL (with fsync) and
the metric engine share this machine.
"""

import json
import multiprocessing
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import psutil
from confluent_kafka import Producer
from sqlalchemy import text
from tests.kafka_broker import KafkaBroker

from bench import data
from bench.jobs_services import wait_for
from theon.intake.kafka_client import CONSUMED, PUBLISHED
from theon.intake.kafka_pair import KafkaPair
from theon.intake.kafka_status import read_status
from theon.lander_process import LanderProcess
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

Result = dict[str, Any]
PARTITIONS = 2
BEGIN = datetime(2026, 11, 16, 8, tzinfo=UTC).timestamp()
SPAN_S = 5 * 24 * 3600
# Names of events, as often as they are in a log.
KINDS = (
    ("\\core\\event\\course_viewed", "core", "viewed", "course"),
    ("\\mod_page\\event\\course_module_viewed", "mod_page", "viewed", "course_module"),
    ("\\mod_resource\\event\\course_module_viewed", "mod_resource", "viewed", "course_module"),
    ("\\mod_forum\\event\\discussion_viewed", "mod_forum", "viewed", "discussion"),
    ("\\mod_forum\\event\\post_created", "mod_forum", "created", "post"),
)


def values(events: int, seed: int) -> Iterator[bytes]:
    """Native events of 5,000 learners over five days, in order of time; each has six courses."""
    random = Random(seed)  # noqa: S311 - a log, not a secret
    for number in range(events):
        name, component, action, target = KINDS[min(random.randrange(8), 4)]
        learner = random.randrange(5000)
        at = datetime.fromtimestamp(BEGIN + SPAN_S * number / events, UTC)
        yield json.dumps(
            {
                "id": str(UUID(int=random.getrandbits(128), version=4)),
                "event_name": name,
                "occurred_at": at.isoformat(),
                "user_id": str(100 + learner),
                "course_id": str(100 + (7 * learner + random.randrange(6)) % 200),
                "component": component,
                "action": action,
                "target": target,
                "object_id": str(random.randrange(10_000)),
                "other": {"page": random.randrange(1000)},
            }
        ).encode()


def fill(brokers: str, events: int) -> None:
    """Send them, before anything is measured."""
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        }
    )
    for number, value in enumerate(values(events, 7)):
        producer.produce(CONSUMED[number % 3], value=value, partition=number // 3 % PARTITIONS)
        if number % 10_000 == 0:
            producer.poll(0)
        while len(producer) > 400_000:
            producer.poll(0.1)
    assert producer.flush(120) == 0


@contextmanager
def filled_broker(events: int) -> Iterator[KafkaBroker]:
    with KafkaBroker(java=("-Xms512m", "-Xmx512m", "-XX:+UseG1GC")) as broker:
        broker.create_topic(PUBLISHED)
        for topic in CONSUMED:
            broker.create_topic(topic, PARTITIONS)
        filler = multiprocessing.Process(target=fill, args=(broker.brokers, events))
        filler.start()
        filler.join()
        assert filler.exitcode == 0
        yield broker


@contextmanager
def opened(brokers: str) -> Iterator[tuple[Store, Settings]]:
    home = data.FOLDER / "kafka"
    shutil.rmtree(home, ignore_errors=True)
    settings = Settings(
        home=home,
        postgres_url=None,
        postgres_app_url=None,
        kafka_brokers=brokers,
        kafka_campus=data.CAMPUS,
    )
    try:
        with Store.open(settings) as store:
            add_campus(store, data.CAMPUS, data.TIMEZONE)
            yield store, settings
    finally:
        shutil.rmtree(home, ignore_errors=True)


class Peaks(threading.Thread):
    """Memory of this process and its lander while they work, in MB, sampled."""

    def __init__(self, lander: LanderProcess) -> None:
        super().__init__(daemon=True)
        self._lander = lander
        self.samples: list[float] = []
        self._done = threading.Event()

    def run(self) -> None:
        processes = [psutil.Process(), psutil.Process(self._lander.pid)]
        while not self._done.wait(0.2):
            self.samples.append(sum(p.memory_info().rss for p in processes) / 2**20)

    def stop(self) -> None:
        self._done.set()
        self.join()


def counted(store: Store) -> int:
    """Actions in the published metrics."""
    with store.transaction(Scope(data.CAMPUS)) as conn:
        there = conn.execute(text("SELECT to_regclass('metrics.user_day') IS NOT NULL"))
        if not there.scalar_one():
            return 0
        return int(
            conn.execute(
                text("SELECT coalesce(sum(total_actions), 0) FROM metrics.user_day")
            ).scalar_one()
        )


def ours_kafka(events: int) -> Result:
    """From topics that are full to metrics that count every event."""
    with filled_broker(events) as broker, opened(broker.brokers) as (store, settings):
        pair = KafkaPair(store, settings)
        lander = LanderProcess(settings)
        lander.start()
        wait_for(lambda: lander.pid is not None, "the lander")
        peaks = Peaks(lander)
        begun = time.perf_counter()
        peaks.start()
        pair.start()
        read_s = None
        while counted(store) < events:
            if read_s is None and pair.consumer.messages >= events:
                read_s = time.perf_counter() - begun
            time.sleep(0.1)
            assert time.perf_counter() - begun < 600, (counted(store), pair.consumer.error)
        seconds = time.perf_counter() - begun
        pair.stop()
        lander.stop()
        lander.join()
        peaks.stop()
        assert read_status(store, settings).lag == 0
        assert counted(store) == events
    half = len(peaks.samples) // 2
    return {
        "seconds": round(seconds, 3),
        "per_s": round(events / seconds),
        "read_s": round(read_s or seconds, 3),
        "peak_mb": round(max(peaks.samples)),
        "first_half_mb": round(max(peaks.samples[:half], default=0)),
    }


TASKS: dict[str, Callable[[int], Result]] = {"ours_kafka": ours_kafka}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](int(sys.argv[2]))))
