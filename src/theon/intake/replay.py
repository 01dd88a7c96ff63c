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
from theon.intake.arrivals import ORDINAL, Arrival
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
from theon.roster.campuses import Campus
from theon.store.engine import Store
from theon.store.scope import Scope

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
    mend: Mend | None = None,
    note: str | None = None,
) -> Replayed:
    """Try letters again, in the caller's transaction.

    Args:
        conn: in the scope of who asks.
        read: the mappings.
        ids: of letters; of those that wait.
        actor: who, for the record.
        mend: made in a copy of each before.
        note: why, for the record.
    """
    letters = conn.execute(text(_LOCKED), {"ids": sorted(set(ids))}).all()
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for letter in letters:
        groups.setdefault((letter.campus_id, letter.source, letter.format), []).append(letter)
    steps = mend or Mend()
    tried: list[Tried] = []
    # In one order everywhere, or two replays could wait for each other.
    for _, group in sorted(groups.items()):
        tried += _try_group(conn, read, group, steps)
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
    conn: Connection, read: Reader, ids: Sequence[int], mend: Mend | None = None
) -> Replayed:
    """What a replay would do: it is done, and taken back. Nothing is changed."""
    attempt = conn.begin_nested()
    try:
        found = replay(conn, read, ids, "preview", mend=mend)
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
            done = replay(conn, read, ids, actor, mend=mend, note=note) if ids else Replayed()
        if not ids:
            return totals
        totals.add(done)
        after = ids[-1]


def _try_group(conn: Connection, read: Reader, letters: Sequence[Any], mend: Mend) -> list[Tried]:
    """Letters of one campus, source and format."""
    found: dict[int, Tried] = {}
    fit: list[tuple[Any, bytes]] = []
    for letter in letters:
        before = bytes(letter.original)
        try:
            fit.append((letter, mend.apply(before)))
        except UnfitMendError as error:
            shown = readable(before)[0]
            unfit = f"the mend does not fit: {error.what}"
            found[letter.id] = Tried(letter.id, REFUSED, unfit, None, False, shown, shown)
    was_read = True
    if fit:
        first = fit[0][0]
        campus = Campus(first.campus_id, first.slug, first.name, first.timezone, None)
        originals = pa.array([copy for _, copy in fit], pa.binary())
        ids = pa.array([_default_id(letter) for letter, _ in fit], pa.string())
        places = pa.array([letter.place for letter, _ in fit], pa.string())
        try:
            arrival = read(first.format, originals, ids)
        except InputError as error:
            reasons = dict.fromkeys(range(len(fit)), (error.what, None))
            duplicates, was_read = set[int](), False
        else:
            arrival = Arrival(first.format, arrival.events, originals, arrival.refused, places)
            source = SOURCE_PREFIX + first.source
            receipt = accept(conn, campus, source, arrival, letters=False)
            refused = receipt.refused.select([ORDINAL, "reason", "detail"]).to_pylist()
            reasons = {row[ORDINAL]: (row["reason"], row["detail"]) for row in refused}
            duplicates = set(receipt.duplicates)
        for ordinal, (letter, copy) in enumerate(fit):
            outcome = DUPLICATE if ordinal in duplicates else ACCEPTED
            if ordinal in reasons:
                outcome = REFUSED
            reason, detail = reasons.get(ordinal, (None, None))
            found[letter.id] = Tried(
                letter.id,
                outcome,
                reason,
                detail,
                was_read=was_read,
                before=readable(letter.original)[0],
                after=readable(copy)[0],
            )
    return [found[letter.id] for letter in letters]


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
