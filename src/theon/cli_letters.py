"""`theon intake dead-letters …`: looked at, mended, replayed, discarded, of the whole district."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from theon import cli_common
from theon.cli_jobs import AsJson, actor, district, to_json
from theon.errors import InputError

if TYPE_CHECKING:
    from theon.bootstrap import Theon
    from theon.intake.letters import LetterFilter
    from theon.intake.mends import Mend
    from theon.intake.replay import Totals, Tried

letters_app = typer.Typer(
    help="Dead letters: what could not be taken in.", no_args_is_help=True, rich_markup_mode=None
)

OnlySource = Annotated[str | None, typer.Option(help="Only of this source.")]
OnlyReason = Annotated[str | None, typer.Option(help="Only those refused for this reason.")]
OnlyCampus = Annotated[str | None, typer.Option(help="Only of this campus.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(help="Numbers of dead letters; or use --source, --all.")
]
All = Annotated[bool, typer.Option("--all", help="All that wait and match the other options.")]
Note = Annotated[str, typer.Option(help="Why, for the record.")]


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
    from theon.intake.letters import STATES, LetterFilter, list_letters  # noqa: PLC0415

    cli_common.check_state("a dead letter", state, STATES)
    which = LetterFilter(None if state == "all" else state, source, reason, None, campus)
    with cli_common.open_theon() as theon, district(theon) as conn:
        _check_campus(theon, campus)
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
    from theon.lake.lake_ids import LakeIds  # noqa: PLC0415
    from theon.store.scope import Scope  # noqa: PLC0415

    which = _chosen("replay", numbers, every, source, reason, campus)
    mend = _mend(set_field or [], rename or [], remove or [], replace or [])
    with cli_common.open_theon() as theon:
        _check_campus(theon, campus)
        lake_ids = LakeIds(theon.settings)
        if preview:
            with district(theon) as conn:
                ids = numbers or waiting_ids(conn, which, 0)
                found = try_out(conn, read_mapped, ids[:20], mend, lake_ids=lake_ids)
            for one in found.tried:
                typer.echo(_tried_lines(one))
            _say_left_alone(found.skipped)
            return
        given: dict[str, Any] = {"lake_ids": lake_ids, "mend": mend, "note": note or None}
        totals = Totals()
        if numbers:
            with district(theon) as conn:
                done = run(conn, read_mapped, numbers, actor(), **given)
            totals.add(done)
            _say_left_alone(done.skipped)
        else:
            totals = replay_matching(
                theon.store, Scope.district(), read_mapped, which, actor(), **given
            )
    _say_totals(totals)


def _say_left_alone(numbers: Sequence[int]) -> None:
    for number in numbers:
        typer.echo(f"{number} was left alone: there is no dead letter of it that waits", err=True)


def _check_campus(theon: "Theon", campus: str | None) -> None:
    """Refuse the slug of a campus that there is not: nothing of it is another matter."""
    from theon.roster.campuses import get_campus  # noqa: PLC0415

    if campus is not None:
        get_campus(theon.store, campus)


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

    which = _chosen("discard", numbers, every, source, reason, campus)
    with cli_common.open_theon() as theon:
        _check_campus(theon, campus)
        if numbers:
            with district(theon) as conn:
                done = discard(conn, numbers, actor(), note or None)
            count = len(done)
            _say_left_alone(sorted({*numbers} - {*done}))
        else:
            count = discard_matching(theon.store, Scope.district(), which, actor(), note or None)
    typer.echo(f"discarded {count:,}")


def _chosen(
    command: str,
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
            next_step=f"Such as: theon intake dead-letters {command} --all --source http:test",
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


def _one_line(words: str) -> str:
    return " ".join(words.split())
