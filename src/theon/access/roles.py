"""Who may do what: the one table of roles and permissions."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from theon.errors import InputError
from theon.store.scope import DISTRICT


class Role(StrEnum):
    """What somebody is; an account, a key and a token have exactly one."""

    SYSTEM_ADMINISTRATOR = "system_administrator"
    CAMPUS_ADMINISTRATOR = "campus_administrator"
    TEACHER = "teacher"
    LEARNER = "learner"
    SERVICE = "service"


class Permission(StrEnum):
    """What somebody may do, always within the campuses of their scope."""

    JOBS_READ = "jobs.read"
    JOBS_RUN = "jobs.run"
    JOBS_CONTROL = "jobs.control"
    SCHEDULES_CONTROL = "schedules.control"
    QUEUES_CONTROL = "queues.control"
    WORKERS_READ = "workers.read"
    METRICS_READ = "metrics.read"
    EVENTS_SEND = "events.send"
    DELIVERY_READ = "delivery.read"
    DELIVERY_CONTROL = "delivery.control"
    STATEMENTS_READ = "statements.read"
    ACCOUNTS_MANAGE = "accounts.manage"
    KEYS_MANAGE = "keys.manage"


# Queues and workers are shared by all campuses, so they belong to the district's people.
PERMISSIONS: Mapping[Role, frozenset[Permission]] = MappingProxyType(
    {
        Role.SYSTEM_ADMINISTRATOR: frozenset(Permission),
        Role.CAMPUS_ADMINISTRATOR: frozenset(Permission)
        - {Permission.QUEUES_CONTROL, Permission.WORKERS_READ},
        Role.TEACHER: frozenset({Permission.METRICS_READ}),
        Role.LEARNER: frozenset(),
        Role.SERVICE: frozenset(
            {
                Permission.JOBS_READ,
                Permission.JOBS_RUN,
                Permission.METRICS_READ,
                Permission.EVENTS_SEND,
                Permission.DELIVERY_READ,
                Permission.STATEMENTS_READ,
            }
        ),
    }
)


def read_role(value: str) -> Role:
    """The role of this name.

    Raises:
        InputError: there is none; names those there are.
    """
    try:
        return Role(value)
    except ValueError as error:
        raise InputError(
            f"there is no role {value!r}",
            where="role",
            next_step=f"Choose one of {', '.join(Role)}.",
        ) from error


def check_place(role: Role, campus: str) -> None:
    """Refuse a role where it does not belong.

    The district's people are its system administrators; a service may work for the whole
    district; everybody else belongs to a campus below it.

    Raises:
        InputError: role and campus do not fit each other.
    """
    if role is Role.SERVICE:
        return
    if (campus == DISTRICT) != (role is Role.SYSTEM_ADMINISTRATOR):
        raise InputError(
            f"a {role.replace('_', ' ')} does not belong to {campus!r}",
            where="role and campus",
            next_step=f"A system administrator belongs to {DISTRICT!r}; a campus administrator, "
            "teacher or learner to a campus below it (`theon campus list` shows them).",
        )
