"""Pages of dead letters of the delivery ledger: a list, one letter, and what is done to them."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import Connection

from theon.access.principals import Principal
from theon.access.requests import refusal
from theon.access.roles import Permission
from theon.errors import InputError, TheonError
from theon.intake import letters, replay
from theon.intake.letters import Letter, LetterFilter, LetterShown
from theon.intake.mends import Mend, read_mend
from theon.intake.replay import Reader, Replayed, Totals
from theon.lake.lake_ids import LakeIds
from theon.web.jobs_base import actor_of, change, done, form_of, in_thread, page, read, site_of
from theon.web.jobs_base import url as url_of
from theon.web.sign_in import PageRefusal, require_page

router = APIRouter(include_in_schema=False)

LIST = "/delivery/dead-letters"
LISTED = 50
PREVIEWED = 10
LONGEST_NOTE = 500

Reading = Annotated[Principal, Depends(require_page(Permission.DELIVERY_READ))]
Controlling = Annotated[Principal, Depends(require_page(Permission.DELIVERY_CONTROL))]


def number_of(words: str, what: str) -> int:
    """A number of a form.

    Raises:
        PageRefusal: it is none.
    """
    if words.isdecimal() and len(words) < 19:
        return int(words)
    raise PageRefusal(refusal(InputError(f"{words!r} is no number of a {what}", where=what)))


# -- the list ------------------------------------------------------------------------------


@router.get(LIST)
async def letters_page(
    request: Request,
    principal: Reading,
    state: str = "waiting",
    campus: str = "",
    source: str = "",
    reason: str = "",
    before: str = "",
) -> HTMLResponse:
    """Letters that match, newest first."""
    chosen = _filter(state, campus, source, reason)
    last = number_of(before, "dead letter") if before else None
    return await _list(request, principal, chosen, before=last)


async def _list(
    request: Request,
    principal: Principal,
    chosen: LetterFilter,
    *,
    before: int | None = None,
    tried: Replayed | None = None,
    given: dict[str, str] | None = None,
    fault: str = "",
) -> HTMLResponse:
    def look(conn: Connection) -> list[Letter]:
        return letters.list_letters(conn, chosen, limit=LISTED + 1, before=before)

    found = await read(request, principal, look)
    shown = found[:LISTED]
    query = {
        "state": chosen.state or "all",
        "campus": chosen.campus,
        "source": chosen.source,
        "reason": chosen.reason,
    }
    return page(
        request,
        principal,
        "delivery_letters.html",
        title="Dead letters of deliveries",
        here="delivery",
        chosen=chosen,
        query=query,
        states=(*letters.STATES, "all"),
        letters=shown,
        upto=shown[0].id if shown else 0,
        older=url_of(LIST, **query, before=shown[-1].id) if len(found) > LISTED else "",
        tried=tried,
        given=given or {"mend": "", "note": ""},
        fault=fault,
        longest_note=LONGEST_NOTE,
    )


def _filter(state: str, campus: str, source: str, reason: str) -> LetterFilter:
    return LetterFilter(
        None if state == "all" else state, source or None, reason or None, None, campus or None
    )


@router.post(f"{LIST}/replay")
async def take_replay(request: Request, principal: Controlling) -> Response:
    """Replay all that match, up to the newest that was shown."""
    given = await _fields(request)
    store, read_letters = site_of(request).store, _reader(request)

    def act() -> Totals:
        return replay.replay_matching(
            store,
            principal.scope,
            read_letters,
            _of_form(given),
            actor_of(principal),
            lake_ids=_lake_ids(request),
            mend=_mend(given["mend"]),
            note=given["note"],
        )

    totals = await in_thread(act)
    return done(request, _back(given), describe(totals))


@router.post(f"{LIST}/discard")
async def take_discard(request: Request, principal: Controlling) -> Response:
    """Discard all that match, up to the newest that was shown."""
    given = await _fields(request)
    store = site_of(request).store

    def act() -> int:
        return letters.discard_matching(
            store, principal.scope, _of_form(given), actor_of(principal), given["note"]
        )

    count = await in_thread(act)
    return done(request, _back(given), f"{_letters(count)} discarded.")


@router.post(f"{LIST}/preview")
async def take_preview(request: Request, principal: Controlling) -> HTMLResponse:
    """What would become of the first that match; nothing is changed."""
    given = await _fields(request)
    chosen = _of_form(given)

    def look(conn: Connection) -> Replayed:
        ids = [one.id for one in letters.list_letters(conn, chosen, limit=PREVIEWED)]
        return replay.preview(
            conn, _reader(request), ids, _mend(given["mend"]), lake_ids=_lake_ids(request)
        )

    tried, fault = await _try(request, principal, look)
    seen = LetterFilter(chosen.state, chosen.source, chosen.reason, None, chosen.campus)
    return await _list(request, principal, seen, tried=tried, given=given, fault=fault)


def describe(totals: Totals) -> str:
    """What a replay did, in a sentence or two."""
    words = f"{_letters(totals.accepted)} accepted, {totals.duplicate:,} known already."
    if totals.refused:
        why = "; ".join(f"{count:,} for {reason!r}" for reason, count in totals.reasons.items())
        words += f" {totals.refused:,} refused again: {why}."
    return words


def _letters(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"


# -- one letter ----------------------------------------------------------------------------


@router.get(LIST + "/{number}")
async def letter_page(request: Request, principal: Reading, number: str) -> HTMLResponse:
    """A letter: why it was refused, its bytes, what was done to it."""
    return await _one(request, principal, number_of(number, "dead letter"))


async def _one(
    request: Request,
    principal: Principal,
    number: int,
    *,
    tried: Replayed | None = None,
    given: dict[str, str] | None = None,
    fault: str = "",
) -> HTMLResponse:
    def look(conn: Connection) -> LetterShown:
        return letters.get_letter(conn, number)

    found = await read(request, principal, look)
    return page(
        request,
        principal,
        "delivery_letter.html",
        title=f"Dead letter {number}",
        here="delivery",
        found=found,
        mends=[json.dumps(change.mend, ensure_ascii=False) if change.mend else ""
               for change in found.changes],
        tried=tried.tried[0] if tried and tried.tried else None,
        given=given or {"mend": "", "note": ""},
        fault=fault,
        longest_note=LONGEST_NOTE,
    )  # fmt: skip


@router.post(LIST + "/{number}/preview")
async def take_one_preview(request: Request, principal: Controlling, number: str) -> HTMLResponse:
    """What would become of the letter; nothing is changed."""
    letter_id, given = number_of(number, "dead letter"), await _fields(request)

    def look(conn: Connection) -> Replayed:
        return replay.preview(
            conn, _reader(request), [letter_id], _mend(given["mend"]), lake_ids=_lake_ids(request)
        )

    tried, fault = await _try(request, principal, look)
    return await _one(request, principal, letter_id, tried=tried, given=given, fault=fault)


@router.post(LIST + "/{number}/replay")
async def take_one_replay(request: Request, principal: Controlling, number: str) -> Response:
    """Replay the letter."""
    letter_id, given = number_of(number, "dead letter"), await _fields(request)

    def act(conn: Connection) -> Replayed:
        letters.get_letter(conn, letter_id)
        return replay.replay(
            conn,
            _reader(request),
            [letter_id],
            actor_of(principal),
            lake_ids=_lake_ids(request),
            mend=_mend(given["mend"]),
            note=given["note"],
        )

    found = await change(request, principal, act)
    totals = Totals()
    totals.add(found)
    words = "It does not wait any more." if found.skipped else describe(totals)
    return done(request, f"{LIST}/{letter_id}", words)


@router.post(LIST + "/{number}/discard")
async def take_one_discard(request: Request, principal: Controlling, number: str) -> Response:
    """Discard the letter."""
    letter_id, given = number_of(number, "dead letter"), await _fields(request)

    def act(conn: Connection) -> list[int]:
        letters.get_letter(conn, letter_id)
        return letters.discard(conn, [letter_id], actor_of(principal), given["note"])

    gone = await change(request, principal, act)
    words = f"{_letters(1)} discarded." if gone else "It does not wait any more."
    return done(request, f"{LIST}/{letter_id}", words)


# -- forms ---------------------------------------------------------------------------------


async def _fields(request: Request) -> dict[str, str]:
    form = await form_of(request)
    names = ("campus", "source", "reason", "upto", "mend", "note")
    given = {name: str(form.get(name, "")).strip() for name in names}
    return {**given, "note": given["note"][:LONGEST_NOTE]}


def _of_form(given: dict[str, str]) -> LetterFilter:
    """The waiting letters that were shown; what came since is another matter."""
    upto = number_of(given["upto"], "dead letter")
    chosen = _filter("waiting", given["campus"], given["source"], given["reason"])
    return LetterFilter(**{**vars(chosen), "upto": upto})


def _back(given: dict[str, str]) -> str:
    return url_of(LIST, **{name: given[name] for name in ("campus", "source", "reason")})


def _mend(words: str) -> Mend:
    """The steps of a form; empty is none.

    Raises:
        InputError: they are no JSON list of steps.
    """
    if not words:
        return Mend()
    try:
        steps: Any = json.loads(words)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the mend is no JSON: {error}", where="mend") from error
    return read_mend(steps if isinstance(steps, list) else [steps])


async def _try(request: Request, principal: Principal, look: Any) -> tuple[Replayed | None, str]:
    """What a preview found, or what is wrong with its mend: the form keeps what was typed."""

    def work(conn: Connection) -> tuple[Replayed | None, str]:
        try:
            return look(conn), ""
        except TheonError as error:
            return None, f"{error.where}: {error.what}" if error.where else error.what

    return await change(request, principal, work)


def _lake_ids(request: Request) -> LakeIds | None:
    lake_ids: LakeIds | None = request.app.state.delivery_lake_ids
    return lake_ids


def _reader(request: Request) -> Reader:
    reader: Reader = request.app.state.delivery_reader
    return reader
