"""What the commands share: opening Theon, and progress on standard error."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from theon.bootstrap import Theon
    from theon.observability.progress import ProgressReporter


def open_theon() -> "Theon":
    """Open Theon with the settings of the environment, for one command."""
    from theon import bootstrap  # noqa: PLC0415 - only when a command runs
    from theon.settings import load_settings  # noqa: PLC0415

    return bootstrap.open_theon(load_settings())


def progress() -> "ProgressReporter":
    """The bars on standard error."""
    from theon.observability.progress import TerminalProgress  # noqa: PLC0415

    return TerminalProgress()
