"""The page of dead letters: grouped by kind and class of error, retried or discarded as a group."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import Connection, text

from theon.access.principals import Principal
from theon.errors import InputError
from theon.jobs import admin, figures, query
from theon.jobs.admin import Action, Preview
from theon.jobs.figures import DeadLetters
from theon.jobs.moves import Done
from theon.jobs.query import JobSummary
from theon.jobs.search import JobFilter
from theon.web.jobs_base import actor_of, done, form_of, in_thread, page, read, site_of
from theon.web.jobs_filter import can_be_typed, words_of
from theon.web.sign_in import require_page

router = APIRouter(include_in_schema=False)

JOBS_SHOWN = 20
REASONS_SHOWN = 3
LONGEST_NOTE = 500
DID = {"retry": "are to run again", "discard": "are discarded"}

Reader = Annotated[Principal, Depends(require_page("jobs.read"))]
Controller = Annotated[Principal, Depends(require_page("jobs.control"))]


@dataclass(frozen=True)
class Group:
    """A group of dead letters that is open.

    Attributes:
        kind, error_kind: what they have in common.
        until: those that failed before this moment, in UTC; what comes later is another matter.
        matching: how many they are.
        jobs: the newest of them.
        words: that find them in the list of jobs; empty where no words can.
    """

    kind: str
    error_kind: str
    until: datetime
    matching: Preview
    jobs: tuple[JobSummary, ...]
    words: str


def read_group(conn: Connection, kind: str, error_kind: str) -> Group:
    """The dead letters of a kind with a class of error, which is empty for those without."""
    until: datetime = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
    chosen = group_filter(kind, error_kind, until)
    matching = admin.preview(conn, chosen, "discard")
    jobs = query.summaries(conn, matching.sample[:JOBS_SHOWN])
    words = search_words(kind, error_kind)
    return Group(kind, error_kind, until.astimezone(UTC), matching, tuple(jobs), words)


def group_filter(kind: str, error_kind: str, until: datetime) -> JobFilter:
    """Which jobs are the group.

    Raises:
        InputError: the kind is the name of a room, which stands for all its kinds.
    """
    if "." not in kind:
        raise InputError(
            f"{kind!r} names no single kind of job",
            where="dead letters",
            next_step="Choose the jobs in the list of jobs.",
        )
    return JobFilter(
        states=("failed",), kinds=(kind,), error_kinds=(error_kind,), ended_before=until
    )


def search_words(kind: str, error_kind: str | None) -> str:
    """What to type in the list of jobs to see the group; empty where it cannot be said."""
    if error_kind is None or not (can_be_typed(kind) and can_be_typed(error_kind)):
        return ""
    return words_of(JobFilter(states=("failed",), kinds=(kind,), error_kinds=(error_kind,)))


# -- the page and its forms ----------------------------------------------------------------


@router.get("/dead-letters")
async def dead_letters_page(
    request: Request, principal: Reader, kind: str = "", error: str = ""
) -> HTMLResponse:
    """All groups, and the one of `kind` and `error` opened."""

    def look(conn: Connection) -> tuple[list[DeadLetters], Group | None]:
        return figures.dead_letters(conn), read_group(conn, kind, error) if kind else None

    groups, opened = await read(request, principal, look)
    total = sum(group.count for group in groups)
    return page(
        request,
        principal,
        "jobs_dead_letters.html",
        title="Dead letters",
        here="dead-letters",
        groups=groups,
        opened=opened,
        total=total,
        complete=total < figures.DEAD_LETTERS_LOOKED_AT,
        longest_note=LONGEST_NOTE,
        search_words=search_words,
    )


@router.post("/dead-letters/retry")
async def take_retry(request: Request, principal: Controller) -> Response:
    """Run all jobs of a group again."""
    return await _act(request, principal, "retry")


@router.post("/dead-letters/discard")
async def take_discard(request: Request, principal: Controller) -> Response:
    """Put all jobs of a group aside."""
    return await _act(request, principal, "discard")


async def _act(request: Request, principal: Principal, name: str) -> Response:
    form = await form_of(request)
    given = {key: str(form.get(key, "")) for key in ("kind", "error", "until", "note")}
    site = site_of(request)

    def act() -> Done:
        note = given["note"].strip()[:LONGEST_NOTE]
        if not note:
            raise InputError(
                "a group is retried or discarded with a note that says why",
                where="dead letters",
                next_step="Go back and write one; it goes on record. Nothing was changed.",
            )
        return admin.apply_in_batches(
            site.store,
            principal.scope,
            site.kinds,
            Action(name, reason=note),
            group_filter(given["kind"], given["error"], _moment(given["until"])),
            actor_of(principal),
        )

    return done(request, "/dead-letters", describe(name, await in_thread(act)))


def _moment(given: str) -> datetime:
    try:
        at = datetime.fromisoformat(given)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise InputError(
            f"{given!r} is no moment with a time zone",
            where="dead letters",
            next_step="Open the group again. Nothing was changed.",
        )
    return at


def describe(name: str, did: Done) -> str:
    """What an action did, and which jobs it left alone and why."""
    count = len(did.changed)
    what = f"{count:,} jobs {DID[name]}." if count != 1 else f"1 job {DID[name]}."
    what = what.replace("1 job are", "1 job is") if count == 1 else what
    left = {**did.refused, **did.skipped}
    if not left:
        return what
    return f"{what} {len(left):,} left alone: {_reasons(list(left.items()))}"


def _reasons(left: Sequence[tuple[int, str]]) -> str:
    named = "; ".join(f"job {job_id}: {why}" for job_id, why in left[:REASONS_SHOWN])
    return f"{named}; and others." if len(left) > REASONS_SHOWN else f"{named}."
