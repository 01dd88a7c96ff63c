"""Workers, dead letters and health over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from theon.api.jobs_models import DeadLettersShown, HealthShown, Name, WindowS, WorkersShown
from theon.api.jobs_requests import (
    Overseer,
    Reader,
    Room,
    Steward,
    changing,
    no_store,
    reading,
)
from theon.jobs import admin
from theon.jobs.figures import WINDOW_S, dead_letters, list_workers
from theon.jobs.health import health

router = APIRouter(prefix="/api/v1", tags=["workers"], dependencies=[Depends(no_store)])


@router.get("/workers", summary="List workers: slots, memory, what they run")
def get_workers(principal: Overseer, room: Room) -> WorkersShown:
    """The workers that were heard of in the last day; `lost` is one that is silent."""
    with reading(room.store, principal.scope) as conn:
        return WorkersShown(workers=list_workers(conn))


@router.post("/workers/{worker_id}/drain", summary="Drain a worker", status_code=202)
def post_drain(
    worker_id: Annotated[Name, Path(description="id of the worker")],
    principal: Steward,
    room: Room,
) -> None:
    """It begins nothing more, lets its jobs go on for its time to drain, and ends.

    It hears of it with its next heartbeat, within seconds. 400 if no such worker is at work.
    """
    with changing(room.store, principal.scope) as conn:
        admin.drain_worker(conn, worker_id, principal.subject)


@router.get("/dead-letters", summary="Group dead letters by kind and error")
def get_dead_letters(principal: Reader, room: Room) -> DeadLettersShown:
    """The largest group first, each with its newest job; `GET /jobs?state=failed` lists them."""
    with reading(room.store, principal.scope) as conn:
        return DeadLettersShown(groups=dead_letters(conn))


@router.get("/health-of-jobs", summary="Targets, slowest kinds, and the bottleneck")
def get_health(
    principal: Reader, room: Room, window_s: Annotated[WindowS, Query()] = WINDOW_S
) -> HealthShown:
    """The five targets over a window, and in a sentence what holds jobs up."""
    with reading(room.store, principal.scope) as conn:
        found = health(conn, window_s=window_s)
    return HealthShown.model_validate(found)
