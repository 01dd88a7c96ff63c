"""A home of the test's own, and other processes that use its store."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_processes import OtherUser

from theon.settings import Settings
from theon.store import postmaster


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for homes with a server, with a short path."""
    with tempfile.TemporaryDirectory(prefix="theon-") as folder:
        yield Path(folder)


@pytest.fixture
def home(place: Path) -> Iterator[Path]:
    """A THEON_HOME of this test; its server, if one is left, is ended."""
    folder = place / "home"
    yield folder
    postmaster.stop(folder / "postgres" / "data", limit_s=10)


@pytest.fixture
def home_settings(home: Path) -> Settings:
    """Settings for `home` and the embedded PostgreSQL."""
    return Settings(home=home, postgres_url=None, postgres_app_url=None)


@pytest.fixture
def other_user(home: Path) -> Iterator[Callable[[], OtherUser]]:
    """Starts other processes that use the store of `home`."""
    users: list[OtherUser] = []

    def start() -> OtherUser:
        users.append(OtherUser(home))
        return users[-1]

    yield start
    for user in users:
        if user.process.poll() is None:
            user.kill()
