"""A running `theon serve` and the store behind it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
from tests.browser import wait_for
from tests.ports import held_port

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
    with held_port() as port, tempfile.TemporaryFile() as said:
        yield from _serving(theon, port, said)


def _serving(theon: Theon, port: int, said: IO[bytes]) -> Iterator[Site]:
    environment = os.environ | {"THEON_HOME": str(theon.settings.home_dir), "PORT": str(port)}
    command = [sys.executable, "-c", "from theon.cli import main; main()", "serve"]
    process = subprocess.Popen(command, env=environment, stderr=said)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, said.seek(0) or said.read()
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(answers)
        yield Site(url, theon)
    finally:
        process.terminate()
        process.wait(120)
