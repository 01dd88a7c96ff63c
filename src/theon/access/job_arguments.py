"""Whose arguments a job takes: one rule for API and pages."""

from typing import Any

from theon.access.errors import ForbiddenError
from theon.access.principals import Principal
from theon.access.roles import Role
from theon.jobs.kinds import Kinds

SYSTEM_CATEGORY = "system"


def check_arguments(by: Principal, kinds: Kinds, kind_name: str, arguments: Any) -> Any:
    """The arguments as JSON values, if they hold and `by` may choose them.

    A system job keeps the house: how long jobs and the record of what people did are kept. Who
    may run it does not choose that, unless they are a system administrator.

    Args:
        by: who runs the job, or retries it with these arguments.
        kinds: that there is code for.
        kind_name: the job's.
        arguments: JSON values.

    Raises:
        UnknownKindError: there is no such kind.
        InputError: they do not hold.
        ForbiddenError: the choice is a system administrator's.
    """
    kind = kinds[kind_name]
    given = kind.dump(arguments)
    if (
        kind.category == SYSTEM_CATEGORY
        and by.role is not Role.SYSTEM_ADMINISTRATOR
        and given != kind.dump({})
    ):
        raise ForbiddenError(
            f"only a system administrator chooses the arguments of {kind.name}",
            next_step="Run it without arguments, or ask a system administrator.",
        )
    return given
