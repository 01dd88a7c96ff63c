"""A running `theon serve` and the store behind it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests.browser import wait_for

from theon.bootstrap import Theon
from theon.settings import Settings


@dataclass(frozen=True)
class Site:
    """A running `theon serve` and the store behind it."""

    url: str
    theon: Theon


def home_settings(home: Path) -> Settings:
    return Settings(home=home, postgres_url=None, postgres_app_url=None, session_limit_s=1800)


@contextmanager
def serving(theon: Theon) -> Iterator[Site]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"THEON_HOME": str(theon.settings.home_dir), "PORT": str(port)}
    command = [sys.executable, "-c", "from theon.cli import main; main()", "serve"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(answers)
        yield Site(url, theon)
    finally:
        process.terminate()
        process.wait(20)
