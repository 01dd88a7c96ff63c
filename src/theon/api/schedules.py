"""Schedules over HTTP: what runs when, pause, resume, run now."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from theon.api.jobs_models import (
    JobsOfSchedule,
    Name,
    OfCampus,
    SchedulesChanged,
    SchedulesShown,
    SchedulesWanted,
)
from theon.api.jobs_requests import Planner, Reader, Room, changing, no_store, reading, refuse
from theon.errors import InputError

router = APIRouter(prefix="/api/v1", tags=["schedules"], dependencies=[Depends(no_store)])


@contextmanager
def _named() -> Iterator[None]:
    """404 for a schedule that the scope does not have: its name is the address."""
    try:
        yield
    except InputError as error:
        found = refuse(error)
        found.status = 404
        raise found from error


SchedulePath = Annotated[Name, Path(description="name of the schedule")]


@router.get("/schedules", summary="List schedules: next times, latest runs, missed runs")
def get_schedules(
    wanted: Annotated[SchedulesWanted, Query()], principal: Reader, room: Room
) -> SchedulesShown:
    """The schedules of the caller's scope; times are in UTC."""
    with reading(room.store, principal.scope) as conn:
        found = room.scheduler.upcoming(
            conn,
            name=wanted.name,
            campus=wanted.campus,
            count=wanted.upcoming,
            runs=wanted.runs,
        )
    return SchedulesShown(schedules=found)


@router.post("/schedules/{name}/pause", summary="Pause a schedule")
def post_pause(
    name: SchedulePath, principal: Planner, room: Room, given: OfCampus | None = None
) -> SchedulesChanged:
    """In one campus, or in every campus of the caller's scope."""
    campus = given.campus if given else None
    with changing(room.store, principal.scope) as conn, _named():
        count = room.scheduler.pause(conn, name, principal.subject, campus=campus)
    return SchedulesChanged(campuses=count)


@router.post("/schedules/{name}/resume", summary="Resume a schedule")
def post_resume(
    name: SchedulePath, principal: Planner, room: Room, given: OfCampus | None = None
) -> SchedulesChanged:
    """It goes on from now; what it would have run meanwhile is not caught up."""
    campus = given.campus if given else None
    with changing(room.store, principal.scope) as conn, _named():
        count = room.scheduler.resume(conn, name, principal.subject, campus=campus)
    return SchedulesChanged(campuses=count)


@router.post("/schedules/{name}/run", summary="Run a schedule now", status_code=201)
def post_run(
    name: SchedulePath, principal: Planner, room: Room, given: OfCampus | None = None
) -> JobsOfSchedule:
    """Once, whether it is paused or not; 409 if its former run has not ended."""
    campus = given.campus if given else None
    with changing(room.store, principal.scope) as conn, _named():
        ids = room.scheduler.run_now(conn, name, principal.subject, campus=campus)
    return JobsOfSchedule(jobs=ids)
