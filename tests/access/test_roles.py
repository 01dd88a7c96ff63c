"""One table says who may do what; a principal sees its own campus and what is below."""

import re

import pytest

from theon.access.errors import ForbiddenError
from theon.access.principals import Principal, Via, check_grant
from theon.access.roles import PERMISSIONS, Permission, Role, check_place, read_role
from theon.errors import InputError
from theon.store.migrations.versions import m0003_access
from theon.store.scope import Scope

# Columns: system administrator, campus administrator, teacher, learner, service.
RULES = """
    jobs.read           yes yes no  no  yes
    jobs.run            yes yes no  no  yes
    jobs.control        yes yes no  no  no
    schedules.control   yes yes no  no  no
    queues.control      yes no  no  no  no
    workers.read        yes no  no  no  no
    metrics.read        yes yes yes no  yes
    events.send         yes yes no  no  yes
    delivery.read       yes yes no  no  yes
    delivery.control    yes yes no  no  no
    statements.read     yes yes no  no  yes
    accounts.manage     yes yes no  no  no
    keys.manage         yes yes no  no  no
"""
EXPECTED = {
    (role, words[0]): answer == "yes"
    for words in (line.split() for line in RULES.strip().splitlines())
    for role, answer in zip(Role, words[1:], strict=True)
}


def principal(role: Role, campus: str = "oak", via: Via = Via.SESSION) -> Principal:
    place = "district" if role is Role.SYSTEM_ADMINISTRATOR else campus
    return Principal("account:1", "somebody", role, place, via)


def test_the_rules_name_every_role_and_permission() -> None:
    """A new role or permission is decided here, or this fails."""
    assert set(EXPECTED) == {(role, permission.value) for role in Role for permission in Permission}
    assert set(PERMISSIONS) == set(Role)


@pytest.mark.parametrize(("role", "permission"), sorted(EXPECTED))
def test_each_role_may_do_what_the_rules_say(role: Role, permission: str) -> None:
    who = principal(role)
    assert who.may(permission) is EXPECTED[role, permission]
    if EXPECTED[role, permission]:
        who.check(permission)
    else:
        with pytest.raises(ForbiddenError, match=re.escape(permission)):
            who.check(permission)


def test_an_unknown_permission_is_nobodys() -> None:
    """A typing error in a route fails at once rather than letting everybody in, or nobody."""
    with pytest.raises(ValueError, match=re.escape("jobs.rea")):
        principal(Role.SYSTEM_ADMINISTRATOR).may("jobs.rea")


def test_the_database_knows_the_same_roles() -> None:
    assert set(m0003_access.ROLES) == {role.value for role in Role}


def test_an_unknown_role_is_refused_by_name() -> None:
    assert read_role("teacher") is Role.TEACHER
    with pytest.raises(InputError, match="root"):
        read_role("root")


@pytest.mark.parametrize("role", Role)
def test_a_scope_is_ones_own_campus(role: Role) -> None:
    """Only a system administrator's, and a service's made for it, is the whole district."""
    expected = "district" if role is Role.SYSTEM_ADMINISTRATOR else "oak"
    assert principal(role).scope == Scope(expected)


@pytest.mark.parametrize(
    ("role", "campus"),
    [
        (Role.SYSTEM_ADMINISTRATOR, "oak"),
        (Role.CAMPUS_ADMINISTRATOR, "district"),
        (Role.TEACHER, "district"),
        (Role.LEARNER, "district"),
    ],
)
def test_a_role_has_its_place(role: Role, campus: str) -> None:
    """No principal of such a kind can exist, wherever it comes from."""
    with pytest.raises(InputError, match="does not belong"):
        Principal("account:1", "x", role, campus, Via.TOKEN)
    check_place(Role.SERVICE, campus)


def test_nobody_gives_more_than_they_have() -> None:
    """A campus administrator makes every role but a system administrator; a teacher none."""
    allowed = {(by, role) for by in Role for role in Role if not _refuses(by, role)}
    assert allowed == {
        *((Role.SYSTEM_ADMINISTRATOR, role) for role in Role),
        *((Role.CAMPUS_ADMINISTRATOR, role) for role in set(Role) - {Role.SYSTEM_ADMINISTRATOR}),
    }


def _refuses(by: Role, role: Role) -> bool:
    try:
        check_grant(principal(by), role, Permission.ACCOUNTS_MANAGE)
    except ForbiddenError:
        return True
    return False
