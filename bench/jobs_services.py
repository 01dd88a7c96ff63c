"""What the jobs' bench runs beside itself: a private Redis, workers in processes of their own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from theon.errors import UnavailableError

WAIT_S = 60.0
SLOTS = 2


@contextmanager
def redis() -> Iterator[str]:
    """A Redis that keeps nothing on disk; gives its URL.

    Raises:
        UnavailableError: redis-server is not installed, or does not answer.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise UnavailableError(
            "redis-server is not installed",
            where="bench",
            next_step="tools/services install redis",
        )
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="theon-bench-") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        with process([program, *options, "--appendonly", "no"]):
            url = f"redis://127.0.0.1:{port}/0"
            with Redis.from_url(url) as client:
                wait_for(lambda: _answers(client), "redis-server")
            yield url


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _answers(client: "Redis") -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@contextmanager
def worker(home: Path, redis_url: str) -> Iterator[None]:
    """Theon's worker on Redis, with the jobs of the bench."""
    with process([sys.executable, "-m", "bench.jobs_worker", str(home), redis_url]):
        yield


@contextmanager
def bare_celery_worker(redis_url: str) -> Iterator[None]:
    """Celery's own worker, prefork, with as many processes as ours has slots."""
    command = [sys.executable, "-m", "bench.jobs_celery", redis_url]
    with process(command):
        yield


@contextmanager
def process(command: list[str], environment: dict[str, str] | None = None) -> Iterator[None]:
    """A program that is ended with all its children at the end of the block."""
    started = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait(20)


def wait_for(
    holds: Callable[[], bool], what: str, *, limit_s: float = WAIT_S, every_s: float = 0.05
) -> None:
    """Return when it holds.

    Raises:
        UnavailableError: it did not in time.
    """
    until_s = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > until_s:
            raise UnavailableError(f"waited {limit_s:,.0f} s for {what}", where="bench")
        time.sleep(every_s)
