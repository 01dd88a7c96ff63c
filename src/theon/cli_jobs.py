"""`theon jobs …` and `theon schedules …`: the command line speaks for the whole district."""

import getpass
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theon import cli_common
from theon.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from theon.bootstrap import Theon
    from theon.jobs.moves import Done
    from theon.jobs.query import JobSummary

jobs_app = typer.Typer(
    help="Background jobs: look at them, run, cancel, retry.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
schedules_app = typer.Typer(
    help="Schedules: what runs when.", no_args_is_help=True, rich_markup_mode=None
)

POLL_S = 0.2
NO_WORKER_AFTER_S = 10.0
ENDED = ("completed", "failed", "cancelled")

Ids = Annotated[list[int], typer.Argument(help="Ids of jobs.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
Campus = Annotated[str, typer.Option(help="Slug of the campus it belongs to.")]


def actor() -> str:
    """Who works at the command line, for the record."""
    return f"command line ({getpass.getuser()})"


def to_json(value: Any) -> str:
    """`value` as JSON for people and programs; moments in ISO 8601."""

    def other(found: Any) -> Any:
        return found.isoformat() if isinstance(found, datetime) else str(found)

    return json.dumps(value, indent=2, default=other, ensure_ascii=False)


@jobs_app.command("list")
def jobs_list(
    search: Annotated[
        list[str] | None,
        typer.Argument(help="Words: kind:metrics campus:lincoln state:failed, or any text."),
    ] = None,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first: id, state, kind, campus, created, what it does or why it failed.

    Example: theon jobs list state:failed kind:metrics
    """
    from theon.jobs.query import list_jobs  # noqa: PLC0415
    from theon.jobs.search import parse_search  # noqa: PLC0415

    words = [*(search or []), *([f"state:{state}"] if state else [])]
    with cli_common.open_theon() as theon, district(theon) as conn:
        page = list_jobs(conn, parse_search(" ".join(words)), limit=limit)
    if as_json:
        typer.echo(to_json([asdict(job) for job in page.jobs]))
        return
    for job in page.jobs:
        typer.echo(_line(job))
    if page.cursor:
        typer.echo(f"There may be more than {limit:,}: --limit or a search shows them.", err=True)
    elif not page.jobs:
        typer.echo("No job matches.", err=True)


def _line(job: "JobSummary") -> str:
    what = job.error or job.operation or job.reason
    created = job.created_at.isoformat(timespec="seconds")
    return "\t".join((str(job.id), job.state, job.kind, job.campus, created, _first(what)))


def _first(text: str) -> str:
    return text.partition("\n")[0]


@jobs_app.command("kinds")
def jobs_kinds() -> None:
    """List the kinds of jobs: name, queue, arguments, what it does; tab-separated.

    Example: theon jobs kinds
    """
    from theon.bootstrap import job_kinds  # noqa: PLC0415

    for kind in job_kinds().values():
        typer.echo(f"{kind.name}\t{kind.queue}\t{kind.signature}\t{kind.summary}")


@jobs_app.command("run")
def jobs_run(
    kind: Annotated[str, typer.Argument(help="A kind; `theon jobs kinds` names them.")],
    args: Annotated[str, typer.Option(help="Its arguments, as JSON.")] = "{}",
    campus: Campus = "district",
    priority: Annotated[str, typer.Option(help="urgent, high, normal, low, background.")] = "high",
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended.")] = False,
) -> None:
    """Enqueue a job and print its id; `theon serve` or a worker runs it.

    With --wait the exit status is 0 if it completed, 1 if not, 4 if nobody runs its queue.

    Example: theon jobs run metrics.refresh --campus lincoln --wait
    """
    from theon.bootstrap import job_kinds  # noqa: PLC0415
    from theon.jobs.enqueue import NewJob, enqueue  # noqa: PLC0415

    arguments = _read_json(args)
    with cli_common.open_theon() as theon:
        new = NewJob(kind, arguments, campus=campus, owner=actor(), priority=priority)
        with district(theon) as conn:
            job_id = enqueue(conn, job_kinds(), new)
        typer.echo(job_id)
        if wait:
            _wait(theon, job_id)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"this is not JSON: {error}", where="--args", next_step="""Such as: '{"below": true}'"""
        ) from error


def _wait(theon: "Theon", job_id: int) -> None:
    """Show the job until it has ended, then its result.

    Raises:
        UnavailableError: no live worker takes jobs from its queue; the job stays queued.
    """
    from theon.jobs.query import get_job  # noqa: PLC0415

    begun_s = time.monotonic()
    with cli_common.progress().step(f"Job {job_id}", None, "") as step:
        while True:
            with district(theon) as conn:
                found = get_job(conn, job_id)
                served = _is_served(conn, found.job.queue)
            if found.job.state in ENDED:
                break
            waits = found.job.state in ("queued", "scheduled", "dispatched")
            if waits and not served and time.monotonic() - begun_s > NO_WORKER_AFTER_S:
                raise UnavailableError(
                    f"no worker takes jobs from the queue {found.job.queue!r}",
                    where=f"job {job_id}",
                    next_step="It stays queued and runs when one does. Start `theon serve`, or "
                    "with REDIS_URL also `theon worker`.",
                )
            if found.job.total:
                step.total(int(found.job.total))
            time.sleep(POLL_S)
    if found.job.state != "completed":
        typer.secho(found.error or found.job.reason, fg=typer.colors.RED, err=True)
        typer.echo(f"theon jobs show {job_id} tells more.", err=True)
        raise typer.Exit(1)
    typer.echo(to_json(found.result))


def _is_served(conn: "Connection", queue: str) -> bool:
    from theon.jobs.figures import list_workers  # noqa: PLC0415

    return any(worker.alive and queue in worker.queues for worker in list_workers(conn))


@jobs_app.command("show")
def jobs_show(
    job_id: Annotated[int, typer.Argument(help="Id of the job.")], as_json: AsJson = False
) -> None:
    """Show one job: state, why it waits, every change, every attempt, result or error.

    Example: theon jobs show 12
    """
    from theon.bootstrap import job_kinds  # noqa: PLC0415
    from theon.jobs.query import get_job  # noqa: PLC0415
    from theon.jobs.waiting import why_waiting  # noqa: PLC0415

    with cli_common.open_theon() as theon, district(theon) as conn:
        found = get_job(conn, job_id)
        waits = found.job.state in ("scheduled", "queued")
        why = why_waiting(conn, job_id, job_kinds()) if waits else ""
    if as_json:
        typer.echo(to_json(asdict(found) | {"why_waiting": why}))
        return
    job = found.job
    typer.echo(f"job {job.id}: {job.kind}, {job.state}: {why or _first(job.reason)}")
    typer.echo(f"campus {job.campus}, queue {job.queue}, priority {job.priority}")
    typer.echo(f"arguments {json.dumps(found.arguments, ensure_ascii=False)}")
    for change in found.history:
        moment = change.at.isoformat(timespec="milliseconds")
        by = f"  [{change.worker}]" if change.worker else ""
        typer.echo(f"{moment}  {change.after:<10}  {change.reason}{by}")
    if found.result is not None:
        typer.echo(f"result {json.dumps(found.result, ensure_ascii=False)}")
    if found.stack or found.error:
        typer.echo(found.stack or found.error or "")


def _act(do: "Callable[[Connection], Done]", verb: str) -> None:
    with cli_common.open_theon() as theon, district(theon) as conn:
        done = do(conn)
    asked = f", {len(done.asked)} of them end in a moment" if done.asked else ""
    typer.echo(f"{verb}: {len(done.changed)}{asked}")
    for job_id, why in done.skipped.items():
        typer.echo(f"job {job_id} was left alone: {why}", err=True)
    if done.skipped and not done.changed:
        raise typer.Exit(1)


@jobs_app.command("cancel")
def jobs_cancel(
    ids: Ids, reason: Annotated[str, typer.Option(help="Why, for the record.")] = ""
) -> None:
    """Cancel jobs that have not ended; running ones end within seconds.

    Example: theon jobs cancel 12 13 --reason "wrong term"
    """
    from theon.jobs import admin  # noqa: PLC0415

    _act(lambda conn: admin.cancel(conn, ids, actor(), reason), "cancelled")


@jobs_app.command("retry")
def jobs_retry(
    ids: Ids,
    args: Annotated[str | None, typer.Option(help="Other arguments, as JSON.")] = None,
) -> None:
    """Run failed or cancelled jobs again, from their last checkpoint.

    Example: theon jobs retry 12
    """
    from theon.bootstrap import job_kinds  # noqa: PLC0415
    from theon.jobs import admin  # noqa: PLC0415

    arguments = None if args is None else _read_json(args)
    _act(lambda conn: admin.retry(conn, job_kinds(), ids, actor(), arguments), "retried")


@jobs_app.command("discard")
def jobs_discard(ids: Ids) -> None:
    """Put dead letters aside.

    Example: theon jobs discard 12
    """
    from theon.jobs import admin  # noqa: PLC0415

    _act(lambda conn: admin.discard(conn, ids, actor()), "discarded")


@jobs_app.command("prioritise")
def jobs_prioritise(
    ids: Ids, priority: Annotated[str, typer.Option(help="urgent, high, normal, low, background.")]
) -> None:
    """Give waiting jobs another priority, at once.

    Example: theon jobs prioritise 12 --priority urgent
    """
    from theon.jobs import admin  # noqa: PLC0415

    _act(lambda conn: admin.prioritise(conn, ids, priority, actor()), "prioritised")


@schedules_app.command("list")
def schedules_list(as_json: AsJson = False) -> None:
    """List the schedules: name, campus, cron line, time zone, next time, state; tab-separated.

    `theon serve` writes them down when it starts.

    Example: theon schedules list
    """
    with cli_common.open_theon() as theon, district(theon) as conn:
        states = _scheduler(theon).upcoming(conn)
    if as_json:
        typer.echo(to_json([asdict(state) for state in states]))
        return
    for state in states:
        following = state.upcoming[0].isoformat(timespec="minutes") if state.upcoming else "-"
        paused = f"paused by {state.paused_by}" if state.paused_by else "active"
        fields: Sequence[str] = (
            state.name,
            state.campus,
            state.cron,
            state.timezone,
            following,
            paused,
        )
        typer.echo("\t".join(fields))
    if not states:
        typer.echo("No schedule is known yet: `theon serve` writes them down.", err=True)


Name = Annotated[str, typer.Argument(help="Name of the schedule.")]
OnlyCampus = Annotated[str | None, typer.Option(help="Only of this campus.")]


@schedules_app.command("run")
def schedules_run(name: Name, campus: OnlyCampus = None) -> None:
    """Run a schedule once, now; prints the ids of its jobs.

    Example: theon schedules run metrics.hourly --campus lincoln
    """
    with cli_common.open_theon() as theon, district(theon) as conn:
        ids = _scheduler(theon).run_now(conn, name, actor(), campus=campus)
    typer.echo("\n".join(map(str, ids)))


@schedules_app.command("pause")
def schedules_pause(name: Name, campus: OnlyCampus = None) -> None:
    """Pause a schedule until it is resumed.

    Example: theon schedules pause metrics.daily
    """
    with cli_common.open_theon() as theon, district(theon) as conn:
        count = _scheduler(theon).pause(conn, name, actor(), campus=campus)
    typer.echo(f"paused: {count}")


@schedules_app.command("resume")
def schedules_resume(name: Name, campus: OnlyCampus = None) -> None:
    """Resume a schedule; what it missed while paused is not run.

    Example: theon schedules resume metrics.daily
    """
    with cli_common.open_theon() as theon, district(theon) as conn:
        count = _scheduler(theon).resume(conn, name, actor(), campus=campus)
    typer.echo(f"resumed: {count}")


def _scheduler(theon: "Theon") -> Any:
    from theon.bootstrap import job_kinds, job_schedules  # noqa: PLC0415
    from theon.jobs.schedules import Scheduler  # noqa: PLC0415

    return Scheduler(theon.store, job_kinds(), job_schedules())


def district(theon: "Theon") -> Any:
    """A transaction that sees every campus."""
    from theon.store.scope import Scope  # noqa: PLC0415

    return theon.store.transaction(Scope.district())
