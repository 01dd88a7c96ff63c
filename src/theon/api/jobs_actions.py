"""What people do to jobs over HTTP: cancel, retry, discard, prioritise; one and many."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Depends
from sqlalchemy import Connection, text

from theon.access.job_arguments import check_arguments
from theon.access.principals import Principal
from theon.access.requests import Refusal
from theon.api.jobs import JobPath
from theon.api.jobs_models import (
    ActionDone,
    ActionWanted,
    PreviewShown,
    PriorityWanted,
    Reason,
    RetryWanted,
)
from theon.api.jobs_requests import (
    Controller,
    JobsRoom,
    Room,
    changing,
    no_store,
    reading,
    refusing,
)
from theon.errors import InputError
from theon.jobs import admin
from theon.jobs.admin import Action
from theon.jobs.moves import Done
from theon.jobs.query import JobSummary, NoSuchJobError, summaries
from theon.jobs.search import JobFilter

router = APIRouter(prefix="/api/v1", tags=["jobs"], dependencies=[Depends(no_store)])


# -- many ----------------------------------------------------------------------------------


@router.post("/jobs/actions/preview", summary="See what an action for many jobs would change")
def post_preview(wanted: ActionWanted, principal: Controller, room: Room) -> PreviewShown:
    """How many jobs it is for, and the ids of some; nothing is changed."""
    action = _action(wanted)
    with reading(room.store, principal.scope) as conn:
        if wanted.ids is not None:
            states = _states(conn, wanted.ids)
            fitting = sorted((i for i, s in states.items() if s in action.states), reverse=True)
            sample = tuple(fitting[: admin.SAMPLE_JOBS])
            return PreviewShown(count=len(fitting), exact=True, sample=sample)
        found = admin.preview(conn, wanted.as_filter(), wanted.action)
    return PreviewShown(count=found.count, exact=found.exact, sample=found.sample)


@router.post("/jobs/actions", summary="Cancel, retry, discard or prioritise many jobs")
def post_action(wanted: ActionWanted, principal: Controller, room: Room) -> ActionDone:
    """By ids all or nothing; by filter a few thousand at a time, each with a line on record.

    Jobs that the action does not fit are left alone and told.
    """
    if wanted.ids is not None:
        return ActionDone.of(_act_on_ids(room, principal, wanted, wanted.ids))
    with refusing():
        chosen = wanted.as_filter()
        arguments = _for_filter(room, principal, wanted, chosen)
        action = Action(wanted.action, wanted.reason, wanted.priority, arguments)
        done = admin.apply_in_batches(
            room.store, principal.scope, room.kinds, action, chosen, principal.subject
        )
    return ActionDone.of(done)


def _action(wanted: ActionWanted) -> Action:
    return Action(wanted.action, wanted.reason, wanted.priority, wanted.arguments)


def _act_on_ids(
    room: JobsRoom, principal: Principal, wanted: ActionWanted, ids: Sequence[int]
) -> Done:
    actor = principal.subject
    with changing(room.store, principal.scope) as conn:
        if wanted.action == "cancel":
            return admin.cancel(conn, ids, actor, wanted.reason)
        if wanted.action == "discard":
            return admin.discard(conn, ids, actor, wanted.reason)
        if wanted.action == "prioritise":
            return admin.prioritise(conn, ids, wanted.priority or "", actor)
        arguments = _for_ids(conn, room, principal, ids, wanted.arguments)
        return admin.retry(conn, room.kinds, ids, actor, arguments)


def _for_ids(
    conn: Connection, room: JobsRoom, principal: Principal, ids: Sequence[int], arguments: Any
) -> Any:
    """The new arguments of jobs that are retried, if the caller may choose them for each."""
    if arguments is None:
        return None
    _states(conn, ids)  # all are there
    kinds = conn.execute(
        text("SELECT DISTINCT kind FROM theon.jobs WHERE id = ANY (:ids) ORDER BY kind"),
        {"ids": list(ids)},
    )
    for kind in kinds.scalars().all():
        check_arguments(principal, room.kinds, kind, arguments)
    return arguments


def _for_filter(
    room: JobsRoom, principal: Principal, wanted: ActionWanted, chosen: JobFilter
) -> Any:
    """The same by filter, which therefore names one kind."""
    if wanted.arguments is None:
        return None
    if len(chosen.kinds) != 1 or chosen.kinds[0] not in room.kinds:
        raise InputError(
            "other arguments are for jobs of one kind",
            where="filter",
            next_step="Name that kind, and no other, in the filter.",
        )
    return check_arguments(principal, room.kinds, chosen.kinds[0], wanted.arguments)


def _states(conn: Connection, ids: Sequence[int]) -> dict[int, str]:
    found = conn.execute(
        text("SELECT id, state FROM theon.jobs WHERE id = ANY (:ids)"), {"ids": list(ids)}
    )
    states = {int(job_id): str(state) for job_id, state in found}
    missing = sorted(set(ids) - set(states))
    if missing:
        raise NoSuchJobError(
            f"there is no job {missing[0]} in this scope",
            where="jobs",
            next_step="Nothing was changed. It may be of another campus, or removed.",
        )
    return states


# -- one -----------------------------------------------------------------------------------


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", response_model=JobSummary)
def post_cancel(
    job_id: JobPath, principal: Controller, room: Room, given: Reason | None = None
) -> JobSummary:
    """End it now, or, if it runs, within seconds; what waits for it fails. 409 if it has ended."""
    reason = given.reason if given else ""
    return _act(room, principal, job_id, lambda c, i: admin.cancel(c, i, principal.subject, reason))


@router.post("/jobs/{job_id}/retry", summary="Run a job again", response_model=JobSummary)
def post_retry(
    job_id: JobPath, principal: Controller, room: Room, given: RetryWanted | None = None
) -> JobSummary:
    """From its last checkpoint; with other arguments from the beginning. 409 if it cannot be."""
    wanted = given.arguments if given else None

    def retry(conn: Connection, ids: Sequence[int]) -> Done:
        arguments = _for_ids(conn, room, principal, ids, wanted)
        return admin.retry(conn, room.kinds, ids, principal.subject, arguments)

    return _act(room, principal, job_id, retry)


@router.post("/jobs/{job_id}/discard", summary="Put a dead letter aside", response_model=JobSummary)
def post_discard(
    job_id: JobPath, principal: Controller, room: Room, given: Reason | None = None
) -> JobSummary:
    """It is cancelled and can still be retried. 409 if it is no dead letter."""
    reason = given.reason if given else ""
    return _act(
        room, principal, job_id, lambda c, i: admin.discard(c, i, principal.subject, reason)
    )


@router.post(
    "/jobs/{job_id}/prioritise", summary="Give a job another priority", response_model=JobSummary
)
def post_prioritise(
    job_id: JobPath, given: PriorityWanted, principal: Controller, room: Room
) -> JobSummary:
    """It counts from the next choice on. 409 if the job has ended."""
    return _act(
        room,
        principal,
        job_id,
        lambda c, i: admin.prioritise(c, i, given.priority, principal.subject),
    )


def _act(
    room: JobsRoom,
    principal: Principal,
    job_id: int,
    do: Callable[[Connection, Sequence[int]], Done],
) -> JobSummary:
    with changing(room.store, principal.scope) as conn:
        done = do(conn, [job_id])
        for why in done.skipped.values():
            raise Refusal(
                409, f"job {job_id} was left alone: {why}", "Read it again: it has changed."
            )
        (job,) = summaries(conn, [job_id])
    return job
