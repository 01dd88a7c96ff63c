"""What the routes of background jobs share: what they work with, transactions, and refusals."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Response
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.requests import HTTPConnection

from theon.access.principals import Principal
from theon.access.requests import Refusal, refusal, require
from theon.access.roles import Permission
from theon.api.jobs_watcher import Watcher
from theon.errors import ConflictError, MissingError, TheonError
from theon.jobs.context import clean
from theon.jobs.kinds import Kinds
from theon.jobs.schedules import Scheduler
from theon.store.engine import Store
from theon.store.scope import Scope

READ_LIMIT_S = 5
CHANGE_LIMIT_S = 60
LOCK_LIMIT_S = 5

_OTHERWISE = "Ask for something else; /api/docs shows what each route takes."
_CANCELED = "57014"
_CONTENDED = {"40P01", "40001", "55P03"}  # deadlock, serialisation, lock not had in time
_DATA = "22"  # the class of values that do not fit


@dataclass(frozen=True)
class JobsRoom:
    """What the routes work with; one per application."""

    store: Store
    kinds: Kinds
    scheduler: Scheduler
    watcher: Watcher


def room_of(conn: HTTPConnection) -> JobsRoom:
    """The room that `add_jobs_api` put there."""
    room = conn.app.state.theon_jobs
    assert isinstance(room, JobsRoom)  # noqa: S101 - tells the type
    return room


def no_store(response: Response) -> None:
    """Jobs change: nobody keeps an answer."""
    response.headers["Cache-Control"] = "no-store"


Room = Annotated[JobsRoom, Depends(room_of)]
Reader = Annotated[Principal, Depends(require(Permission.JOBS_READ))]
Runner = Annotated[Principal, Depends(require(Permission.JOBS_RUN))]
Controller = Annotated[Principal, Depends(require(Permission.JOBS_CONTROL))]
Steward = Annotated[Principal, Depends(require(Permission.QUEUES_CONTROL))]
Planner = Annotated[Principal, Depends(require(Permission.SCHEDULES_CONTROL))]
Overseer = Annotated[Principal, Depends(require(Permission.WORKERS_READ))]


@contextmanager
def reading(store: Store, scope: Scope) -> Iterator[Connection]:
    """A transaction for a list or a page: it ends after a few seconds, whatever it reads.

    Raises:
        Refusal: see `refusing`.
    """
    limits = {"statement_timeout": f"{READ_LIMIT_S}s"}
    with refusing(), store.transaction(scope, limits) as conn:
        yield conn


@contextmanager
def changing(store: Store, scope: Scope) -> Iterator[Connection]:
    """A transaction for a change; who waits too long for somebody else's is told to come back.

    Raises:
        Refusal: see `refusing`.
    """
    limits = {"statement_timeout": f"{CHANGE_LIMIT_S}s", "lock_timeout": f"{LOCK_LIMIT_S}s"}
    with refusing(), store.transaction(scope, limits) as conn:
        yield conn


@contextmanager
def refusing() -> Iterator[None]:
    """Make answers of the errors that a person can do something about.

    Raises:
        Refusal: 404 no such thing, 409 somebody else changed the same, 400 other input, 403, 503
            the database is away, busy or took too long.
    """
    try:
        yield
    except TheonError as error:
        raise refuse(error) from error
    except PoolTimeoutError as error:
        raise Refusal(503, "the database is busy", "Try again in a moment.") from error
    except UnicodeEncodeError as error:
        raise _no_text() from error
    except DBAPIError as error:
        found = _of_database(error)
        if found is None:
            raise
        raise found from error


def refuse(error: TheonError) -> Refusal:
    """An error for a person as an answer, in whole characters."""
    found = refusal(error)
    if isinstance(error, MissingError):
        found.status = 404
    elif isinstance(error, ConflictError):
        found.status = 409
    found.error = clean(f"{error.where}: {error.what}" if error.where else error.what)
    found.next_step = clean(error.next_step or _OTHERWISE)
    return found


def _of_database(error: DBAPIError) -> Refusal | None:
    state = getattr(error.orig, "sqlstate", None) or ""
    if state == _CANCELED:
        return Refusal(
            503,
            f"the database did not answer within {READ_LIMIT_S} seconds",
            "Ask for less: a narrower filter, fewer jobs. Or try again when it has less to do.",
        )
    if state in _CONTENDED:
        return Refusal(409, "somebody else is changing the same jobs", "Try again in a moment.")
    if state.startswith(_DATA) or isinstance(error, DataError):
        return _no_text()
    return None


def _no_text() -> Refusal:
    return Refusal(
        400,
        "a value cannot be kept in the database",
        "Send texts without NUL characters and numbers of a usual size.",
    )
