"""Who runs a system job does not choose how long the record of what they did is kept."""

from dataclasses import dataclass

import pytest

from theon.access.errors import ForbiddenError
from theon.access.job_arguments import check_arguments
from theon.access.principals import Principal, Via
from theon.access.roles import Role
from theon.errors import InputError
from theon.jobs.errors import UnknownKindError
from theon.jobs.kinds import JobContext, Kinds, job


@dataclass(frozen=True)
class Days:
    days: int = 30


@job("house.clean", category="system")
def clean(ctx: JobContext, args: Days) -> None:
    """Clean."""


@job("room.count", category="analytics")
def count(ctx: JobContext, args: Days) -> None:
    """Count."""


KINDS = Kinds([clean, count])
DISTRICT = Principal("account:1", "ada", Role.SYSTEM_ADMINISTRATOR, "district", Via.SESSION)
OAK = Principal("account:2", "ben", Role.CAMPUS_ADMINISTRATOR, "oak", Via.SESSION)
SERVICE = Principal("key:3", "sync", Role.SERVICE, "district", Via.KEY)


def test_a_system_administrator_chooses_the_arguments_of_every_job() -> None:
    for kind in ("house.clean", "room.count"):
        assert check_arguments(DISTRICT, KINDS, kind, {"days": 0}) == {"days": 0}


@pytest.mark.parametrize("by", [OAK, SERVICE], ids=["campus administrator", "service"])
def test_others_choose_them_of_jobs_that_do_not_keep_the_house(by: Principal) -> None:
    assert check_arguments(by, KINDS, "room.count", {"days": 7}) == {"days": 7}
    with pytest.raises(ForbiddenError, match=r"arguments of house\.clean"):
        check_arguments(by, KINDS, "house.clean", {"days": 0})


def test_they_may_run_those_as_they_are_declared() -> None:
    assert check_arguments(OAK, KINDS, "house.clean", {}) == {"days": 30}
    assert check_arguments(OAK, KINDS, "house.clean", {"days": 30}) == {"days": 30}


def test_what_does_not_hold_is_refused_whoever_asks() -> None:
    with pytest.raises(InputError, match="days"):
        check_arguments(DISTRICT, KINDS, "room.count", {"days": "soon"})
    with pytest.raises(UnknownKindError):
        check_arguments(DISTRICT, KINDS, "room.paint", {})
