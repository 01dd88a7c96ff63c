"""The page of all jobs: search, filters and counts, a live table, pages, actions for many."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sqlalchemy import Connection, text
from starlette.datastructures import FormData

from theon.access.principals import Principal
from theon.access.requests import Refusal
from theon.errors import InputError
from theon.jobs import admin
from theon.jobs.admin import Action
from theon.jobs.context import clean
from theon.jobs.enqueue import PRIORITIES
from theon.jobs.kinds import Kinds
from theon.jobs.moves import STATES, Done
from theon.jobs.query import NoSuchJobError, Page, list_jobs, summaries
from theon.jobs.search import JobFilter, parse_search
from theon.web import jobs_filter
from theon.web.jobs_base import (
    LIVE_HEADER,
    actor_of,
    change,
    done,
    form_of,
    in_thread,
    page,
    read,
    site_of,
)
from theon.web.jobs_filter import Link, jobs_url
from theon.web.jobs_words import BUTTONS, number_of_jobs, time_left, told
from theon.web.sign_in import PageRefusal, require_page

JOBS_ON_A_PAGE = 50
IDS_AT_MOST = 1_000
LONGEST_REASON = 500

router = APIRouter(include_in_schema=False)

Reader = Annotated[Principal, Depends(require_page("jobs.read"))]
Controller = Annotated[Principal, Depends(require_page("jobs.control"))]


# -- the list ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """What the page shows of the jobs; `fault` stands in place of jobs that cannot be listed."""

    jobs: Page
    states: list[Link]
    fault: Refusal | None = None


@router.get("/jobs")
async def jobs_page(request: Request, principal: Reader, q: str = "", cursor: str = "") -> Response:
    """Jobs of a search, newest first; a search that means nothing is shown with what is wrong."""
    kinds = site_of(request).kinds
    chosen = JobFilter()
    try:
        chosen = _parse(q)
        shown = await read(request, principal, lambda conn: _list(conn, kinds, chosen, cursor))
    except PageRefusal as refused:
        fault = refused.refusal
        if fault.status != 400:
            raise
        chosen = JobFilter()
        shown = await read(request, principal, lambda conn: _nothing(conn, kinds, fault))
    live = LIVE_HEADER in request.headers
    words = [] if live else await read(request, principal, lambda conn: _words(conn, kinds))
    return page(
        request,
        principal,
        "jobs_list.html",
        title="Jobs",
        here="jobs",
        status=shown.fault.status if shown.fault else 200,
        q=q,
        fault=shown.fault,
        jobs=shown.jobs,
        states=shown.states,
        chips=jobs_filter.chips(chosen, kinds),
        counted=jobs_filter.is_counted(chosen),
        words=words,
        cursor=cursor,
        newest=jobs_url(chosen),
        older=jobs_url(chosen, cursor=shown.jobs.cursor) if shown.jobs.cursor else None,
        time_left=time_left,
        buttons=BUTTONS,
        priorities=list(PRIORITIES),
    )


def _list(conn: Connection, kinds: Kinds, chosen: JobFilter, cursor: str) -> _Shown:
    jobs = list_jobs(conn, chosen, limit=JOBS_ON_A_PAGE, cursor=cursor or None)
    counts = jobs_filter.state_counts(conn, kinds, chosen)
    return _Shown(jobs, jobs_filter.state_links(chosen, counts))


def _nothing(conn: Connection, kinds: Kinds, fault: Refusal) -> _Shown:
    counts = jobs_filter.state_counts(conn, kinds, JobFilter())
    states = jobs_filter.state_links(JobFilter(), counts)
    return _Shown(Page((), None, True), states, fault)


def _words(conn: Connection, kinds: Kinds) -> list[str]:
    slugs = [slug for slug, _ in jobs_filter.campuses_in_scope(conn)]
    return jobs_filter.suggestions(kinds, slugs)


def _parse(words: str) -> JobFilter:
    try:
        return parse_search(words)
    except InputError as error:
        raise PageRefusal(Refusal(400, error.what, error.next_step)) from error


# -- actions for many ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """An action for many jobs, as a form says it.

    Attributes:
        ids: of the jobs that were ticked; None is all that match `q`.
        q: the words of the search; the page to go back to.
        until: jobs that were created later are not meant, for nobody saw them; None before the
            first look.
    """

    action: Action
    ids: tuple[int, ...] | None
    q: str
    until: datetime | None

    @property
    def filter(self) -> JobFilter:
        """Which jobs, if it is all that match.

        Raises:
            PageRefusal: the search means nothing.
        """
        chosen = _parse(self.q)
        given = [at for at in (chosen.created_before, self.until) if at is not None]
        return replace(chosen, created_before=min(given, default=None))


@dataclass(frozen=True)
class _Preview:
    """How many jobs of each state an action is for, how many it leaves alone, some ids."""

    states: dict[str, int]
    others: dict[str, int]
    exact: bool
    sample: tuple[int, ...]

    @property
    def count(self) -> int:
        return sum(self.states.values())


@router.post("/jobs/confirm")
async def confirm_page(request: Request, principal: Controller) -> Response:
    """Show what an action for many jobs would change; nothing is changed yet."""
    given = _read_asked(await form_of(request))
    asked, found = await read(request, principal, lambda conn: _look(conn, given))
    return page(
        request,
        principal,
        "jobs_confirm.html",
        title=f"{BUTTONS[asked.action.name]}: {number_of_jobs(found.count)}",
        here="jobs",
        asked=asked,
        preview=found,
        button=BUTTONS[asked.action.name],
        number_of_jobs=number_of_jobs,
        back=jobs_url(_parse(asked.q)),
    )


@router.post("/jobs/do")
async def do_it(request: Request, principal: Controller) -> Response:
    """Do what was confirmed, and say what was done."""
    asked = _read_asked(await form_of(request))
    site, actor = site_of(request), actor_of(principal)
    action, ids = asked.action, asked.ids
    if ids is None:
        chosen = asked.filter
        result = await in_thread(
            lambda: admin.apply_in_batches(
                site.store, principal.scope, site.kinds, action, chosen, actor
            )
        )
    else:
        given = ids
        result = await change(
            request, principal, lambda conn: _act(conn, site.kinds, action, given, actor)
        )
    return done(request, jobs_url(_parse(asked.q)), told(action.name, result))


def _act(conn: Connection, kinds: Kinds, action: Action, ids: tuple[int, ...], actor: str) -> Done:
    if action.name == "cancel":
        return admin.cancel(conn, ids, actor, action.reason)
    if action.name == "retry":
        return admin.retry(conn, kinds, ids, actor)
    if action.name == "discard":
        return admin.discard(conn, ids, actor, action.reason)
    return admin.prioritise(conn, ids, action.priority or "", actor)


def _look(conn: Connection, asked: _Asked) -> tuple[_Asked, _Preview]:
    """What would be changed now, by the clock that jobs are created by."""
    now = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
    asked = replace(asked, until=now)
    fitting = asked.action.states
    if asked.ids is not None:
        jobs = summaries(conn, asked.ids)
        missing = sorted(set(asked.ids) - {job.id for job in jobs})
        if missing:
            raise NoSuchJobError(f"there is no job {missing[0]} in this scope", where="jobs")
        states = Counter(job.state for job in jobs)
        fit = tuple(job.id for job in jobs if job.state in fitting)
        return asked, _Preview(
            {state: states[state] for state in fitting if states[state]},
            {state: number for state, number in states.items() if state not in fitting},
            True,
            fit[: admin.SAMPLE_JOBS],
        )
    chosen = asked.filter
    wanted = [state for state in fitting if not chosen.states or state in chosen.states]
    parts = {
        state: admin.preview(conn, replace(chosen, states=(state,)), asked.action.name)
        for state in wanted
    }
    sample = sorted((i for part in parts.values() for i in part.sample), reverse=True)
    return asked, _Preview(
        {state: part.count for state, part in parts.items() if part.count},
        {},
        all(part.exact for part in parts.values()),
        tuple(sample[: admin.SAMPLE_JOBS]),
    )


def _read_asked(form: FormData) -> _Asked:
    """Raises PageRefusal: the form says nothing that could be done."""
    given = {name: value for name, value in form.items() if isinstance(value, str)}
    name = given.get("action", "")
    priority = given.get("priority") if name == "prioritise" else None
    try:
        action = Action(name, clean(given.get("reason", ""))[:LONGEST_REASON].strip(), priority)
    except InputError as error:
        raise PageRefusal(Refusal(400, error.what, error.next_step)) from error
    ids = None if given.get("which") == "all" else _read_ids(form.getlist("id"))
    return _Asked(action, ids, given.get("q", ""), _read_until(given.get("until", "")))


def _read_until(word: str) -> datetime | None:
    try:
        until = datetime.fromisoformat(word) if word else None
    except ValueError as error:
        raise PageRefusal(
            Refusal(400, f"{word!r} is no moment", "Go back to the list and begin again.")
        ) from error
    return until if until is None or until.tzinfo else until.replace(tzinfo=UTC)


def _read_ids(values: list[Any]) -> tuple[int, ...]:
    words = [value for value in values if isinstance(value, str)]
    if not all(word.isascii() and word.isdigit() and len(word) < 19 for word in words):
        raise PageRefusal(Refusal(400, "an id of a job is a number", "Go back and tick jobs."))
    ids = tuple(dict.fromkeys(map(int, words)))
    if not ids or len(ids) > IDS_AT_MOST:
        what = "no job is ticked" if not ids else f"more than {IDS_AT_MOST:,} jobs are ticked"
        raise PageRefusal(
            Refusal(400, what, "Go back and tick some, or take all that match the search.")
        )
    return ids


# The actions of the form, and of which states their jobs are.
assert tuple(BUTTONS) == tuple(STATES)  # noqa: S101 - else the form offers what there is not
