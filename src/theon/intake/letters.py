"""Dead letters: what could not be taken in, byte for byte, until a person has seen to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from theon.errors import MissingError
from theon.jobs.context import clean
from theon.store.engine import Store
from theon.store.scope import Scope

WAITING, REPLAYED, DISCARDED = "waiting", "replayed", "discarded"
STATES = (WAITING, REPLAYED, DISCARDED)
MOST_LISTED = 500
BATCH_LETTERS = 500
_SHOWN_CONTROLS = {"\t", "\n", "\r"}


@dataclass(frozen=True)
class Letter:
    """A dead letter.

    Attributes:
        campus: slug.
        source, format: who sent it, and which mapping could not read it.
        stage: of the pipeline, which refused it.
        reason, detail: why, at the last time it was tried.
        place: where it stood in what was sent.
        size_bytes: of the original.
        state: `waiting`, `replayed` or `discarded`.
    """

    id: int
    campus: str
    source: str
    format: str
    stage: str
    reason: str
    detail: str | None
    place: str | None
    size_bytes: int
    received_at: datetime
    state: str
    ended_at: datetime | None
    ended_by: str | None


@dataclass(frozen=True)
class Change:
    """What somebody did to a letter.

    Attributes:
        outcome: `accepted`, `duplicate`, `refused` or `discarded`.
        reason: why it was refused again.
        note: of the person.
        mend: the steps, where it was mended.
    """

    at: datetime
    actor: str
    action: str
    outcome: str
    reason: str | None
    note: str | None
    mend: list[dict[str, Any]] | None


@dataclass(frozen=True)
class LetterShown:
    """A letter with its bytes.

    Attributes:
        original: as text, if it is text; else in hexadecimal digits.
        is_text: which of both.
        changes: newest last.
    """

    letter: Letter
    original: str
    is_text: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class LetterFilter:
    """Which letters; all that are not None must hold."""

    state: str | None = WAITING
    source: str | None = None
    reason: str | None = None
    stage: str | None = None
    campus: str | None = None
    upto: int | None = None  # none with a higher number: what comes later is another matter


@dataclass(frozen=True)
class LetterGroup:
    """Waiting letters of one source, refused for one reason."""

    campus: str
    source: str
    reason: str
    letters: int
    first_at: datetime
    last_at: datetime
    newest_id: int


class NoSuchLetterError(MissingError):
    """There is no dead letter of this number in the scope."""


def list_letters(
    conn: Connection, which: LetterFilter, *, limit: int = 50, before: int | None = None
) -> list[Letter]:
    """Letters in scope, newest first.

    Args:
        conn: in the scope of who asks.
        which: of them.
        limit: how many at most.
        before: only those with a smaller number: the last one's of the page before.
    """
    rows = conn.execute(
        text(
            f"{_SELECT} WHERE {_MATCHES} AND (CAST(:before AS bigint) IS NULL OR l.id < :before)"
            " ORDER BY l.id DESC LIMIT :limit"
        ),
        {**vars(which), "before": before, "limit": min(limit, MOST_LISTED)},
    )
    return [Letter(*row) for row in rows]


def letter_groups(conn: Connection) -> list[LetterGroup]:
    """The waiting letters in scope by source and reason; most first."""
    rows = conn.execute(
        text(
            "SELECT c.slug, l.source, l.reason, count(*), min(l.received_at), max(l.received_at),"
            " max(l.id) FROM theon.dead_letters l JOIN theon.campuses c ON c.id = l.campus_id"
            " WHERE l.state = 'waiting' GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3"
        )
    )
    return [LetterGroup(*row) for row in rows]


def get_letter(conn: Connection, letter_id: int) -> LetterShown:
    """One letter with its bytes and what was done to it.

    Raises:
        NoSuchLetterError: the scope has none of this number.
    """
    row = conn.execute(text(f"{_SELECT_ORIGINAL} WHERE l.id = :id"), {"id": letter_id}).first()
    if row is None:
        raise no_such_letter(letter_id)
    changes = conn.execute(
        text(
            "SELECT at, actor, action, outcome, reason, note, mend FROM theon.dead_letter_changes"
            " WHERE letter_id = :id ORDER BY id"
        ),
        {"id": letter_id},
    )
    original, is_text = readable(bytes(row[-1]))
    return LetterShown(
        Letter(*row[:-1]), original, is_text, tuple(Change(*change) for change in changes)
    )


def readable(original: bytes) -> tuple[str, bool]:
    """Bytes for a person: (the text, True), or (hexadecimal digits, False)."""
    try:
        found = original.decode()
    except UnicodeDecodeError:
        return original.hex(" "), False
    if all(c.isprintable() or c in _SHOWN_CONTROLS for c in found):
        return found, True
    return original.hex(" "), False


def discard(conn: Connection, ids: Sequence[int], actor: str, note: str | None = None) -> list[int]:
    """Put waiting letters aside, on record; others are left alone.

    Returns:
        The ids of those that were discarded.
    """
    done = conn.execute(
        text(
            "UPDATE theon.dead_letters SET state = 'discarded', ended_at = clock_timestamp(),"
            " ended_by = :actor WHERE id = ANY (:ids) AND state = 'waiting'"
            " RETURNING id, campus_id"
        ),
        {"ids": list(ids), "actor": clean(actor)},
    ).all()
    write_changes(
        conn,
        [
            {"letter": row.id, "campus": row.campus_id, "outcome": DISCARDED, "reason": None}
            for row in done
        ],
        actor=actor,
        action="discard",
        note=note,
    )
    return sorted(row.id for row in done)


def discard_matching(
    store: Store, scope: Scope, which: LetterFilter, actor: str, note: str | None = None
) -> int:
    """Discard all waiting letters that match, some hundreds per transaction; returns how many."""
    total, after = 0, 0
    while True:
        with store.transaction(scope) as conn:
            ids = waiting_ids(conn, which, after)
            total += len(discard(conn, ids, actor, note))
        if not ids:
            return total
        after = ids[-1]


def waiting_ids(
    conn: Connection, which: LetterFilter, after: int, limit: int = BATCH_LETTERS
) -> list[int]:
    """The next ids of waiting letters that match, oldest first."""
    rows = conn.execute(
        text(
            "SELECT l.id FROM theon.dead_letters l JOIN theon.campuses c ON c.id = l.campus_id"
            f" WHERE {_MATCHES} AND l.state = 'waiting' AND l.id > :after"
            " ORDER BY l.id LIMIT :limit"
        ),
        {**vars(which), "after": after, "limit": limit},
    )
    return list(rows.scalars())


def write_changes(
    conn: Connection,
    changes: Sequence[dict[str, Any]],
    *,
    actor: str,
    action: str,
    note: str | None,
    mend: str | None = None,
) -> None:
    """Put on record what was done: `letter`, `campus`, `outcome` and `reason` of each."""
    if not changes:
        return
    said = {
        "actor": clean(actor), "action": action, "note": clean(note or "") or None, "mend": mend,
    }  # fmt: skip
    conn.execute(
        text(
            "INSERT INTO theon.dead_letter_changes (campus_id, letter_id, actor, action, outcome,"
            " reason, note, mend) VALUES (:campus, :letter, :actor, :action, :outcome, :reason,"
            " :note, CAST(:mend AS jsonb))"
        ),
        [{**change, **said} for change in changes],
    )


def no_such_letter(letter_id: int) -> NoSuchLetterError:
    """What to say of a number that is none."""
    return NoSuchLetterError(
        f"there is no dead letter {letter_id}",
        where="dead letter",
        next_step="`theon intake dead-letters list` shows those there are.",
    )


_COLUMNS = (
    "l.id, c.slug, l.source, l.format, l.stage, l.reason, l.detail, l.place,"
    " octet_length(l.original), l.received_at, l.state, l.ended_at, l.ended_by"
)
_FROM = "FROM theon.dead_letters l JOIN theon.campuses c ON c.id = l.campus_id"
_SELECT = f"SELECT {_COLUMNS} {_FROM}"
_SELECT_ORIGINAL = f"SELECT {_COLUMNS}, l.original {_FROM}"
_MATCHES = " AND ".join(
    f"(CAST(:{name} AS {kind}) IS NULL OR {column} {operator} :{name})"
    for name, column, operator, kind in (
        ("state", "l.state", "=", "text"),
        ("source", "l.source", "=", "text"),
        ("reason", "l.reason", "=", "text"),
        ("stage", "l.stage", "=", "text"),
        ("campus", "c.slug", "=", "text"),
        ("upto", "l.id", "<=", "bigint"),
    )
)
