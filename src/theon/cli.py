"""Every command. Results go to standard output, progress and messages to standard error.

Commands import what they need when they run, so that `theon --help` answers at once.
"""

import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from theon import __version__
from theon.cli_access import account_app, key_app
from theon.cli_common import open_theon
from theon.cli_demo import demo
from theon.cli_ingest import ingest
from theon.cli_intake import intake_app
from theon.cli_jobs import jobs_app, schedules_app
from theon.cli_kafka import kafka_app
from theon.cli_metrics import metrics_app
from theon.cli_worker import worker
from theon.errors import TheonError

KEPT = {
    "ingest": "Stopped. Events of finished batches are kept; run the same command again and it "
    "goes on, counting nothing twice.",
    "intake": "Stopped. What was read or replayed so far is kept; run the same command again and "
    "it goes on.",
    "metrics": "Stopped. The metrics are as they were before; run the same command again.",
    "demo": "Stopped. What was computed so far is kept; run `theon demo` again to go on.",
    "jobs": "Stopped. Jobs that were enqueued stay so; `theon jobs list` shows them.",
    "worker": "Stopped. Jobs that were not done went back to the queue.",
    "kafka": "Stopped. What was taken in is kept; reading goes on behind it.",
    "serve": "Stopped. All data is kept; `theon serve` shows it again.",
}


# Signals that asked this process to end. Some libraries turn the exception that a signal raises
# into one of their own, so what was caught does not tell.
_ended_by: list[int] = []


class _MessageGroup(TyperGroup):
    """Turns expected failures and Ctrl-C into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if _ended_by or isinstance(error, KeyboardInterrupt):
                command = ctx.invoked_subcommand or ""
                _complain(KEPT.get(command, "Stopped. Everything saved so far is kept."))
                number = _ended_by[-1] if _ended_by else signal.SIGINT
                raise typer.Exit(128 + number) from error
            if isinstance(error, TheonError):
                _complain(error.message)
                raise typer.Exit(error.exit_status) from error
            raise


def _complain(message: str) -> None:
    typer.secho(message, fg=typer.colors.RED, err=True)


def _subcommands(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)


app = typer.Typer(
    cls=_MessageGroup,
    help="Exact learning metrics from the log of a learning management system.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
campus_app = _subcommands("Campuses: the schools whose events are counted.")
app.add_typer(campus_app, name="campus")
app.add_typer(intake_app, name="intake")
app.add_typer(metrics_app, name="metrics")
app.add_typer(jobs_app, name="jobs")
app.add_typer(schedules_app, name="schedules")
app.add_typer(account_app, name="account")
app.add_typer(key_app, name="key")
app.add_typer(kafka_app, name="kafka")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"theon {__version__}")
        raise typer.Exit


def _end_cleanly(number: int, _frame: object) -> None:
    # As an exception, so that connections close and the embedded server is released.
    _ended_by.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@campus_app.command("add")
def campus_add(
    slug: Annotated[str, typer.Argument(help="Short name: a-z, 0-9 and '-'.")],
    timezone: Annotated[
        str, typer.Option(help="IANA time zone, in which its days and weeks are counted.")
    ],
    name: Annotated[str | None, typer.Option(help="How people call it; else the slug.")] = None,
    parent: Annotated[str, typer.Option(help="Slug of the campus above it.")] = "district",
) -> None:
    """Add a campus; the same again changes nothing.

    Example: theon campus add lincoln --timezone Europe/London --name "Lincoln School"
    """
    from theon.roster.campuses import add_campus  # noqa: PLC0415

    with open_theon() as theon:
        campus = add_campus(theon.store, slug, timezone, name, parent)
    typer.echo(f"{campus.slug}\t{campus.timezone}\t{campus.name}")


@campus_app.command("list")
def campus_list() -> None:
    """List the campuses: slug, time zone, the campus above, name; tab-separated.

    Example: theon campus list
    """
    from theon.roster.campuses import list_campuses  # noqa: PLC0415
    from theon.store.scope import Scope  # noqa: PLC0415

    with open_theon() as theon:
        campuses = list_campuses(theon.store, Scope.district())
    for campus in campuses:
        typer.echo(f"{campus.slug}\t{campus.timezone}\t{campus.parent or '-'}\t{campus.name}")
    if all(campus.parent is None for campus in campuses):
        typer.echo("No campus yet. Add one: theon campus add lincoln --timezone UTC", err=True)


@app.command("serve")
def serve() -> None:
    """Show the pages on http://127.0.0.1:3007 and run jobs until Ctrl-C.

    PORT and THEON_HOST change where. Jobs run in this process's own children; with REDIS_URL
    they are handed to workers (`theon worker`).

    Example: PORT=8080 theon serve
    """
    from theon.cli_serve import serve_pages  # noqa: PLC0415

    with open_theon() as theon:
        serve_pages(theon)


@app.command("doctor")
def doctor() -> None:
    """Check the installation: one line per check, and what to do where one fails.

    Example: theon doctor
    """
    from theon.cli_doctor import examine  # noqa: PLC0415
    from theon.settings import load_settings  # noqa: PLC0415

    findings = examine(load_settings())
    for finding in findings:
        typer.echo(finding.line)
        if finding.next_step:
            typer.echo(f"      {finding.next_step}")
    if any(finding.state == "fail" for finding in findings):
        raise typer.Exit(1)


app.command("ingest")(ingest)
app.command("demo")(demo)
app.command("worker")(worker)


def main() -> None:
    """The program `theon`."""
    signal.signal(signal.SIGINT, _end_cleanly)
    signal.signal(signal.SIGTERM, _end_cleanly)
    app()
