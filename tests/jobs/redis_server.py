"""A private real Redis for tests: it can be stopped, killed, frozen, emptied and restarted."""

import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from types import TracebackType

import pytest
from redis import Redis
from redis.exceptions import RedisError
from tests.ports import held_port

START_S = 60.0


class RedisServer:
    """A redis-server on a free port that keeps nothing on disk; use it as a context manager."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed (tools/services install redis)")
        self._program = program
        self._folder = tempfile.mkdtemp(prefix="theon-redis-")
        self._held = ExitStack()
        self.port = self._held.enter_context(held_port())
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis.from_url(self.url, socket_timeout=START_S)

    def start(self) -> None:
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly no --dir {self._folder}"
        self._process = subprocess.Popen(
            [self._program, *options.split(), "--save", ""],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            try:
                with self.client() as client:
                    client.ping()
                return
            except RedisError:
                time.sleep(0.05)
        raise AssertionError(f"redis-server did not answer on port {self.port}")

    def stop(self) -> None:
        """End it in order; all its data is lost."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)  # one that is frozen must hear it
            process.wait(START_S)

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._held.close()
        shutil.rmtree(self._folder, ignore_errors=True)
