"""The page of one job: its life, why it waits, what it needs, and what can be done to it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy import Connection, text

from theon.access.job_arguments import check_arguments
from theon.access.principals import Principal
from theon.access.requests import Refusal
from theon.jobs import admin
from theon.jobs.context import clean
from theon.jobs.enqueue import PRIORITIES
from theon.jobs.kinds import Kinds
from theon.jobs.moves import STATES, Done
from theon.jobs.query import JobDetails, get_job
from theon.jobs.search import JobFilter
from theon.jobs.states import ENDED, State
from theon.jobs.waiting import why_waiting
from theon.store.scope import Scope
from theon.web.jobs_base import (
    READ_LIMIT_S,
    actor_of,
    change,
    done,
    form_of,
    in_thread,
    page,
    read,
    site_of,
)
from theon.web.jobs_filter import can_be_typed, jobs_url
from theon.web.jobs_timeline import timeline
from theon.web.jobs_words import pretty, read_json, time_left, told
from theon.web.sign_in import PageRefusal, require_page

LONGEST_REASON = 500
NEIGHBOURS_SHOWN = 40
CHANGES_SHOWN = 200
AUDIT_LOOKED_AT = 5_000
AUDIT_SHOWN = 20

router = APIRouter(include_in_schema=False)

Reader = Annotated[Principal, Depends(require_page("jobs.read"))]
Controller = Annotated[Principal, Depends(require_page("jobs.control"))]

STATE_WORDS = {
    State.SCHEDULED: "It waits for its time or for other jobs.",
    State.QUEUED: "It may run now and waits for a slot.",
    State.DISPATCHED: "It was handed to a worker, which has not begun it yet.",
    State.RUNNING: "A worker runs it.",
    State.COMPLETED: "It ended well.",
    State.FAILED: "It failed and will not be tried again by itself: it is a dead letter.",
    State.CANCELLED: "It was cancelled.",
}

# Of the newest lines since the job was made: the table has no index by subject.
_AUDIT = """
SELECT at, actor, action, detail FROM (
    SELECT at, actor, action, subject, detail FROM theon.job_audit
    WHERE at >= :created_at ORDER BY at DESC LIMIT :looked_at) AS a
WHERE subject = :subject OR detail -> 'ids' @> to_jsonb(CAST(:id AS bigint))
ORDER BY at DESC LIMIT :shown"""


class AuditLine(NamedTuple):
    """What somebody did to the job."""

    at: datetime
    actor: str
    action: str
    detail: Any


@dataclass(frozen=True)
class _Shown:
    """A job, what was done to it, and why it waits, if it does."""

    details: JobDetails
    audit: tuple[AuditLine, ...]
    why: str


@router.get("/jobs/{job_id:int}")
async def job_page(request: Request, principal: Reader, job_id: int) -> Response:
    """All about a job of the scope."""
    return await _show(request, principal, job_id)


@router.post("/jobs/{job_id:int}/{name}")
async def act_on_job(request: Request, principal: Controller, job_id: int, name: str) -> Response:
    """Cancel, retry, discard or prioritise one job; or say on its page why that cannot be."""
    if name not in STATES:
        raise PageRefusal(Refusal(404, f"there is no action {name!r}", "Use the job's page."))
    form = await form_of(request)
    typed = {key: value for key, value in form.items() if isinstance(value, str)}
    kinds, actor = site_of(request).kinds, actor_of(principal)
    reason = clean(typed.get("reason", ""))[:LONGEST_REASON].strip()

    def act(conn: Connection) -> Done:
        if name == "cancel":
            return admin.cancel(conn, [job_id], actor, reason)
        if name == "discard":
            return admin.discard(conn, [job_id], actor, reason)
        if name == "prioritise":
            return admin.prioritise(conn, [job_id], typed.get("priority", ""), actor)
        arguments = _edited(conn, principal, kinds, job_id, typed.get("arguments"))
        return admin.retry(conn, kinds, [job_id], actor, arguments)

    try:
        result = await change(request, principal, act)
    except PageRefusal as refused:
        if refused.refusal.status == 404:
            raise
        return await _show(request, principal, job_id, fault=refused.refusal, typed=typed)
    return done(request, f"/jobs/{job_id}", told(name, result))


def _edited(
    conn: Connection, principal: Principal, kinds: Kinds, job_id: int, words: str | None
) -> Any:
    """Other arguments than the job has; None if they are the same, so that its checkpoint stays."""
    if words is None:
        return None
    details, arguments = get_job(conn, job_id), read_json(words)
    if arguments == details.arguments and pretty(arguments) == pretty(details.arguments):
        return None
    return check_arguments(principal, kinds, details.job.kind, arguments)


async def _show(
    request: Request,
    principal: Principal,
    job_id: int,
    *,
    fault: Refusal | None = None,
    typed: dict[str, str] | None = None,
) -> Response:
    site = site_of(request)
    shown = await read(request, principal, lambda conn: _look(conn, site.kinds, job_id))
    job = shown.details.job
    why = shown.why
    if job.state == State.QUEUED:
        # Caps and free slots are those of the whole district; of the sentence about them, and of
        # nothing else, the page's reader learns.
        why = await in_thread(lambda: _why_queued(request, job_id)) or why
    details = shown.details
    owner = jobs_url(JobFilter(owners=(job.owner,))) if can_be_typed(job.owner) else None
    return page(
        request,
        principal,
        "jobs_one.html",
        title=f"Job {job.id}",
        here="jobs",
        status=fault.status if fault else 200,
        live_url=f"/jobs/{job.id}",
        job=job,
        details=details,
        state_words=STATE_WORDS[State(job.state)],
        why=why,
        time_left=time_left,
        line=timeline(details.history, datetime.now(UTC)),
        history=details.history[-CHANGES_SHOWN:],
        neighbours_shown=NEIGHBOURS_SHOWN,
        audit=shown.audit,
        code_gone=job.kind not in site.kinds,
        signature=site.kinds[job.kind].signature if job.kind in site.kinds else "",
        may_do={
            action: principal.may("jobs.control") and job.state in states
            for action, states in STATES.items()
        },
        ended=job.state in ENDED,
        fault=fault,
        typed=typed or {},
        priorities=list(PRIORITIES),
        pretty=pretty,
        owner_url=owner,
        kind_url=jobs_url(JobFilter(kinds=(job.kind,))) if can_be_typed(job.kind) else None,
    )


def _look(conn: Connection, kinds: Kinds, job_id: int) -> _Shown:
    details = get_job(conn, job_id)
    rows = conn.execute(
        text(_AUDIT),
        {
            "created_at": details.job.created_at, "looked_at": AUDIT_LOOKED_AT,
            "subject": f"job {job_id}", "id": job_id, "shown": AUDIT_SHOWN,
        },
    )  # fmt: skip
    audit = tuple(AuditLine(*row) for row in rows)
    waits = details.job.state == State.SCHEDULED
    return _Shown(details, audit, why_waiting(conn, job_id, kinds) if waits else "")


def _why_queued(request: Request, job_id: int) -> str:
    site = site_of(request)
    limits = {"statement_timeout": f"{READ_LIMIT_S}s"}
    with site.store.transaction(Scope.district(), limits) as conn:
        found = why_waiting(conn, job_id, site.kinds)
        # It may have become a job that waits for others meanwhile, whose ids are told only to
        # those who see them.
        state = conn.execute(
            text("SELECT state FROM theon.jobs WHERE id = :id"), {"id": job_id}
        ).scalar()
    return found if state == State.QUEUED else ""
