"""Who is asking: what a session, an API key and a bearer token all become."""

from dataclasses import dataclass
from enum import StrEnum

from theon.access.errors import ForbiddenError
from theon.access.roles import PERMISSIONS, Permission, Role, check_place
from theon.store.scope import Scope


class Via(StrEnum):
    """How somebody signed in."""

    SESSION = "session"
    KEY = "key"
    TOKEN = "token"  # noqa: S105 - the way, not a secret


@dataclass(frozen=True)
class Principal:
    """Somebody who has shown who they are.

    Attributes:
        subject: `account:<id>`, `key:<prefix>` or `token:<issuer>#<subject>`; the same tomorrow.
        name: for people to read.
        role: decides what they may do.
        campus: slug; decides whose rows they see.
        via: how they signed in.

    Raises:
        InputError: the role does not belong to that campus.
    """

    subject: str
    name: str
    role: Role
    campus: str
    via: Via

    def __post_init__(self) -> None:
        check_place(self.role, self.campus)

    @property
    def scope(self) -> Scope:
        """Their campus and all below it; PostgreSQL shows them nothing else."""
        return Scope(self.campus)

    @property
    def permissions(self) -> frozenset[Permission]:
        """What they may do."""
        return PERMISSIONS[self.role]

    def may(self, permission: Permission | str) -> bool:
        """Whether they may do this."""
        return Permission(permission) in self.permissions

    def check(self, permission: Permission | str) -> None:
        """Let pass who may do this.

        Raises:
            ForbiddenError: they may not.
        """
        if not self.may(permission):
            raise ForbiddenError(
                f"a {self.role.replace('_', ' ')} may not do this ({Permission(permission)})",
                next_step="Ask an administrator of your campus.",
            )


def check_grant(by: Principal | None, role: Role, permission: Permission) -> None:
    """Let nobody give away, or take over, more than they have.

    Args:
        by: who asks; None is the command line, whose user owns the data anyway.
        role: the role that is given, or that the account to be changed has.
        permission: what giving it takes.

    Raises:
        ForbiddenError: `by` lacks the permission, or the role may do more than `by`.
    """
    if by is None:
        return
    by.check(permission)
    if not PERMISSIONS[role] <= by.permissions:
        raise ForbiddenError(
            f"a {by.role.replace('_', ' ')} may not make or change a {role.replace('_', ' ')}",
            next_step="Ask a system administrator.",
        )


def scope_of(by: Principal | None) -> Scope:
    """Whose rows an administrative function works on; the command line's are all."""
    return Scope.district() if by is None else by.scope
