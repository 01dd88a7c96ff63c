"""Runs `theon` as a person does: another process, with a THEON_HOME of its own."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from running_command import COMMAND

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One THEON_HOME for the tests of a module."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("POSTGRES_URL", "POSTGRES_APP_URL")}
    return kept | {"THEON_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def program() -> list[str]:
    """How `theon` is started."""
    return COMMAND


@pytest.fixture(scope="module")
def theon(environment: dict[str, str], program: list[str]) -> Run:
    """`theon("campus", "list")` and what came out of it; `env` adds to the environment."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, *arguments],
            env=environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
