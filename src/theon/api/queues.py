"""Queues and pauses over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import Connection

from theon.access.job_pauses import check_pause
from theon.access.principals import Principal
from theon.access.requests import with_refusals
from theon.api.jobs_models import (
    Name,
    PauseOfQueue,
    PausesShown,
    PauseWanted,
    QueueShown,
    QueuesShown,
    ResumeOfQueue,
    ResumeWanted,
    WindowS,
)
from theon.api.jobs_requests import (
    Controller,
    JobsRoom,
    Reader,
    Room,
    Steward,
    changing,
    no_store,
    reading,
)
from theon.jobs import admin
from theon.jobs.figures import (
    WINDOW_S,
    Pause,
    QueueFigures,
    list_pauses,
    look_back,
    queue_figures,
)
from theon.jobs.kinds import Kinds

router = APIRouter(prefix="/api/v1", tags=["queues"], dependencies=[Depends(no_store)])

QueuePath = Annotated[Name, Path(description="name of the queue")]


@router.get("/queues", summary="List queues: depths, rates, waits, pauses")
def get_queues(
    principal: Reader, room: Room, window_s: Annotated[WindowS, Query()] = WINDOW_S
) -> QueuesShown:
    """Every queue that has jobs or is declared; rates and waits are of the window up to now."""
    with reading(room.store, principal.scope) as conn:
        window = look_back(conn, window_s)
        found = queue_figures(conn, window)
        pauses = list_pauses(conn)
    idle = _declared(room.kinds) - {figures.queue for figures in found}
    found += [QueueFigures(queue, {}, 0.0, None, None) for queue in idle]
    found.sort(key=lambda figures: figures.queue)
    shown = [QueueShown.of(figures, pauses) for figures in found]
    return QueuesShown(window_s=window.seconds, queues=shown)


@router.post("/queues/{name}/pause", summary="Pause a queue", response_model=Pause)
def post_pause_queue(
    name: QueuePath, principal: Steward, room: Room, given: PauseOfQueue | None = None
) -> Pause:
    """Nothing of it begins any more; what runs goes on. A second pause replaces the first."""
    return _pause(room, principal, "queue", name, given or PauseOfQueue())


@router.post("/queues/{name}/resume", summary="Resume a queue", status_code=204)
def post_resume_queue(
    name: QueuePath, principal: Steward, room: Room, given: ResumeOfQueue | None = None
) -> None:
    """In the campus in which it was paused; 400 if it was not."""
    campus = given.campus if given else None
    with changing(room.store, principal.scope) as conn:
        admin.resume(conn, "queue", name, principal.subject, campus=campus)


@router.get("/pauses", summary="List everything that rests")
def get_pauses(principal: Reader, room: Room) -> PausesShown:
    """Queues, kinds and campuses that are paused in the caller's scope: by whom, until when."""
    with reading(room.store, principal.scope) as conn:
        return PausesShown(pauses=list_pauses(conn))


@router.post(
    "/pauses", summary="Pause a queue, a kind or a campus", status_code=201, response_model=Pause
)
def post_pause(wanted: PauseWanted, principal: Controller, room: Room) -> Pause:
    """Nothing of it begins any more; what runs goes on. A second pause replaces the first.

    Queues are shared by all campuses, so that they are paused by system administrators only.
    """
    with_refusals(check_pause, principal, wanted.subject)
    return _pause(room, principal, wanted.subject, wanted.value, wanted)


@router.post("/pauses/resume", summary="Resume a queue, a kind or a campus", status_code=204)
def post_resume(wanted: ResumeWanted, principal: Controller, room: Room) -> None:
    """In the campus in which it was paused; 400 if it was not."""
    with_refusals(check_pause, principal, wanted.subject)
    with changing(room.store, principal.scope) as conn:
        admin.resume(conn, wanted.subject, wanted.value, principal.subject, campus=wanted.campus)


def _pause(
    room: JobsRoom, principal: Principal, subject: str, value: str, given: PauseOfQueue
) -> Pause:
    campus = value if subject == "campus" else given.campus or principal.campus
    how: dict[str, Any] = {"campus": campus, "reason": given.reason, "until": given.until}
    with changing(room.store, principal.scope) as conn:
        admin.pause(conn, room.kinds, subject, value, principal.subject, **how)
        return _find(conn, subject, value, campus)


def _find(conn: Connection, subject: str, value: str, campus: str) -> Pause:
    key = (subject, value, campus)
    return next(p for p in list_pauses(conn) if (p.subject, p.value, p.campus) == key)


def _declared(kinds: Kinds) -> set[str]:
    return {kind.queue for kind in kinds.values()}
