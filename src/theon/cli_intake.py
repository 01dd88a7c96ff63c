"""`theon intake …`: what was delivered, gaps, dead letters; it speaks for the whole district."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theon import cli_common
from theon.cli_ingest import SourceFormat
from theon.cli_jobs import AsJson, actor, district, to_json
from theon.errors import InputError

if TYPE_CHECKING:
    from theon.bootstrap import Theon
    from theon.intake.letters import LetterFilter
    from theon.intake.mends import Mend
    from theon.intake.moodle_ids import Run
    from theon.intake.reconcile import Reconciled
    from theon.intake.replay import Totals, Tried

intake_app = typer.Typer(
    help="What sources delivered: the ledger, gaps, dead letters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
letters_app = typer.Typer(
    help="Dead letters: what could not be taken in.", no_args_is_help=True, rich_markup_mode=None
)
intake_app.add_typer(letters_app, name="dead-letters")

RUNS_SHOWN = 50
EXIT_MISSING = 1

OnlySource = Annotated[str | None, typer.Option(help="Only of this source.")]
OnlyReason = Annotated[str | None, typer.Option(help="Only those refused for this reason.")]
OnlyCampus = Annotated[str | None, typer.Option(help="Only of this campus.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(help="Numbers of dead letters; or use --source, --all.")
]
All = Annotated[bool, typer.Option("--all", help="All that wait and match the other options.")]
Note = Annotated[str, typer.Option(help="Why, for the record.")]


@intake_app.command("status")
def status(
    days: Annotated[int, typer.Option(min=1, max=400, help="Of how many days, today last.")] = 1,
    source: OnlySource = None,
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

    if state not in (*STATES, "all"):
        raise InputError(
            f"a gap is never {state!r}",
            where="--state",
            next_step=f"Use one of {', '.join(STATES)}, all.",
        )
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
    something is missing.

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
    if found.missing:
        typer.echo("Run it again with --repair to bring them.", err=True)
        raise typer.Exit(EXIT_MISSING)


# -- dead letters --------------------------------------------------------------------------


@letters_app.command("list")
def letters_list(
    state: Annotated[str, typer.Option(help="waiting, replayed, discarded or all.")] = "waiting",
    source: OnlySource = None,
    reason: OnlyReason = None,
    campus: OnlyCampus = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many at most.")] = 50,
    before: Annotated[int | None, typer.Option(help="Only numbers below this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first: number, state, campus, source, when, place, why.

    Example: theon intake dead-letters list --source http:lms
    """
    from theon.intake.letters import LetterFilter, list_letters  # noqa: PLC0415

    which = LetterFilter(None if state == "all" else state, source, reason, None, campus)
    with cli_common.open_theon() as theon, district(theon) as conn:
        found = list_letters(conn, which, limit=limit, before=before)
    if as_json:
        typer.echo(to_json([asdict(letter) for letter in found]))
        return
    for letter in found:
        why = f"{letter.reason}: {letter.detail}" if letter.detail else letter.reason
        at = letter.received_at.isoformat(timespec="seconds")
        words = (str(letter.id), letter.state, letter.campus, letter.source, at)
        typer.echo("\t".join((*words, _one_line(letter.place or "-"), _one_line(why))))
    if len(found) == limit:
        typer.echo(f"There may be more: --before {found[-1].id}", err=True)
    elif not found:
        typer.echo("No dead letter matches.", err=True)


@letters_app.command("show")
def letters_show(
    number: Annotated[int, typer.Argument(help="Number of the dead letter.")],
    as_json: AsJson = False,
) -> None:
    """Show a dead letter: why it was refused, its bytes, what was done to it.

    Bytes that are no text are shown in hexadecimal digits.

    Example: theon intake dead-letters show 12
    """
    from theon.intake.letters import get_letter  # noqa: PLC0415

    with cli_common.open_theon() as theon, district(theon) as conn:
        found = get_letter(conn, number)
    if as_json:
        typer.echo(to_json(asdict(found)))
        return
    letter = found.letter
    typer.echo(f"dead letter {letter.id}: {letter.state}, from {letter.source} ({letter.format})")
    typer.echo(f"campus {letter.campus}, {letter.place or 'no place known'}")
    typer.echo(f"refused by {letter.stage!r}: {letter.reason}")
    if letter.detail:
        typer.echo(f"detail {letter.detail}")
    for change in found.changes:
        more = [change.reason or "", change.note or ""]
        more += [json.dumps(change.mend, ensure_ascii=False)] if change.mend else []
        moment = change.at.isoformat(timespec="seconds")
        line = f"{moment}  {change.action}: {change.outcome}  [{change.actor}]"
        typer.echo("  ".join([line, *filter(None, more)]))
    typer.echo(found.original)


SetField = Annotated[
    list[str] | None,
    typer.Option("--set", help="field=value: give a field a value (JSON, or else a text)."),
]
RenameField = Annotated[list[str] | None, typer.Option("--rename", help="field=new name.")]
RemoveField = Annotated[list[str] | None, typer.Option("--remove", help="Take a field away.")]
ReplaceText = Annotated[
    list[str] | None, typer.Option("--replace", help="old=>new: replace a text wherever it is.")
]


@letters_app.command("replay")
def letters_replay(
    numbers: Numbers = None,
    every: All = False,
    source: OnlySource = None,
    reason: OnlyReason = None,
    campus: OnlyCampus = None,
    set_field: SetField = None,
    rename: RenameField = None,
    remove: RemoveField = None,
    replace: ReplaceText = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show what would become of up to 20; change nothing.")
    ] = False,
    note: Note = "",
) -> None:
    """Take dead letters in again, mended if need be: replace, rename, remove, set, in this order.

    What is refused again keeps waiting. The original bytes stay as they are, and who did it is
    on record. A field is a key of the JSON object, or a JSON pointer such as /data/score.

    Example: theon intake dead-letters replay 12 13 --rename userid=user_id --preview

    Example: theon intake dead-letters replay --source http:lms --all --set origin=web
    """
    from theon.intake.letters import waiting_ids  # noqa: PLC0415
    from theon.intake.replay import (  # noqa: PLC0415
        Totals,
        read_mapped,
        replay_matching,
    )
    from theon.intake.replay import preview as try_out  # noqa: PLC0415
    from theon.intake.replay import replay as run  # noqa: PLC0415
    from theon.store.scope import Scope  # noqa: PLC0415

    which = _chosen(numbers, every, source, reason, campus)
    mend = _mend(set_field or [], rename or [], remove or [], replace or [])
    with cli_common.open_theon() as theon:
        if preview:
            with district(theon) as conn:
                ids = numbers or waiting_ids(conn, which, 0)
                found = try_out(conn, read_mapped, ids[:20], mend)
            for one in found.tried:
                typer.echo(_tried_lines(one))
            return
        totals = Totals()
        if numbers:
            with district(theon) as conn:
                done = run(conn, read_mapped, numbers, actor(), mend=mend, note=note or None)
            totals.add(done)
            for number in done.skipped:
                typer.echo(f"{number} was left alone: it does not wait", err=True)
        else:
            totals = replay_matching(
                theon.store, Scope.district(), read_mapped, which, actor(), mend=mend,
                note=note or None,
            )  # fmt: skip
    _say_totals(totals)


def _say_totals(totals: "Totals") -> None:
    counts = {name: getattr(totals, name) for name in ("accepted", "duplicate", "refused")}
    typer.echo(" · ".join(f"{name} {count:,}" for name, count in counts.items()))
    for reason, letters in totals.reasons.items():
        typer.echo(f"{letters}\t{reason}")
    if totals.refused:
        raise typer.Exit(3)


def _tried_lines(one: "Tried") -> str:
    why = f": {one.reason}" if one.reason else ""
    why += f" ({one.detail})" if one.detail else ""
    lines = [f"{one.id}\t{one.outcome}{why}", f"- {one.before}"]
    return "\n".join([*lines, f"+ {one.after}"] if one.after != one.before else lines)


@letters_app.command("discard")
def letters_discard(
    numbers: Numbers = None,
    every: All = False,
    source: OnlySource = None,
    reason: OnlyReason = None,
    campus: OnlyCampus = None,
    note: Note = "",
) -> None:
    """Put dead letters aside; they stay on record for 90 days.

    Example: theon intake dead-letters discard 12 --note "a test of the LMS"
    """
    from theon.intake.letters import discard, discard_matching  # noqa: PLC0415
    from theon.store.scope import Scope  # noqa: PLC0415

    which = _chosen(numbers, every, source, reason, campus)
    with cli_common.open_theon() as theon:
        if numbers:
            with district(theon) as conn:
                count = len(discard(conn, numbers, actor(), note or None))
        else:
            count = discard_matching(theon.store, Scope.district(), which, actor(), note or None)
    typer.echo(f"discarded {count:,}")


def _chosen(
    numbers: list[int] | None,
    every: bool,
    source: str | None,
    reason: str | None,
    campus: str | None,
) -> "LetterFilter":
    from theon.intake.letters import LetterFilter  # noqa: PLC0415

    if bool(numbers) == every or (numbers and (source or reason or campus)):
        raise InputError(
            "give numbers of dead letters, or --all with what they have in common",
            where="dead-letters",
            next_step="Such as: theon intake dead-letters discard --all --source http:test",
        )
    return LetterFilter(source=source, reason=reason, campus=campus)


def _mend(set_field: list[str], rename: list[str], remove: list[str], replace: list[str]) -> "Mend":
    from theon.intake.mends import read_mend  # noqa: PLC0415

    steps: list[dict[str, Any]] = []
    for given in replace:
        old, new = _pair(given, "=>", "--replace")
        steps.append({"do": "replace", "text": old, "by": new})
    for given in rename:
        old, new = _pair(given, "=", "--rename")
        steps.append({"do": "rename", "field": old, "to": new})
    steps += [{"do": "remove", "field": field} for field in remove]
    for given in set_field:
        field, value = _pair(given, "=", "--set")
        steps.append({"do": "set", "field": field, "value": _value(value)})
    return read_mend(steps)


def _pair(given: str, between: str, option: str) -> tuple[str, str]:
    left, found, right = given.partition(between)
    if not found or not left:
        raise InputError(
            f"{given!r} has no {between!r} with something before it",
            where=option,
            next_step=f"Write it as: {option} 'old{between}new'",
        )
    return left, right


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _moment(at: datetime | None) -> str:
    return at.isoformat(timespec="seconds") if at else "-"


def _one_line(words: str) -> str:
    return " ".join(words.split())
