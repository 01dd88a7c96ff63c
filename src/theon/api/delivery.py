"""The delivery ledger over HTTP: figures, gaps, and dead letters with what is done to them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, FastAPI, Path, Query
from sqlalchemy import Connection
from starlette.requests import HTTPConnection

from theon.access.principals import Principal
from theon.access.requests import require
from theon.access.roles import Permission
from theon.api.delivery_models import (
    DeliveryShown,
    DiscardDone,
    GapAccepted,
    GapsPage,
    GroupsShown,
    LettersChosen,
    LettersPage,
    NoteGiven,
    OneReplayWanted,
    PreviewWanted,
    ReplayDone,
    ReplayWanted,
    TriedShown,
)
from theon.api.jobs_app import PROBLEMS
from theon.api.jobs_models import LARGEST_ID, JobId, Moment, Name, Words
from theon.api.jobs_requests import changing, no_store, reading, refusing
from theon.intake import delivery_query, gaps, letters, replay
from theon.intake.gaps import KeptGap
from theon.intake.letters import LetterFilter, LetterShown
from theon.intake.mends import read_mend
from theon.intake.replay import Reader, Replayed, Totals
from theon.lake.lake_ids import LakeIds
from theon.store.engine import Store

router = APIRouter(prefix="/api/v1/delivery", tags=["delivery"], dependencies=[Depends(no_store)])


@dataclass(frozen=True)
class DeliveryRoom:
    """What the routes work with; one per application."""

    store: Store
    read: Reader
    lake_ids: LakeIds | None


def add_delivery_api(
    app: FastAPI,
    store: Store,
    read: Reader = replay.read_mapped,
    lake_ids: LakeIds | None = None,
) -> None:
    """Put the routes onto `app`, which `add_sign_in` and `add_jobs_api` have been given as well.

    Args:
        app: the application.
        store: where the ledger is.
        read: the mappings, for replays.
        lake_ids: ids noted beside the lake, for replays.
    """
    app.state.theon_delivery = DeliveryRoom(store, read, lake_ids)
    app.include_router(router, responses=PROBLEMS)


def _room_of(conn: HTTPConnection) -> DeliveryRoom:
    room = conn.app.state.theon_delivery
    assert isinstance(room, DeliveryRoom)  # noqa: S101 - tells the type
    return room


Room = Annotated[DeliveryRoom, Depends(_room_of)]
Reading = Annotated[Principal, Depends(require(Permission.DELIVERY_READ))]
Controlling = Annotated[Principal, Depends(require(Permission.DELIVERY_CONTROL))]
Number = Annotated[int, Path(ge=0, le=LARGEST_ID)]
Before = Annotated[JobId | None, Query(description="`next_cursor` of the page before")]


@router.get("", summary="What each source sent, and what became of it")
def get_delivery(
    principal: Reading,
    room: Room,
    since: Annotated[Moment | None, Query(description="a day before `until` unless given")] = None,
    until: Annotated[Moment | None, Query(description="the end of this hour unless given")] = None,
    by: Literal["hour", "day"] = "hour",
    source: Annotated[Name | None, Query(description="only this one")] = None,
) -> DeliveryShown:
    """Figures in events, per source and per hour or day; reasons of what was rejected.

    Received is accepted, duplicate and rejected together; of the rejected some are kept as dead
    letters.
    """
    end = until or datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    begin = since or end - timedelta(days=1)
    with reading(room.store, principal.scope) as conn:
        found = delivery_query.read_delivery(conn, begin, end, source=source)
        spans = delivery_query.read_spans(conn, begin, end, by, source)
    return DeliveryShown(
        since=begin,
        until=end,
        by=by,
        total=found.total,
        sources=list(found.sources),
        spans=spans,
        journal=list(found.journal),
    )


# -- gaps ----------------------------------------------------------------------------------


@router.get("/gaps", summary="List gaps and clocks that are off, newest first")
def get_gaps(
    principal: Reading,
    room: Room,
    state: Literal["open", "repaired", "accepted", "all"] = "open",
    kind: Literal["moodle_ids", "kafka_offsets", "silence", "clock"] | None = None,
    source: Name | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Before = None,
) -> GapsPage:
    """Missing log ids of Moodle, missing offsets of topics, sources that fell silent, and clocks.

    A clock is that of a source, and seems to be off by `off_s` seconds (negative: behind), from
    `from_at` until it was right again at `to_at`.
    """
    with reading(room.store, principal.scope) as conn:
        found = gaps.list_gaps(
            conn,
            state=None if state == "all" else state,
            kind=kind,
            source=source,
            limit=limit,
            before=before,
        )
    return GapsPage(gaps=found, next_cursor=found[-1].id if len(found) == limit else None)


@router.post("/gaps/{gap_id}/accept", summary="Say that a gap, or a clock, is as it should be")
def post_accept(gap_id: Number, given: GapAccepted, principal: Controlling, room: Room) -> KeptGap:
    """It is on record with the reason, and not noticed again; a clock, as long as it stays so."""
    with changing(room.store, principal.scope) as conn:
        return gaps.accept_gap(conn, gap_id, principal.subject, given.explanation)


# -- dead letters --------------------------------------------------------------------------


@router.get("/dead-letters", summary="List dead letters, newest first")
def get_letters(
    principal: Reading,
    room: Room,
    state: Literal["waiting", "replayed", "discarded", "all"] = "waiting",
    campus: Name | None = None,
    source: Name | None = None,
    reason: Words | None = None,
    stage: Name | None = None,
    limit: Annotated[int, Query(ge=1, le=letters.MOST_LISTED)] = 50,
    before: Before = None,
) -> LettersPage:
    """Events that could not be taken in; one by one they are shown with their bytes."""
    which = LetterFilter(None if state == "all" else state, source, reason, stage, campus)
    with reading(room.store, principal.scope) as conn:
        found = letters.list_letters(conn, which, limit=limit, before=before)
    return LettersPage(letters=found, next_cursor=found[-1].id if len(found) == limit else None)


@router.get("/dead-letters/groups", summary="Group waiting letters by source and reason")
def get_groups(principal: Reading, room: Room) -> GroupsShown:
    """The largest group first."""
    with reading(room.store, principal.scope) as conn:
        return GroupsShown(groups=letters.letter_groups(conn))


@router.get("/dead-letters/{letter_id}", summary="Show one dead letter")
def get_one(letter_id: Number, principal: Reading, room: Room) -> LetterShown:
    """Its bytes (as text, or in hexadecimal digits), and all that was done to it."""
    with reading(room.store, principal.scope) as conn:
        return letters.get_letter(conn, letter_id)


@router.post("/dead-letters/preview", summary="See what a replay would do")
def post_preview(wanted: PreviewWanted, principal: Controlling, room: Room) -> ReplayDone:
    """Each letter before and after the mend, and whether it would be accepted; nothing changes."""
    with changing(room.store, principal.scope) as conn:
        found = replay.preview(
            conn, room.read, wanted.ids, read_mend(wanted.mend), lake_ids=room.lake_ids
        )
    return _shown(found, is_preview=True)


@router.post("/dead-letters/replay", summary="Replay dead letters, mended if need be")
def post_replay(wanted: ReplayWanted, principal: Controlling, room: Room) -> ReplayDone:
    """By ids all at once; by filter some hundreds at a time.

    What is refused again keeps waiting with its new reason. The original bytes stay as they are.
    """
    if wanted.ids is not None:
        with changing(room.store, principal.scope) as conn:
            found = _replay(conn, room, principal, wanted.ids, wanted)
        return _shown(found)
    assert wanted.filter is not None  # noqa: S101 - one of both is there
    with refusing():
        totals = replay.replay_matching(
            room.store,
            principal.scope,
            room.read,
            wanted.filter.as_filter(),
            principal.subject,
            lake_ids=room.lake_ids,
            mend=read_mend(wanted.mend),
            note=wanted.note,
        )
    return ReplayDone(**vars(totals))


@router.post("/dead-letters/discard", summary="Discard dead letters")
def post_discard(wanted: LettersChosen, principal: Controlling, room: Room) -> DiscardDone:
    """They are put aside and stay on record for a while."""
    actor = principal.subject
    if wanted.ids is not None:
        with changing(room.store, principal.scope) as conn:
            done = letters.discard(conn, wanted.ids, actor, wanted.note)
        return DiscardDone(discarded=len(done), skipped=sorted(set(wanted.ids) - set(done)))
    assert wanted.filter is not None  # noqa: S101 - one of both is there
    with refusing():
        count = letters.discard_matching(
            room.store, principal.scope, wanted.filter.as_filter(), actor, wanted.note
        )
    return DiscardDone(discarded=count)


@router.post("/dead-letters/{letter_id}/replay", summary="Replay one dead letter")
def post_one_replay(
    letter_id: Number,
    principal: Controlling,
    room: Room,
    wanted: Annotated[OneReplayWanted | None, Body()] = None,
) -> ReplayDone:
    """As for many; 404 if the scope has no such letter, and it is skipped if it has ended."""
    with changing(room.store, principal.scope) as conn:
        letters.get_letter(conn, letter_id)
        return _shown(_replay(conn, room, principal, [letter_id], wanted or OneReplayWanted()))


@router.post("/dead-letters/{letter_id}/discard", summary="Discard one dead letter")
def post_one_discard(
    letter_id: Number,
    principal: Controlling,
    room: Room,
    wanted: Annotated[NoteGiven | None, Body()] = None,
) -> DiscardDone:
    """As for many; 404 if the scope has no such letter, and it is skipped if it has ended."""
    note = wanted.note if wanted else None
    with changing(room.store, principal.scope) as conn:
        letters.get_letter(conn, letter_id)
        done = letters.discard(conn, [letter_id], principal.subject, note)
    return DiscardDone(discarded=len(done), skipped=[] if done else [letter_id])


def _replay(
    conn: Connection,
    room: DeliveryRoom,
    principal: Principal,
    ids: list[int],
    wanted: ReplayWanted | OneReplayWanted,
) -> Replayed:
    mend = read_mend(wanted.mend)
    return replay.replay(
        conn, room.read, ids, principal.subject, lake_ids=room.lake_ids, mend=mend, note=wanted.note
    )


def _shown(found: Replayed, *, is_preview: bool = False) -> ReplayDone:
    totals = Totals()
    totals.add(found)
    hidden = {"was_read"} if is_preview else {"was_read", "before", "after"}
    tried = [
        TriedShown(**{name: value for name, value in vars(one).items() if name not in hidden})
        for one in found.tried
    ]
    return ReplayDone(**vars(totals), tried=tried, skipped=list(found.skipped))
