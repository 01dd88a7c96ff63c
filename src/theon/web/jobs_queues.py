"""The page of queues, of what is paused, and of workers with what they do.

Queues and workers are shared by all campuses: pausing a queue takes `queues.control`, seeing
workers `workers.read`. Whoever controls jobs may let a kind of job, or all jobs, of their own
campus and those below it rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import Connection, text

from theon.access.job_pauses import check_pause, may_pause
from theon.access.principals import Principal
from theon.access.requests import Refusal
from theon.access.roles import Permission
from theon.jobs import activity, admin, figures, query
from theon.jobs.figures import Pause, QueueFigures, WorkerFigures
from theon.jobs.pulse import HEARTBEAT_EVERY_S
from theon.jobs.query import JobSummary
from theon.web.jobs_base import (
    JobsSite,
    actor_of,
    change,
    done,
    form_of,
    in_thread,
    page,
    read,
    site_of,
)
from theon.web.sign_in import PageRefusal, require_page

router = APIRouter(include_in_schema=False)

PAUSE_MINUTES = {
    "": "until somebody resumes it",
    "15": "15 minutes",
    "60": "1 hour",
    "240": "4 hours",
    "1440": "1 day",
    "10080": "7 days",
}
LATE_S = 3 * HEARTBEAT_EVERY_S  # a heartbeat that is older than this was missed
JOBS_SHOWN_PER_WORKER = 8
LONGEST_REASON = 500

Reader = Annotated[Principal, Depends(require_page("jobs.read"))]
Owner = Annotated[Principal, Depends(require_page("queues.control"))]
Controller = Annotated[Principal, Depends(require_page("jobs.control"))]


@dataclass(frozen=True)
class QueueRow:
    """A queue on the page.

    Attributes:
        figures: now and in the last hour.
        pause: of the whole scope of who reads, if there is one.
        above: a pause that holds for it without being its own: of a campus further up, or of all
            jobs of the reader's campus.
        resting_in: campuses below, in which it is paused.
        kinds: that go to it.
        served: whether some worker begins its jobs; `served_by` is how many, None where the
            reader may not see workers.
    """

    figures: QueueFigures
    pause: Pause | None
    above: Pause | None
    resting_in: tuple[str, ...]
    kinds: tuple[str, ...]
    served: bool
    served_by: int | None


@dataclass(frozen=True)
class WorkerRow:
    """A worker on the page.

    Attributes:
        figures: of its last heartbeat.
        state, words: which colour, and how it is in words.
        jobs: some of those that it runs.
        used: how many it runs, as the ledger knows it.
        share: how busy its slots were in the last hour, 0 to 1; None if it was not there.
    """

    figures: WorkerFigures
    state: str
    words: str
    jobs: tuple[JobSummary, ...]
    used: int
    share: float | None

    @property
    def free(self) -> int:
        """Slots that could begin a job now."""
        return max(0, self.figures.slots - self.used) if self.figures.alive else 0


@dataclass(frozen=True)
class Queues:
    """What the page shows.

    Attributes:
        pauses: of the scope; `above` are those of campuses further up.
        campuses: slug and name of each that the reader sees.
        workers: that live; None where the reader may not see them. `gone` are those of the last
            day.
    """

    queues: tuple[QueueRow, ...]
    pauses: tuple[Pause, ...]
    above: tuple[Pause, ...]
    campuses: tuple[tuple[str, str], ...]
    workers: tuple[WorkerRow, ...] | None
    gone: tuple[WorkerRow, ...]

    def jobs(self, state: str) -> int:
        """How many jobs of all queues are in a state."""
        return sum(row.figures.depth.get(state, 0) for row in self.queues)


def read_queues(conn: Connection, site: JobsSite, principal: Principal) -> Queues:
    """What the page shows, in the scope of `conn`, which is the principal's."""
    window = figures.look_back(conn)
    found = {queue.queue: queue for queue in figures.queue_figures(conn, window)}
    pauses = tuple(figures.list_pauses(conn))
    above = tuple(figures.pauses_above(conn))
    of_all = [p for p in pauses if (p.subject, p.value) == ("campus", principal.campus)]
    of_all += [p for p in above if p.subject == "campus"]
    workers: tuple[WorkerRow, ...] | None = None
    if principal.may(Permission.WORKERS_READ):
        listed = figures.list_workers(conn)
        shares = activity.worker_shares(conn, window, listed)
        workers = _worker_rows(conn, listed, shares)
    served = figures.served_queues(conn)
    names = sorted(found.keys() | {kind.queue for kind in site.kinds.values()})
    campuses = conn.execute(
        text("SELECT slug, name FROM theon.campuses ORDER BY parent_id IS NOT NULL, slug")
    )
    return Queues(
        tuple(
            QueueRow(
                found.get(name, QueueFigures(name, {}, 0.0, None, None)),
                next((p for p in _of_queue(pauses, name) if p.campus == principal.campus), None),
                next(iter([*_of_queue(above, name), *of_all]), None),
                tuple(p.campus for p in _of_queue(pauses, name) if p.campus != principal.campus),
                tuple(sorted(kind.name for kind in site.kinds.values() if kind.queue == name)),
                name in served,
                None if workers is None else _serving(workers, name),
            )
            for name in names
        ),
        pauses,
        above,
        tuple((row.slug, row.name) for row in campuses),
        None if workers is None else tuple(w for w in workers if not _is_gone(w.figures)),
        tuple(w for w in workers or () if _is_gone(w.figures)),
    )


def _of_queue(pauses: Sequence[Pause], queue: str) -> list[Pause]:
    return [pause for pause in pauses if (pause.subject, pause.value) == ("queue", queue)]


def _serving(workers: Sequence[WorkerRow], queue: str) -> int:
    return sum(queue in worker.figures.queues and worker.figures.alive for worker in workers)


def _worker_rows(
    conn: Connection, workers: Sequence[WorkerFigures], shares: Mapping[str, float]
) -> tuple[WorkerRow, ...]:
    running = activity.running_by_worker(conn)
    shown = [i for w in workers for i in running.get(w.id, ())[:JOBS_SHOWN_PER_WORKER]]
    jobs = {job.id: job for job in query.summaries(conn, shown)}
    rows = []
    for worker in workers:
        ids = running.get(worker.id, ())
        state, words = describe_worker(worker)
        own = tuple(jobs[i] for i in ids[:JOBS_SHOWN_PER_WORKER] if i in jobs)
        rows.append(WorkerRow(worker, state, words, own, len(ids), shares.get(worker.id)))
    return tuple(rows)


def _is_gone(worker: WorkerFigures) -> bool:
    return worker.state in ("stopped", "lost")


def describe_worker(worker: WorkerFigures) -> tuple[str, str]:
    """The style class of a worker's state, and how it is in words."""
    if worker.state == "lost":
        return "lost", "dead: it has not been heard of, and its jobs went back"
    if worker.state == "stopped":
        return "stopped", "stopped"
    if worker.heartbeat_age_s > LATE_S:
        return "warn", f"silent for {worker.heartbeat_age_s:.0f} s"
    if worker.state == "draining":
        return "paused", "draining: it begins nothing more"
    if worker.drain_asked:
        return "paused", "asked to drain"
    return "ok", "working"


# -- the page and its forms ----------------------------------------------------------------


@router.get("/queues")
async def queues_page(request: Request, principal: Reader, pause: str = "") -> HTMLResponse:
    """Queues, pauses and workers; `pause` names what the form is for, such as `queue:metrics`."""
    site = site_of(request)
    found = await read(request, principal, lambda conn: read_queues(conn, site, principal))
    return page(
        request,
        principal,
        "jobs_queues.html",
        title="Queues and workers",
        here="queues",
        found=found,
        kinds=sorted(site.kinds),
        minutes=PAUSE_MINUTES,
        chosen=pause,
        may_pause=lambda subject: may_pause(principal, subject),
        longest_reason=LONGEST_REASON,
        shown_per_worker=JOBS_SHOWN_PER_WORKER,
    )


@router.post("/queues/pause")
async def take_pause(request: Request, principal: Controller) -> Response:
    """Let a queue, a kind or a campus rest."""
    form = await form_of(request)
    given = {name: str(form.get(name, "")) for name in ("what", "campus", "reason", "minutes")}
    subject, _, value = given["what"].partition(":")
    await in_thread(lambda: check_pause(principal, subject))
    until = _until(given["minutes"])
    site, campus = site_of(request), given["campus"] or None

    def pause(conn: Connection) -> None:
        admin.pause(
            conn,
            site.kinds,
            subject,
            value,
            actor_of(principal),
            campus=None if subject == "campus" else campus,
            reason=given["reason"].strip()[:LONGEST_REASON],
            until=until,
        )

    await change(request, principal, pause)
    return done(
        request,
        "/queues",
        f"The {subject} {value} is paused {_for_how_long(given['minutes'])}. What runs goes on.",
    )


@router.post("/queues/resume")
async def take_resume(request: Request, principal: Controller) -> Response:
    """Let a queue, a kind or a campus go on."""
    form = await form_of(request)
    subject, _, value = str(form.get("what", "")).partition(":")
    campus = str(form.get("campus", "")) or None
    await in_thread(lambda: check_pause(principal, subject))
    await change(
        request,
        principal,
        lambda conn: admin.resume(
            conn,
            subject,
            value,
            actor_of(principal),
            campus=None if subject == "campus" else campus,
        ),
    )
    return done(request, "/queues", f"The {subject} {value} goes on.")


@router.post("/queues/drain")
async def take_drain(request: Request, principal: Owner) -> Response:
    """Ask a worker to begin nothing more and to end."""
    form = await form_of(request)
    worker = str(form.get("worker", ""))
    await change(
        request, principal, lambda conn: admin.drain_worker(conn, worker, actor_of(principal))
    )
    return done(
        request, "/queues", f"The worker {worker} is asked to drain; it hears it in a moment."
    )


def _until(minutes: str) -> datetime | None:
    if minutes not in PAUSE_MINUTES:
        raise PageRefusal(
            Refusal(400, "This is no duration of a pause.", "Choose one of the list.")
        )
    return datetime.now(UTC) + timedelta(minutes=int(minutes)) if minutes else None


def _for_how_long(minutes: str) -> str:
    words = PAUSE_MINUTES[minutes]
    return f"for {words}" if minutes else words
