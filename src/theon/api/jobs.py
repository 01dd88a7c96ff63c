"""Jobs over HTTP: lists, one job, kinds, and running them."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from pydantic import TypeAdapter
from sqlalchemy import Connection, text

from theon.access.job_arguments import SYSTEM_CATEGORY, check_arguments
from theon.access.principals import Principal
from theon.access.roles import Role
from theon.api.jobs_models import (
    LARGEST_ID,
    LONGEST_DELAY_S,
    Depths,
    Enqueued,
    JobsEnqueued,
    JobShown,
    JobsListed,
    JobsPage,
    JobsToRun,
    JobWanted,
    KindShown,
    KindsShown,
    Name,
)
from theon.api.jobs_requests import (
    JobsRoom,
    Reader,
    Room,
    Runner,
    changing,
    no_store,
    reading,
)
from theon.errors import InputError
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.figures import depths
from theon.jobs.query import JobSummary, get_job, list_jobs, summaries
from theon.jobs.waiting import why_waiting
from theon.store.scope import Scope

router = APIRouter(prefix="/api/v1", tags=["jobs"], dependencies=[Depends(no_store)])

JobPath = Annotated[int, Path(ge=0, le=LARGEST_ID, description="id of the job")]
_KEY = TypeAdapter(Name)


@router.get("/jobs", summary="List jobs, newest first", response_model=JobsPage)
def get_jobs(wanted: Annotated[JobsListed, Query()], principal: Reader, room: Room) -> JobsPage:
    """The jobs of the caller's scope that match, a page at a time.

    Parameters of one name mean either; different ones must all hold. `q` takes the words of the
    search field: `kind:import campus:north "timed out"`.
    """
    with reading(room.store, principal.scope) as conn:
        page = list_jobs(conn, wanted.as_filter(), limit=wanted.limit, cursor=wanted.cursor)
    return JobsPage(jobs=page.jobs, next_cursor=page.cursor, complete=page.complete)


@router.get("/jobs/kinds", summary="List the kinds of jobs that can be run")
def get_kinds(principal: Runner, room: Room) -> KindsShown:
    """Name, arguments as a JSON schema, limits, and what each does."""
    free = principal.role is Role.SYSTEM_ADMINISTRATOR
    return KindsShown(
        kinds=[
            KindShown(
                name=kind.name,
                summary=kind.summary,
                queue=kind.queue,
                category=kind.category,
                arguments=kind.schema,
                arguments_are_free=free or kind.category != SYSTEM_CATEGORY,
                max_attempts=kind.max_attempts,
                max_lost=kind.max_lost,
                timeout_s=kind.timeout_s,
                memory_mb=kind.memory_mb,
                at_once=kind.at_once,
                at_once_per_owner=kind.at_once_per_owner,
                per_minute=kind.per_minute,
            )
            for kind in room.kinds.values()
        ]
    )


@router.get("/jobs/summary", summary="Count the jobs in each state")
def get_summary(principal: Reader, room: Room) -> Depths:
    """From counters, so it costs the same however many jobs there are."""
    with reading(room.store, principal.scope) as conn:
        return Depths(states=depths(conn))


@router.get("/jobs/{job_id}", summary="Show one job", response_model=JobShown)
def get_one(job_id: JobPath, principal: Reader, room: Room) -> JobShown:
    """Its arguments, result or error, every change, every attempt, what it needs, why it waits."""
    with reading(room.store, principal.scope) as conn:
        found = get_job(conn, job_id)
    why = ""
    if found.job.state in ("scheduled", "queued"):
        # Slots and caps are shared, so the truth is the district's; the job itself was seen.
        with reading(room.store, Scope.district()) as conn:
            why = why_waiting(conn, job_id, room.kinds)
    return JobShown(**vars(found), why_waiting=why)


@router.post(
    "/jobs",
    summary="Run a job",
    status_code=201,
    response_model=JobSummary,
    responses={200: {"model": JobSummary, "description": "its idempotency key was known"}},
)
def post_job(
    wanted: JobWanted,
    response: Response,
    principal: Runner,
    room: Room,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> JobSummary:
    """Put a job into the ledger; a worker runs it.

    With an idempotency key (in the body, or as the header `Idempotency-Key`) a second request
    of the same campus, kind and key gets the first one's job and the status 200.
    """
    with changing(room.store, principal.scope) as conn:
        if idempotency_key is not None:
            wanted = _with_key(wanted, idempotency_key)
        ((job_id, is_new),) = _enqueue(conn, room, principal, [wanted])
        (job,) = summaries(conn, [job_id])
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/api/v1/jobs/{job_id}"
    return job


@router.post("/jobs/batch", summary="Run several jobs, all or none", status_code=201)
def post_jobs(wanted: JobsToRun, principal: Runner, room: Room) -> JobsEnqueued:
    """Put jobs into the ledger in one transaction; `after` may name labels of the batch."""
    with changing(room.store, principal.scope) as conn:
        found = _enqueue(conn, room, principal, wanted.jobs)
    return JobsEnqueued(
        jobs=[
            Enqueued(id=job_id, label=job.label, new=is_new)
            for job, (job_id, is_new) in zip(wanted.jobs, found, strict=True)
        ]
    )


def _with_key(wanted: JobWanted, key: str) -> JobWanted:
    if wanted.idempotency_key not in (None, key):
        raise InputError(
            "the body and the header Idempotency-Key give two keys",
            where="idempotency_key",
            next_step="Give one.",
        )
    if not key.strip():
        raise InputError("the header Idempotency-Key is empty", where="idempotency_key")
    return wanted.model_copy(update={"idempotency_key": key})


def _enqueue(
    conn: Connection, room: JobsRoom, principal: Principal, wanted: list[JobWanted]
) -> list[tuple[int, bool]]:
    """The ids of the jobs, and whether each is new."""
    new = [_new_job(conn, room, principal, job) for job in wanted]
    ids = enqueue_many(conn, room.kinds, new)
    # What this transaction inserted is new; others were there under their keys.
    inserted = conn.execute(
        text(
            "SELECT id FROM theon.jobs WHERE id = ANY (:ids)"
            " AND xmin = CAST(pg_current_xact_id() AS xid)"
        ),
        {"ids": ids},
    )
    fresh = set(inserted.scalars())
    # A key that stands twice in one batch is new at the first.
    return [(job_id, job_id in fresh and job_id not in ids[:n]) for n, job_id in enumerate(ids)]


def _new_job(conn: Connection, room: JobsRoom, principal: Principal, wanted: JobWanted) -> NewJob:
    arguments: Any = check_arguments(principal, room.kinds, wanted.kind, wanted.arguments)
    return NewJob(
        wanted.kind,
        arguments,
        campus=wanted.campus or principal.campus,
        owner=principal.subject,
        priority=wanted.priority,
        delay_s=_delay_s(conn, wanted),
        deadline_at=wanted.deadline_at,
        idempotency_key=wanted.idempotency_key,
        after=wanted.after,
        label=wanted.label,
    )


def _delay_s(conn: Connection, wanted: JobWanted) -> float:
    """Seconds until it may run, on the database's clock."""
    if wanted.ready_at is None:
        return wanted.delay_s
    found = conn.execute(
        text("SELECT extract(epoch FROM CAST(:at AS timestamptz) - clock_timestamp())::float8"),
        {"at": wanted.ready_at},
    ).scalar_one()
    if found > LONGEST_DELAY_S:
        raise InputError("ready_at is more than ten years away", where="ready_at")
    return max(0.0, float(found))
