"""What is measured on: a generated log of any size, made once and kept in `bench/data`."""

import os
from datetime import date
from pathlib import Path

from theon.simulation.files import write_logstore

FOLDER = Path(__file__).parent / "data"
EVENTS = int(os.environ.get("BENCH_EVENTS", "20000000"))
POSTGRES_EVENTS = min(EVENTS, int(os.environ.get("BENCH_POSTGRES_EVENTS", "2000000")))
SMALL_EVENTS = EVENTS // 4
WEEKS = 20
UNTIL = date(2026, 7, 5)
CAMPUS = "bench"
TIMEZONE = "Europe/London"


def log_csv(events: int) -> Path:
    """A logstore CSV of about `events` rows over 20 weeks."""
    path = FOLDER / f"log-{events}.csv"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_logstore(path, events=events, until=UNTIL, weeks=WEEKS)
    return path


def home(events: int) -> Path:
    """The THEON_HOME into which the log of that size is ingested."""
    return FOLDER / f"home-{events}"
