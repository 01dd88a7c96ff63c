"""The page of how the job system does: targets, what holds jobs up, kinds, use, campuses.

A campus administrator sees the jobs of their campus and those below it, by row-level security;
whoever sees several campuses may look at one of them alone. Workers are the district's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from sqlalchemy import Connection, text

from theon.access.principals import Principal
from theon.access.roles import Permission
from theon.errors import InputError
from theon.jobs import activity, figures
from theon.jobs.activity import CampusFigures, Slice
from theon.jobs.figures import Target, WorkerFigures
from theon.jobs.health import Health, health
from theon.store.scope import DISTRICT, Scope, set_scope
from theon.web.jobs_base import duration, page, read
from theon.web.jobs_charts import Columns, columns
from theon.web.sign_in import require_page

router = APIRouter(include_in_schema=False)

Reader = Annotated[Principal, Depends(require_page("jobs.read"))]


class WindowChoice(NamedTuple):
    """A window to look at: seconds, how it is called, and in how many parts it is drawn."""

    seconds: float
    name: str
    parts: int


WINDOWS = {
    "hour": WindowChoice(3_600, "Last hour", 30),
    "day": WindowChoice(86_400, "Last 24 hours", 24),
    "week": WindowChoice(7 * 86_400, "Last 7 days", 28),
}


class TargetWords(NamedTuple):
    """What a target is called, and what its figure is."""

    name: str
    what: str


TARGETS = {
    "completion": TargetWords("Completion", "of the jobs that ended, how many completed"),
    "mean_run": TargetWords("Mean run", "from begin to end, of completed attempts"),
    "failures": TargetWords("Failures", "of the attempts that ended, how many failed"),
    "utilisation": TargetWords("Utilisation", "of the time of all slots, how much was used"),
    "uptime": TargetWords("Uptime", "how much of the time a worker was there"),
}
OF_WORKERS = ("utilisation", "uptime")


@dataclass(frozen=True)
class TargetCard:
    """A target on the page.

    Attributes:
        key: its name in `figures.targets`.
        name, what: in words.
        figure, limit: as people write them; the figure is empty where there is none.
        met: None where there is no figure.
        verdict: met or not, or why there is no figure, in words.
        share: of its gauge, 0 to 1; `mark` is where the limit is on it.
    """

    key: str
    name: str
    what: str
    figure: str
    limit: str
    met: bool | None
    verdict: str
    share: float
    mark: float


class Campus(NamedTuple):
    """A campus that the reader sees."""

    slug: str
    name: str


@dataclass(frozen=True)
class HealthPage:
    """What the page shows.

    Attributes:
        shown: the campus whose scope the figures are of.
        campuses: that the reader may look at.
        health: targets, kinds, queues and the bottleneck.
        since, until: the time that the figures are of.
        parts: the same in slices, for the chart.
        cpu_s: seconds of processor time per kind.
        rows: the campuses side by side.
        workers: that live; None where they are not seen.
    """

    shown: Campus
    campuses: tuple[Campus, ...]
    health: Health
    since: datetime
    until: datetime
    parts: tuple[Slice, ...]
    cpu_s: Mapping[str, float]
    rows: tuple[CampusFigures, ...]
    workers: tuple[WorkerFigures, ...] | None

    @property
    def busy_s(self) -> float:
        """Seconds that attempts held a slot."""
        return sum(kind.busy_s for kind in self.health.kinds)

    def jobs(self, state: str) -> int:
        """How many jobs are in a state now."""
        return sum(queue.depth.get(state, 0) for queue in self.health.queues)


def read_health(
    conn: Connection, principal: Principal, window: WindowChoice, campus: str
) -> HealthPage:
    """What the page shows, of one campus that the scope of `conn` sees and those below it.

    Raises:
        InputError: the scope does not see this campus.
    """
    listed = conn.execute(
        text("SELECT slug, name FROM theon.campuses ORDER BY parent_id IS NOT NULL, slug")
    )
    campuses = tuple(Campus(*row) for row in listed)
    shown = next((each for each in campuses if each.slug == campus), None)
    if shown is None:
        raise InputError(
            f"there is no campus {campus!r} in this scope",
            where="health",
            next_step=f"There are: {', '.join(each.slug for each in campuses)}.",
        )
    # The scope saw this campus, so what follows sees less than before and never more.
    set_scope(conn, Scope(shown.slug))
    span = figures.look_back(conn, window.seconds)
    workers = None
    if principal.may(Permission.WORKERS_READ) and shown.slug == DISTRICT:
        workers = tuple(w for w in figures.list_workers(conn) if w.state in ("running", "draining"))
    return HealthPage(
        shown,
        campuses,
        health(conn, window=span),
        span.since,
        span.now,
        activity.slices(conn, span, window.parts),
        activity.cpu_by_kind(conn, span),
        tuple(activity.campus_figures(conn, span)),
        workers,
    )


def target_card(target: Target, *, of_all: bool) -> TargetCard:
    """A target in words, with its gauge."""
    words = TARGETS[target.name]
    side = "above" if target.above else "below"
    if target.name == "mean_run":
        figure = "" if target.value is None else duration(target.value)
        limit = f"{side} {duration(target.limit)}"
        scale = max(2 * target.limit, target.value or 0.0)
    else:
        figure = "" if target.value is None else percent(target.value)
        limit = f"{side} {target.limit:.0%}"
        scale = 1.0
    if target.met is None:
        verdict = "nothing ended in this time"
        if target.name in OF_WORKERS:
            verdict = (
                "no worker was there in this time" if of_all else "told for the whole district only"
            )
    else:
        verdict = "met" if target.met else "not met"
    share = min(1.0, (target.value or 0.0) / scale)
    return TargetCard(
        target.name, words.name, words.what, figure, limit, target.met, verdict, share,
        target.limit / scale,
    )  # fmt: skip


def percent(share: float) -> str:
    """`96.4%`; `100%` is said of nothing that is less."""
    words = f"{share:.1%}".replace(".0%", "%")
    return ">99.9%" if words == "100%" and share < 1 else words


def ended_chart(parts: Sequence[Slice]) -> Columns:
    """How many attempts ended in each part of the window, completed below and failed above."""
    return columns([(part.completed, part.failed + part.lost) for part in parts])


# -- the page ------------------------------------------------------------------------------


@router.get("/health-of-jobs")
async def health_page(
    request: Request, principal: Reader, window: str = "hour", campus: str = ""
) -> HTMLResponse:
    """Targets, bottleneck and figures over a window, of the scope or one campus of it."""
    choice = WINDOWS.get(window, WINDOWS["hour"])
    shown = await read(
        request,
        principal,
        lambda conn: read_health(conn, principal, choice, campus or principal.campus),
    )
    found = shown.health
    return page(
        request,
        principal,
        "jobs_health.html",
        title=f"Health of jobs, {shown.shown.name}",
        here="health",
        found=shown,
        window=next(key for key, each in WINDOWS.items() if each is choice),
        windows=WINDOWS,
        campus="" if shown.shown.slug == principal.campus else shown.shown.slug,
        targets=[target_card(t, of_all=shown.shown.slug == DISTRICT) for t in found.targets],
        chart=ended_chart(shown.parts),
        ended=sum(part.ended for part in shown.parts),
        failed=sum(part.failed + part.lost for part in shown.parts),
        cut=found.window_s < choice.seconds - 1,
        slow_limit_s=figures.MEAN_RUN_S,
        failure_limit=figures.FAILURES,
        percent=percent,
    )
