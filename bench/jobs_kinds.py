"""Jobs that do nothing, for Theon's workers and for Celery's."""

import time
from dataclasses import dataclass

from celery import Celery

from theon.jobs.kinds import JobContext, Kinds, job

SOURCE = "bench.jobs_kinds:kinds"
QUEUE = "bench"
MARK = "bench:mark"


@dataclass(frozen=True)
class Nothing:
    """No arguments."""


@dataclass(frozen=True)
class Asked:
    """`at_s`: when it was asked for, seconds since the epoch."""

    at_s: float


@job("bench.nothing", queue=QUEUE)
def nothing(ctx: JobContext, args: Nothing) -> None:
    """Do nothing."""


@job("bench.latency", queue=QUEUE)
def latency(ctx: JobContext, args: Asked) -> float:
    """Seconds from the call that asked for the job to its first line."""
    return time.time() - args.at_s


def kinds() -> Kinds:
    return Kinds([nothing, latency])


def bare_celery(redis_url: str) -> Celery:
    """Celery as it is, but for results, which nobody reads here."""
    app = Celery("bench", broker=redis_url, set_as_current=False)
    app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)

    @app.task(name="bench.nothing", shared=False)
    def nothing() -> None:
        pass

    @app.task(name="bench.mark", shared=False)
    def mark(word: str) -> None:
        from redis import Redis  # noqa: PLC0415 - in the worker's child

        with Redis.from_url(redis_url) as client:
            client.rpush(MARK, word)

    return app
