"""`theon intake …`: what was delivered, gaps, dead letters; it speaks for the whole district."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theon import cli_common
from theon.cli_ingest import SourceFormat
from theon.cli_jobs import AsJson, actor, district, to_json
from theon.cli_letters import letters_app

if TYPE_CHECKING:
    from theon.bootstrap import Theon
    from theon.intake.moodle_ids import Run
    from theon.intake.reconcile import Reconciled

intake_app = typer.Typer(
    help="What sources delivered: the ledger, gaps, dead letters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
intake_app.add_typer(letters_app, name="dead-letters")

RUNS_SHOWN = 50
EXIT_MISSING = 1
EXIT_INCOMPLETE = 3


@intake_app.command("status")
def status(
    days: Annotated[int, typer.Option(min=1, max=400, help="Of how many days, today last.")] = 1,
    source: Annotated[str | None, typer.Option(help="Only of this source.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each source sent: campus, source, received, accepted, duplicate, rejected, dead
    letters that wait, last time; tab-separated. Then why events were rejected, clocks that seem
    to be off, and what waits to land in the lake.

    Example: theon intake status --days 7
    """  # noqa: D205 - the first paragraph is the help's
    from theon.intake.clocks import words_of_offset  # noqa: PLC0415
    from theon.intake.delivery_query import day_of, read_delivery  # noqa: PLC0415

    begin, end = day_of(datetime.now(UTC))
    with cli_common.open_theon() as theon, district(theon) as conn:
        found = read_delivery(conn, begin - timedelta(days=days - 1), end, source=source)
    if as_json:
        typer.echo(to_json(asdict(found)))
        return
    for each in found.sources:
        figures = (each.received, each.accepted, each.duplicate, each.rejected)
        words = (each.campus, each.source, *figures, each.waiting_letters, _moment(each.last_at))
        typer.echo("\t".join(map(str, words)))
        for reason, events in each.reasons.items():
            typer.echo(f"\t{events}\t{reason}")
        if each.clock_off_s:
            typer.echo(f"\tclock\t{words_of_offset(each.clock_off_s)}: see theon intake gaps")
    for journal in found.journal:
        if journal.events:
            typer.echo(
                f"{journal.campus}: {journal.events:,} events wait to land, "
                f"the oldest since {_moment(journal.oldest_at)}"
            )
    if not found.sources:
        typer.echo("No source has sent anything yet.", err=True)


@intake_app.command("gaps")
def gaps(
    state: Annotated[str, typer.Option(help="open, repaired, accepted or all.")] = "open",
    look: Annotated[bool, typer.Option("--look", help="Look for them now, first.")] = False,
    as_json: AsJson = False,
) -> None:
    """List gaps, and clocks that are off, newest first: number, state, campus, source, since when,
    what is missing or wrong; tab-separated.

    Example: theon intake gaps --look
    """  # noqa: D205 - the first paragraph is the help's
    from theon.intake.gap_search import look_for_gaps  # noqa: PLC0415
    from theon.intake.gaps import STATES, list_gaps  # noqa: PLC0415
    from theon.store.scope import Scope  # noqa: PLC0415

    cli_common.check_state("a gap", state, STATES)
    with cli_common.open_theon() as theon:
        if look:
            look_for_gaps(theon.store, theon.lake, theon.settings, Scope.district())
        with district(theon) as conn:
            found = list_gaps(conn, state=None if state == "all" else state, limit=500)
    if as_json:
        typer.echo(to_json([asdict(gap) for gap in found]))
        return
    for gap in found:
        since = f"since {_moment(gap.from_at)}" if gap.from_at else "-"
        words = (str(gap.id), gap.state, gap.campus, gap.source, since, gap.explanation)
        typer.echo("\t".join(words))
    if not found:
        typer.echo("No gap and no clock that is off is on record.", err=True)


@intake_app.command("accept-gap")
def accept(
    number: Annotated[int, typer.Argument(help="Number of the gap.")],
    because: Annotated[str, typer.Option(help="Why it is as it should be; kept on record.")],
) -> None:
    """Say that nothing is missing in a gap, or that a clock is meant to be off; it is not noticed
    again.

    Example: theon intake accept-gap 12 --because "the school was closed"
    """  # noqa: D205 - the first paragraph is the help's
    from theon.intake.gaps import accept_gap  # noqa: PLC0415

    with cli_common.open_theon() as theon, district(theon) as conn:
        gap = accept_gap(conn, number, actor(), because)
    typer.echo(f"{gap.id}\t{gap.state}\t{gap.explanation}")


@intake_app.command("reconcile")
def reconcile(
    location: Annotated[str, typer.Argument(help="URL of a Moodle database, or a file.")],
    source_format: Annotated[SourceFormat, typer.Option("--format", help="As for theon ingest.")],
    campus: Annotated[str, typer.Option(help="Slug of the campus it was read into.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Bring what is missing; without it only compare.")
    ] = False,
    course: Annotated[
        str | None, typer.Option(help="Course id, for the report of a single course.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Prefix of the tables of a Moodle database.")
    ] = None,
) -> None:
    """Compare a source with the lake, and with --repair bring what is missing.

    Of a database the log ids are compared up to where it was read. The exit status is 1 if
    something is missing, 3 if not all of a file could be compared.

    Example: theon intake reconcile mysql://reader@db/moodle --format moodle-db --campus lincoln
    """
    with cli_common.open_theon() as theon:
        if source_format is SourceFormat.MOODLE_DB:
            _reconcile_database(theon, location, campus, prefix, repair)
        else:
            _reconcile_file(theon, location, source_format.value, campus, course, repair)


def _reconcile_database(
    theon: "Theon", location: str, campus: str, prefix: str | None, repair: bool
) -> None:
    from theon.intake.reconcile import reconcile as run  # noqa: PLC0415

    done = run(
        theon.store,
        theon.lake,
        theon.settings,
        location=location,
        campus=campus,
        prefix=prefix,
        repair=repair,
        progress=cli_common.progress(),
    )
    found = done.found
    for missing in found.runs[:RUNS_SHOWN]:
        typer.echo(_run_line(missing))
    if len(found.runs) > RUNS_SHOWN:
        typer.echo(f"and {len(found.runs) - RUNS_SHOWN:,} more", err=True)
    typer.echo(f"compared {found.rows:,} up to id {found.upto} · missing {found.missing:,}")
    _say_more(done)
    if repair:
        typer.echo(f"brought {done.brought:,} · unreadable {done.unreadable:,}")
        if done.unreadable:
            raise typer.Exit(3)
    elif found.missing:
        typer.echo("Run it again with --repair to bring them.", err=True)
        raise typer.Exit(EXIT_MISSING)


def _run_line(run: "Run") -> str:
    between = f"between {_moment(run.from_at)} and {_moment(run.to_at)}"
    return f"{run.first}\t{run.last}\t{run.missing}\t{between}"


def _say_more(done: "Reconciled") -> None:
    if done.found.surplus:
        typer.echo(f"{done.found.surplus:,} log rows here are no longer in the source.", err=True)
    if done.explained:
        typer.echo(f"{done.explained:,} gaps are explained: the source has no such rows.", err=True)
    if done.found.ahead:
        typer.echo("The source has newer rows, which `theon ingest` brings.", err=True)


def _reconcile_file(
    theon: "Theon", location: str, name: str, campus: str, course: str | None, repair: bool
) -> None:
    from theon.intake.pipeline import compare_file, ingest  # noqa: PLC0415

    parts = (theon.store, theon.lake, theon.settings)
    given: dict[str, Any] = {
        "location": location,
        "format": name,
        "campus": campus,
        "course": course,
        "progress": cli_common.progress(),
    }
    if repair:
        done = ingest(*parts, **given)
        typer.echo(f"read {done.read:,} · brought {done.new:,} · rejected {done.rejected:,}")
        if done.exit_status:
            raise typer.Exit(done.exit_status)
        return
    found = compare_file(*parts, **given)
    typer.echo(
        f"read {found.read:,} · known {found.known:,} · missing {found.missing:,}"
        f" · rejected {found.rejected:,}"
    )
    if found.incomplete:
        typer.echo(found.incomplete, err=True)
    if found.missing:
        typer.echo("Run it again with --repair to bring them.", err=True)
        raise typer.Exit(EXIT_MISSING)
    if found.incomplete:
        raise typer.Exit(EXIT_INCOMPLETE)


def _moment(at: datetime | None) -> str:
    return at.isoformat(timespec="seconds") if at else "-"
