"""Puts the HTTP API of background jobs onto an application."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from theon.api import jobs, jobs_actions, jobs_live, queues, schedules, workers
from theon.api.jobs_models import Problem
from theon.api.jobs_requests import JobsRoom
from theon.api.jobs_watcher import Watcher
from theon.jobs.context import clean
from theon.jobs.kinds import Kinds
from theon.jobs.schedules import Scheduler
from theon.store.engine import Store

PREFIX = "/api/v1"
FAULTS_NAMED = 10

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in {
        400: "the input cannot be used",
        401: "nobody is signed in",
        403: "the caller may not do this",
        404: "the caller's scope has no such thing",
        409: "its state does not allow this, or somebody else is changing it",
        422: "fields are missing or do not fit; names each",
        503: "the database is away, busy or took too long",
    }.items()
}


def add_jobs_api(app: FastAPI, store: Store, kinds: Kinds, scheduler: Scheduler) -> None:
    """Put the routes of jobs onto `app`, which `add_sign_in` has been given as well.

    Args:
        app: the application.
        store: where the ledger is.
        kinds: that there is code for.
        scheduler: for what people do with schedules; it need not run here.
    """
    app.state.theon_jobs = JobsRoom(store, kinds, scheduler, Watcher(store))
    app.add_exception_handler(RequestValidationError, _name_fields)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _in_shape)  # type: ignore[arg-type]
    # The streams first: their paths are more special than that of one job.
    for router in (
        jobs_live.router, jobs_actions.router, jobs.router, queues.router, schedules.router,
        workers.router,
    ):  # fmt: skip
        app.include_router(router, responses=PROBLEMS)


def end_streams(app: FastAPI) -> None:
    """End the streams of an application that stops; one without the API of jobs has none."""
    room = getattr(app.state, "theon_jobs", None)
    if isinstance(room, JobsRoom):
        room.watcher.close("the service stops; come back in a moment")


async def _name_fields(_request: Request, error: RequestValidationError) -> Response:
    """422: what is wrong, field by field."""
    faults = []
    for fault in error.errors():
        place = [str(part) for part in fault["loc"]]
        if fault["type"] == "json_invalid":
            faults.append(f"body, letter {place[-1]}: no JSON: {fault['ctx']['error']}")
            continue
        # "body" and "query" say little, except where the body itself is wrong.
        words = ".".join(place[1:]) or ".".join(place)
        faults.append(f"{words}: {fault['msg'].removeprefix('Value error, ')}")
    more = f"; and {len(faults) - FAULTS_NAMED} more" if len(faults) > FAULTS_NAMED else ""
    return JSONResponse(
        {
            "error": clean("; ".join(faults[:FAULTS_NAMED]) + more),
            "next_step": "Mend these fields; /api/docs shows what each route takes.",
        },
        422,
        {"Cache-Control": "no-store"},
    )


async def _in_shape(request: Request, error: HTTPException) -> Response:
    """The framework's own refusals, such as an unknown path, in the shape of all others."""
    if not request.url.path.startswith(PREFIX):
        return await http_exception_handler(request, error)
    return JSONResponse(
        {"error": str(error.detail), "next_step": "/api/docs shows the routes."},
        error.status_code,
        {"Cache-Control": "no-store", **(error.headers or {})},
    )
