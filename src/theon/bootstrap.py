"""Opens Theon: settings, store and lake. The only place that picks adapters."""

from dataclasses import dataclass
from types import TracebackType

from theon.errors import InputError, UnavailableError
from theon.intake import delivery_jobs
from theon.intake import jobs as intake_jobs
from theon.jobs import upkeep
from theon.jobs.kinds import Kinds
from theon.jobs.schedules import Schedule
from theon.lake.table import EventLake
from theon.metrics import jobs as metrics_jobs
from theon.metrics.catalog import load_catalog
from theon.metrics.tables import ensure_tables
from theon.settings import Settings
from theon.store.engine import Store


@dataclass(frozen=True)
class Theon:
    """Everything a command works with; close it, or use it as a context manager.

    Attributes:
        settings: as read at start.
        store: PostgreSQL, embedded or the operator's.
        lake: the events.
    """

    settings: Settings
    store: Store
    lake: EventLake

    def close(self) -> None:
        """Close what was opened; the last user of the embedded PostgreSQL stops it."""
        self.store.close()

    def __enter__(self) -> "Theon":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_theon(settings: Settings) -> Theon:
    """Make `THEON_HOME` if need be, then open the store and the lake.

    Raises:
        InputError: `THEON_HOME` is a file, or a setting does not fit.
        UnavailableError: the folder cannot be made or written, or no PostgreSQL answers.
    """
    home = settings.home_dir
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)  # ids and addresses are inside
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            "THEON_HOME is not a folder",
            where=str(home),
            next_step="Set THEON_HOME to a folder, or to one that does not exist yet.",
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"THEON_HOME cannot be made: {error.strerror}",
            where=str(home),
            next_step="Set THEON_HOME to a folder that you may write to.",
        ) from error
    store = Store.open(settings)
    try:
        ensure_tables(store, load_catalog())  # observers write into them before any refresh
    except BaseException:
        store.close()
        raise
    return Theon(settings, store, EventLake(settings))


def job_kinds() -> Kinds:
    """Every kind of job that this installation has code for; workers' processes call it."""
    return Kinds([*metrics_jobs.JOBS, *intake_jobs.JOBS, *delivery_jobs.JOBS, *upkeep.JOBS])


def job_schedules() -> tuple[Schedule, ...]:
    """Every schedule, declared beside what it runs."""
    rooms = (metrics_jobs, intake_jobs, delivery_jobs, upkeep)
    return tuple(schedule for room in rooms for schedule in room.SCHEDULES)
