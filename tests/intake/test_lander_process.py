"""A service lands events in a process beside it, which comes back when it dies and ends with it."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
from sqlalchemy import text
from test_lander import actions, send

from theon.lander_process import LanderProcess
from theon.roster.campuses import add_campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope

LIMIT_S = 120


@pytest.fixture
def campus(store: Store) -> str:
    """A campus whose events no other test has put into the lake of these settings."""
    return add_campus(store, f"c{uuid.uuid4().hex[:8]}", "Europe/London").slug


@contextmanager
def landing(settings: Settings) -> Iterator[LanderProcess]:
    lander = LanderProcess(settings)
    lander.start()
    try:
        yield lander
    finally:
        lander.stop()
        lander.join(LIMIT_S)


def until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def test_events_land_and_count_in_a_process_that_ends_when_it_is_told_to(
    store: Store, store_settings: Settings, campus: str
) -> None:
    with landing(store_settings) as lander:
        send(store, campus, "a")
        until(lambda: actions(store, campus) == 1)
        assert lander.pid is not None
        assert lander.pid != os.getpid()
        assert psutil.pid_exists(lander.pid)
    assert not lander.alive
    until(lambda: not psutil.pid_exists(lander.pid or 0))


def test_one_that_was_killed_is_replaced_and_nothing_is_lost_or_counted_twice(
    store: Store, store_settings: Settings, campus: str
) -> None:
    with landing(store_settings) as lander:
        for number in range(3):
            send(store, campus, f"{number}")
            until(lambda: lander.pid is not None and psutil.pid_exists(lander.pid))
            killed = lander.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)  # somewhere in its start, its landing, its refresh
            send(store, campus, f"{number}, again")
            until(lambda killed=killed: lander.pid != killed)
        until(lambda: actions(store, campus) == 6)
        with store.transaction(Scope(campus)) as conn:
            assert conn.execute(text("SELECT count(*) FROM theon.event_journal")).scalar_one() == 0


def test_it_ends_with_a_service_that_was_killed(store: Store, store_settings: Settings) -> None:
    program = (
        "import sys, time; from theon.lander_process import LanderProcess;"
        "from theon.settings import Settings;"
        "lander = LanderProcess(Settings(home=sys.argv[1], postgres_url=None,"
        " postgres_app_url=None)); lander.start()\n"
        "while lander.pid is None: time.sleep(0.05)\n"
        "print(lander.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(store_settings.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        assert psutil.pid_exists(pid)
        service.kill()
    until(lambda: not psutil.pid_exists(pid))
