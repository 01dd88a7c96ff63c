"""The form to run a job by hand."""

import dataclasses
import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy import Connection

from theon.access.job_arguments import check_arguments
from theon.access.principals import Principal
from theon.access.requests import Refusal
from theon.errors import InputError
from theon.jobs.enqueue import PRIORITIES, NewJob, enqueue
from theon.jobs.kinds import JobKind, Kinds
from theon.web.jobs_base import actor_of, change, done, form_of, page, read, site_of
from theon.web.jobs_filter import campuses_in_scope
from theon.web.jobs_words import pretty, read_json
from theon.web.sign_in import PageRefusal, require_page

BY_HAND = "high"  # somebody waits for it

router = APIRouter(include_in_schema=False)

Runner = Annotated[Principal, Depends(require_page("jobs.run"))]

_ONCE = re.compile(r"[A-Za-z0-9_-]{16,64}")


@router.get("/jobs/run")
async def run_page(request: Request, principal: Runner, kind: str = "") -> Response:
    """The kinds there are; of the chosen one, the form."""
    kinds = site_of(request).kinds
    chosen = _kind(kinds, kind)
    refusal = Refusal(404, f"there is no job {kind!r}", "Choose one of these.")
    typed = {"arguments": pretty(_defaults(chosen))} if chosen else {}
    return await _show(
        request, principal, chosen, typed, refusal if kind and chosen is None else None
    )


@router.post("/jobs/run")
async def run_it(request: Request, principal: Runner) -> Response:
    """Put the job into the ledger and go to its page; or show the form again and say why not."""
    form = await form_of(request)
    typed = {name: value for name, value in form.items() if isinstance(value, str)}
    kinds = site_of(request).kinds
    name = typed.get("kind", "")
    # A form that is sent twice, by a double click or by going back, is one job.
    once = typed.get("once", "")
    key = f"by hand {once}" if _ONCE.fullmatch(once) else None

    def put(conn: Connection) -> int:
        arguments = check_arguments(principal, kinds, name, read_json(typed.get("arguments", "")))
        new = NewJob(
            name,
            arguments,
            campus=typed.get("campus", principal.campus),
            owner=actor_of(principal),
            priority=typed.get("priority", BY_HAND),
            idempotency_key=key,
        )
        return enqueue(conn, kinds, new)

    try:
        job_id = await change(request, principal, put)
    except PageRefusal as refused:
        return await _show(request, principal, _kind(kinds, name), typed, refused.refusal)
    return done(request, f"/jobs/{job_id}", f"Job {job_id} is in the queue.")


async def _show(
    request: Request,
    principal: Principal,
    kind: JobKind | None,
    typed: dict[str, str],
    fault: Refusal | None,
) -> Response:
    campuses = await read(request, principal, campuses_in_scope)
    kinds = site_of(request).kinds
    return page(
        request,
        principal,
        "jobs_run.html",
        title=f"Run {kind.name}" if kind else "Run a job",
        here="jobs",
        status=fault.status if fault else 200,
        kind=kind,
        kinds=sorted(kinds.values(), key=lambda each: each.name),
        typed={"campus": principal.campus, "priority": BY_HAND, "arguments": "", **typed},
        fault=fault,
        campuses=campuses,
        priorities=list(PRIORITIES),
        once=secrets.token_urlsafe(16),
    )


def _kind(kinds: Kinds, name: str) -> JobKind | None:
    return kinds[name] if name in kinds else None  # noqa: SIM401 - `get` raises


def _defaults(kind: JobKind) -> Any:
    """The arguments that the kind takes if none are given; null where one has to be given."""
    try:
        return kind.dump({})
    except InputError:
        pass
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind.arguments):
        given = field.default
        if field.default_factory is not dataclasses.MISSING:
            given = field.default_factory()
        plain = isinstance(given, str | int | float | bool | list | dict)
        found[field.name] = given if plain else None
    return found
