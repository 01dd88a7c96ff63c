"""What the commands share: opening Theon, and progress on standard error."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from theon.errors import InputError

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


def check_state(what: str, state: str, states: Sequence[str]) -> None:
    """Refuse a state that there is not, of `what`; 'all' is one."""
    if state not in (*states, "all"):
        raise InputError(
            f"{what} is never {state!r}",
            where="--state",
            next_step=f"Use one of {', '.join(states)}, all.",
        )
