"""The page of schedules: when each fires in every campus, what became of it, what was missed."""

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from theon.access.principals import Principal
from theon.errors import InputError
from theon.jobs import cron
from theon.jobs.schedule_rows import ScheduleRun, ScheduleState
from theon.web.jobs_base import actor_of, change, done, form_of, page, read, site_of
from theon.web.sign_in import require_page

router = APIRouter(include_in_schema=False)

NEXT_TIMES = 5
LAST_RUNS = 10
CATCH_UP_WORDS = {
    "latest": "of missed runs, the latest is made up for",
    "all": "every missed run is made up for",
    "none": "missed runs are not made up for",
}

Reader = Annotated[Principal, Depends(require_page("jobs.read"))]
Controller = Annotated[Principal, Depends(require_page("schedules.control"))]


@dataclass(frozen=True)
class FireTime:
    """A fire time as the campus reads it, and in UTC; `utc` is empty where it is the same."""

    at: datetime
    local: str
    utc: str


@dataclass(frozen=True)
class RunRow:
    """A decided fire time; `state` colours it, `words` say what became of it."""

    time: FireTime
    state: str
    words: str
    job_id: int | None


@dataclass(frozen=True)
class CampusRow:
    """A schedule of one campus."""

    found: ScheduleState
    upcoming: tuple[FireTime, ...]
    runs: tuple[RunRow, ...]  # newest first


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule in all campuses of the scope.

    Attributes:
        words: its cron line; None where it cannot be read any more.
        zones: the time zones of its campuses.
    """

    found: ScheduleState
    words: str | None
    zones: tuple[str, ...]
    campuses: tuple[CampusRow, ...]

    @property
    def missed(self) -> int:
        """Runs that were missed in 30 days, in all campuses of the scope."""
        return sum(row.found.missed for row in self.campuses)

    @property
    def paused(self) -> int:
        """In how many campuses it is paused."""
        return sum(row.found.paused_at is not None for row in self.campuses)


def schedule_rows(found: list[ScheduleState]) -> list[ScheduleRow]:
    """The schedules of a scope, with all their campuses, in words."""
    rows = []
    for _, group in groupby(found, key=lambda state: state.name):
        states = list(group)
        zones = tuple(sorted({state.timezone for state in states}))
        campuses = tuple(
            CampusRow(
                state,
                tuple(fire_time(at, state.timezone) for at in state.upcoming),
                tuple(_run_row(run, state.timezone) for run in state.runs),
            )
            for state in states
        )
        rows.append(ScheduleRow(states[0], _in_words(states[0].cron), zones, campuses))
    return rows


def fire_time(at: datetime, timezone: str) -> FireTime:
    """`Fri 27 Nov 2026, 02:00 GMT`, and the same in UTC if the clock shows another time there."""
    utc = at.astimezone(UTC)
    try:
        local = at.astimezone(ZoneInfo(timezone))
    except (KeyError, ValueError, OSError):  # a zone that this machine does not know
        local = utc
    far = local.date() != utc.date()
    in_utc = f"{utc:%H:%M} UTC" + (f" on {utc:%a} {utc.day} {utc:%b}" if far else "")
    same = local.utcoffset() == utc.utcoffset()
    return FireTime(
        at, f"{local:%a} {local.day} {local:%b %Y, %H:%M} {local:%Z}", "" if same else in_utc
    )


def _in_words(line: str) -> str | None:
    try:
        return cron.in_words(line)
    except InputError:
        return None


def _run_row(run: ScheduleRun, timezone: str) -> RunRow:
    by_hand = " by hand" if run.outcome == "by hand" else ""
    if run.outcome == "missed":
        more = f", with {run.fire_times - 1:,} before it" if run.fire_times > 1 else ""
        state, words = "missed", f"missed: nothing was there to start it{more}"
    elif run.outcome == "overlapped":
        state, words = "overlapped", "left out: the run before it had not ended"
    elif run.job_state is None:
        state, words = "gone", f"ran{by_hand}; its job has been removed since"
    else:
        state, words = run.job_state, f"{run.job_state}{by_hand}"
    return RunRow(fire_time(run.fire_at, timezone), state, words, run.job_id)


# -- the page and its forms ----------------------------------------------------------------


@router.get("/schedules")
async def schedules_page(request: Request, principal: Reader) -> HTMLResponse:
    """Every schedule of the scope."""
    scheduler = site_of(request).scheduler
    found = await read(
        request,
        principal,
        lambda conn: schedule_rows(scheduler.upcoming(conn, count=NEXT_TIMES, runs=LAST_RUNS)),
    )
    return page(
        request,
        principal,
        "jobs_schedules.html",
        title="Schedules",
        here="schedules",
        schedules=found,
        catch_up=CATCH_UP_WORDS,
    )


@router.post("/schedules/pause")
async def take_pause(request: Request, principal: Controller) -> Response:
    """Let a schedule rest in one campus, or in all of the scope."""
    name, campus = await _named(request)
    scheduler = site_of(request).scheduler
    count = await change(
        request,
        principal,
        lambda conn: scheduler.pause(conn, name, actor_of(principal), campus=campus),
    )
    return done(request, "/schedules", f"{name} is paused in {_campuses(count, campus)}.")


@router.post("/schedules/resume")
async def take_resume(request: Request, principal: Controller) -> Response:
    """Let a paused schedule go on from now."""
    name, campus = await _named(request)
    scheduler = site_of(request).scheduler
    count = await change(
        request,
        principal,
        lambda conn: scheduler.resume(conn, name, actor_of(principal), campus=campus),
    )
    return done(
        request,
        "/schedules",
        f"{name} goes on in {_campuses(count, campus)}. What it did not run meanwhile stays so.",
    )


@router.post("/schedules/run")
async def take_run(request: Request, principal: Controller) -> Response:
    """Run a schedule once by hand; leads to the job, if it is one."""
    name, campus = await _named(request)
    scheduler = site_of(request).scheduler
    ids = await change(
        request,
        principal,
        lambda conn: scheduler.run_now(conn, name, actor_of(principal), campus=campus),
    )
    if len(ids) == 1:
        return done(request, f"/jobs/{ids[0]}", f"{name} runs now: this is its job.")
    return done(request, "/schedules", f"{name} runs now, in {_campuses(len(ids), None)}.")


async def _named(request: Request) -> tuple[str, str | None]:
    """Name and campus of the form; None is every campus of the scope."""
    form = await form_of(request)
    return str(form.get("name", "")), str(form.get("campus", "")) or None


def _campuses(count: int, campus: str | None) -> str:
    if campus is not None:
        return campus
    return "one campus" if count == 1 else f"{count:,} campuses"
