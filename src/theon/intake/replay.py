"""Replay: dead letters go through the mapping and the door again, mended if need be.

In one transaction the event is accepted and its letter ended, so however often and in whatever
order letters are replayed and events sent, nothing is lost and nothing counts twice. What is
refused again keeps waiting, with its new reason. The original bytes are never changed.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.intake.arrivals import NO_CAMPUS, ORDINAL, UNKNOWN_CAMPUS, Arrival
from theon.intake.door import accept
from theon.intake.letters import (
    LetterFilter,
    readable,
    waiting_ids,
    write_changes,
)
from theon.intake.mapped import read_arrival
from theon.intake.mends import Mend, UnfitMendError
from theon.jobs.context import clean
from theon.lake.lake_ids import LakeIds
from theon.roster.campuses import Campus
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope

# (mapping, what was sent, ids of events that name none) → an arrival
Reader = Callable[[str, "pa.Array[Any]", "pa.Array[Any]"], Arrival]

ACCEPTED, DUPLICATE, REFUSED = "accepted", "duplicate", "refused"
# What a replay brings is in the delivery ledger under a name of its own, so that the figures of
# a source tell what the source sent.
SOURCE_PREFIX = "replay:"
_TOPIC = re.compile(r"(?P<topic>.+)/(?P<partition>\d+) at (?P<offset>\d+)")


@dataclass(frozen=True)
class Tried:
    """What became, or would become, of a letter.

    Attributes:
        id: of the letter.
        outcome: `accepted`, `duplicate` (the event is known, with the same content) or `refused`.
        reason, detail: why it was refused.
        was_read: whether it came to be read; not where the mend does not fit it, or there is no
            such mapping. Then the letter keeps its reason.
        before, after: for a preview: the original and the mended copy, for a person.
    """

    id: int
    outcome: str
    reason: str | None = None
    detail: str | None = None
    was_read: bool = True
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Replayed:
    """What a replay did.

    Attributes:
        tried: the letters that were waiting, by id.
        skipped: ids that were not: they had ended, or the scope has none of this number.
    """

    tried: tuple[Tried, ...] = ()
    skipped: tuple[int, ...] = ()

    def count(self, outcome: str) -> int:
        """How many had this outcome."""
        return sum(one.outcome == outcome for one in self.tried)


@dataclass
class Totals:
    """Letters of a replay by outcome, and why some were refused again."""

    accepted: int = 0
    duplicate: int = 0
    refused: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, done: Replayed) -> None:
        """Add a batch."""
        for one in done.tried:
            setattr(self, one.outcome, getattr(self, one.outcome) + 1)
            if one.outcome == REFUSED:
                reason = one.reason or ""
                self.reasons[reason] = self.reasons.get(reason, 0) + 1


def read_mapped(mapping: str, originals: "pa.Array[Any]", ids: "pa.Array[Any]") -> Arrival:
    """Read by the mappings that Theon ships with; see `Reader`."""
    return read_arrival(originals, mapping, default_ids=ids)


def replay(
    conn: Connection,
    read: Reader,
    ids: Sequence[int],
    actor: str,
    *,
    lake_ids: LakeIds | None = None,
    mend: Mend | None = None,
    note: str | None = None,
) -> Replayed:
    """Try letters again, in the caller's transaction.

    Args:
        conn: in the scope of who asks.
        read: the mappings.
        ids: of letters; of those that wait.
        actor: who, for the record.
        lake_ids: ids noted beside the lake.
        mend: made in a copy of each before.
        note: why, for the record.
    """
    letters = conn.execute(text(_LOCKED), {"ids": sorted(set(ids))}).all()
    steps = mend or Mend()
    tried: list[Tried] = []
    groups: dict[tuple[int, str, str], list[_Fit]] = {}
    for letter in letters:
        found = _prepare(conn, letter, steps)
        if isinstance(found, Tried):
            tried.append(found)
        else:
            key = (found.campus.id, letter.source, letter.format)
            groups.setdefault(key, []).append(found)
    # In one order everywhere, or two replays could wait for each other.
    for _, group in sorted(groups.items()):
        tried += _try_group(conn, read, lake_ids, group)
    _end(conn, [one for one in tried if one.outcome != REFUSED], actor)
    _keep_waiting(conn, [one for one in tried if one.outcome == REFUSED and one.was_read])
    campuses = {letter.id: letter.campus_id for letter in letters}
    write_changes(
        conn,
        [
            {
                "letter": one.id,
                "campus": campuses[one.id],
                "outcome": one.outcome,
                "reason": one.reason,
            }
            for one in tried
        ],
        actor=actor,
        action="replay",
        note=note,
        mend=json.dumps(steps.as_json()) if steps.steps else None,
    )
    skipped = sorted(set(ids) - campuses.keys())
    return Replayed(tuple(sorted(tried, key=lambda one: one.id)), tuple(skipped))


def preview(
    conn: Connection,
    read: Reader,
    ids: Sequence[int],
    mend: Mend | None = None,
    *,
    lake_ids: LakeIds | None = None,
) -> Replayed:
    """What a replay would do: it is done, and taken back. Nothing is changed."""
    attempt = conn.begin_nested()
    try:
        found = replay(conn, read, ids, "preview", lake_ids=lake_ids, mend=mend)
    finally:
        attempt.rollback()
    return found


def replay_matching(
    store: Store,
    scope: Scope,
    read: Reader,
    which: LetterFilter,
    actor: str,
    *,
    lake_ids: LakeIds | None = None,
    mend: Mend | None = None,
    note: str | None = None,
) -> Totals:
    """Replay all waiting letters that match, some hundreds per transaction.

    Where it is cut off, what was replayed stays so; the same call again goes on with the rest.
    """
    totals, after = Totals(), 0
    while True:
        with store.transaction(scope) as conn:
            ids = waiting_ids(conn, which, after)
            if not ids:
                return totals
            totals.add(replay(conn, read, ids, actor, lake_ids=lake_ids, mend=mend, note=note))
        after = ids[-1]


@dataclass(frozen=True)
class _Fit:
    """A letter that is to be read: its mended copy, and the campus whose event it is."""

    letter: Any
    copy: bytes
    campus: Campus

    def tried(self, outcome: str, reason: str | None, detail: str | None, was_read: bool) -> Tried:
        before, after = readable(self.letter.original)[0], readable(self.copy)[0]
        return Tried(self.letter.id, outcome, reason, detail, was_read, before, after)


def _prepare(conn: Connection, letter: Any, mend: Mend) -> _Fit | Tried:
    """The mended copy and its campus; or why there is none."""
    campus = Campus(letter.campus_id, letter.slug, letter.name, letter.timezone, None)
    fit = _Fit(letter, letter.original, campus)
    try:
        fit = _Fit(letter, mend.apply(letter.original), campus)
    except UnfitMendError as error:
        return fit.tried(REFUSED, f"the mend does not fit: {error.what}", None, was_read=False)
    if letter.slug != DISTRICT:
        return fit
    # The district keeps what names no campus that there is; it has no events of its own.
    slug = _named_campus(fit.copy)
    if slug is None:
        return fit.tried(REFUSED, NO_CAMPUS, None, was_read=True)
    row = conn.execute(
        text("SELECT id, slug, name, timezone FROM theon.campuses WHERE slug = :slug"),
        {"slug": clean(slug)},
    ).first()
    if row is None or row.slug == DISTRICT:
        return fit.tried(REFUSED, UNKNOWN_CAMPUS, slug, was_read=True)
    named = Campus(row.id, row.slug, row.name, row.timezone, None)
    return _Fit(letter, fit.copy, named)


def _named_campus(copy: bytes) -> str | None:
    try:
        found = json.loads(copy)
    except (ValueError, RecursionError):
        return None
    slug = found.get("campus") if isinstance(found, dict) else None
    return slug if isinstance(slug, str) else None


def _try_group(
    conn: Connection, read: Reader, lake_ids: LakeIds | None, group: Sequence[_Fit]
) -> list[Tried]:
    """Letters of one source and format, for one campus."""
    first = group[0]
    source, mapping = first.letter.source, first.letter.format
    originals = pa.array([fit.copy for fit in group], pa.binary())
    ids = pa.array([_default_id(fit.letter) for fit in group], pa.string())
    places = pa.array([fit.letter.place for fit in group], pa.string())
    try:
        read_again = read(mapping, originals, ids)
    except InputError as error:
        return [fit.tried(REFUSED, error.what, None, was_read=False) for fit in group]
    arrival = Arrival(mapping, read_again.events, originals, read_again.refused, places)
    receipt = accept(
        conn, first.campus, SOURCE_PREFIX + source, arrival, lake_ids=lake_ids, letters=False
    )
    refused = receipt.refused.select([ORDINAL, "reason", "detail"]).to_pylist()
    reasons = {row[ORDINAL]: (row["reason"], row["detail"]) for row in refused}
    duplicates = set(receipt.duplicates)
    tried = []
    for ordinal, fit in enumerate(group):
        outcome = DUPLICATE if ordinal in duplicates else ACCEPTED
        if ordinal in reasons:
            outcome = REFUSED
        tried.append(fit.tried(outcome, *reasons.get(ordinal, (None, None)), was_read=True))
    return tried


def _default_id(letter: Any) -> str:
    """The id of an event that names none: that of its message, as if it were read again."""
    stood = _TOPIC.fullmatch(letter.place or "")
    if stood is None:
        return f"letter:{letter.id}"
    return "kafka:{topic}:{partition}:{offset}".format(**stood.groupdict())


def _end(conn: Connection, tried: Sequence[Tried], actor: str) -> None:
    if tried:
        conn.execute(
            text(
                "UPDATE theon.dead_letters SET state = 'replayed', ended_by = :actor,"
                " ended_at = clock_timestamp() WHERE id = ANY (:ids)"
            ),
            {"ids": [one.id for one in tried], "actor": clean(actor)},
        )


def _keep_waiting(conn: Connection, tried: Sequence[Tried]) -> None:
    if tried:
        conn.execute(
            text("UPDATE theon.dead_letters SET reason = :reason, detail = :detail WHERE id = :id"),
            [
                {
                    "id": one.id,
                    "reason": clean(one.reason or ""),
                    "detail": None if one.detail is None else clean(one.detail),
                }
                for one in tried
            ],
        )


_LOCKED = (
    "SELECT l.id, l.campus_id, l.source, l.format, l.place, l.original, c.slug, c.name, c.timezone"
    " FROM theon.dead_letters l JOIN theon.campuses c ON c.id = l.campus_id"
    " WHERE l.id = ANY (:ids) AND l.state = 'waiting' ORDER BY l.id FOR UPDATE OF l"
)
