"""Queues are the district's; what concerns one campus is the matter of its administrators."""

import pytest

from tests.access.conftest import CAMPUSES
from theon.access.errors import ForbiddenError
from theon.access.job_pauses import check_pause, may_pause
from theon.access.principals import Principal, Via
from theon.access.roles import Role

ALLOWED = {
    Role.SYSTEM_ADMINISTRATOR: {"queue", "kind", "campus"},
    Role.CAMPUS_ADMINISTRATOR: {"kind", "campus"},
}


@pytest.mark.parametrize("role", list(Role), ids=[role.value for role in Role])
def test_who_may_pause_what(role: Role) -> None:
    by = Principal("account:1", "n", role, CAMPUSES[role], Via.SESSION)
    allowed = ALLOWED.get(role, set())
    assert {s for s in ("queue", "kind", "campus") if may_pause(by, s)} == allowed
    for subject in {"queue", "kind", "campus"} - allowed:
        with pytest.raises(ForbiddenError, match=f"may not pause or resume a {subject}"):
            check_pause(by, subject)
    for subject in allowed:
        check_pause(by, subject)
