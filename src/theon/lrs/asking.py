"""Statements out of the store: one by its id, or a page of those that fit a question."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, RowMapping, text

from theon.lrs.errors import StatementError
from theon.lrs.reading import Part
from theon.lrs.storing import LOCK

MOST = 500  # statements in an answer
LARGEST_PAGE_BYTES = 16 * 1024 * 1024

# A statement that voids another one cannot be voided.
_VOIDED = (
    "(NOT s.voiding AND EXISTS (SELECT FROM theon.lrs_statements AS v WHERE v.campus_id ="
    " s.campus_id AND v.refers_to = s.id AND v.voiding))"
)


@dataclass(frozen=True)
class Question:
    """Which statements are wanted.

    Attributes:
        keys: all of which they have.
        since: they were stored after it.
        until: they were stored at or before it.
        limit: how many at most; 0 is as many as fit into an answer.
        ascending: the oldest first.
        after: the moment of the last one of the page before.
    """

    keys: frozenset[UUID] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 0
    ascending: bool = False
    after: datetime | None = None


@dataclass(frozen=True)
class Found:
    """A statement as it is stored."""

    stored: datetime
    text: str


@dataclass(frozen=True)
class Page:
    """Statements in their order; `is_last` if there are no more."""

    statements: list[Found]
    is_last: bool


def consistent_through(conn: Connection, campus_id: int) -> datetime:
    """The moment up to which every statement that was stored can be read.

    Ask for it before the statements. Whoever is storing some now began before their moments.
    """
    found: datetime = conn.execute(
        text(
            "SELECT greatest((SELECT max(stored) FROM theon.lrs_statements"
            " WHERE campus_id = :campus), (SELECT coalesce(min(a.xact_start),"
            " statement_timestamp()) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
            " WHERE l.locktype = 'advisory' AND l.classid = CAST(:lock AS int)::oid"
            " AND l.objid = CAST(:campus AS int)::oid AND l.objsubid = 2))"
        ),
        {"campus": campus_id, "lock": LOCK},
    ).scalar_one()
    return found


def find_one(conn: Connection, campus_id: int, identity: UUID, *, voided: bool) -> Found | None:
    """The statement with this id, if there is one that is voided, or not."""
    row = conn.execute(
        text(
            "SELECT s.stored, s.statement FROM theon.lrs_statements AS s"
            f" WHERE s.campus_id = :campus AND s.id = :id AND {_VOIDED} = :voided"
        ),
        {"campus": campus_id, "id": identity, "voided": voided},
    ).first()
    return None if row is None else Found(row.stored, row.statement)


def find_page(conn: Connection, campus_id: int, question: Question) -> Page:
    """The statements that fit, as many as are wanted and fit into an answer; none is voided."""
    most = min(question.limit or MOST, MOST)
    query, values = _query(question)
    rows = (
        conn.execute(text(query), {**values, "campus": campus_id, "most": most + 1})
        .mappings()
        .all()
    )
    kept = _fitting(rows[:most])
    return Page([Found(row["stored"], row["statement"]) for row in kept], len(kept) == len(rows))


def _query(question: Question) -> tuple[str, dict[str, Any]]:
    joins, conditions = [], ["s.campus_id = :campus", f"NOT {_VOIDED}"]
    values: dict[str, Any] = {}
    for number, key in enumerate(sorted(question.keys)):
        joins.append(
            f"JOIN theon.lrs_keys AS k{number} ON k{number}.campus_id = s.campus_id"
            f" AND k{number}.stored = s.stored AND k{number}.key = :key{number}"
        )
        values[f"key{number}"] = key
    bounds = {
        "since": (">", question.since),
        "until": ("<=", question.until),
        "after": (">" if question.ascending else "<", question.after),
    }
    for name, (sign, bound) in bounds.items():
        if bound is not None:
            conditions.append(f"s.stored {sign} :{name}")
            values[name] = bound
    order = "ASC" if question.ascending else "DESC"
    # Sizes come first: a large statement that is not sent is not read either.
    query = (
        f"SELECT s.stored, s.size_bytes FROM theon.lrs_statements AS s {' '.join(joins)}"
        f" WHERE {' AND '.join(conditions)} ORDER BY s.stored {order} LIMIT :most"
    )
    return (
        f"SELECT p.stored, p.so_far - p.size_bytes AS before_it, CASE WHEN"
        f" p.so_far - p.size_bytes < {LARGEST_PAGE_BYTES} THEN s.statement END AS statement"
        f" FROM (SELECT q.*, sum(size_bytes) OVER (ORDER BY stored {order}) AS so_far"
        f" FROM ({query}) AS q) AS p"
        " JOIN theon.lrs_statements AS s ON s.campus_id = :campus AND s.stored = p.stored"
        f" ORDER BY p.stored {order}"
    ), values


def _fitting(rows: Sequence[RowMapping]) -> list[RowMapping]:
    return [row for row in rows if row["before_it"] < LARGEST_PAGE_BYTES]


def attachments_of(statements: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The hashes of the files that each statement names, those within it too."""
    found = []
    for statement in statements:
        named = [*statement.get("attachments", ()), *statement["object"].get("attachments", ())]
        found.append([attachment["sha2"].lower() for attachment in named])
    return found


def fit_files(conn: Connection, campus_id: int, named: Sequence[Sequence[str]]) -> int:
    """How many of these statements, from the first, fit into an answer with their files."""
    sizes: dict[str, int] = dict(
        conn.execute(
            text(
                "SELECT sha2, octet_length(content) FROM theon.lrs_attachments"
                " WHERE campus_id = :campus AND sha2 = ANY (:named)"
            ),
            {"campus": campus_id, "named": [sha2 for names in named for sha2 in names]},
        )
        .tuples()
        .all()
    )
    so_far = 0
    for number, names in enumerate(named):
        so_far += sum(sizes.get(sha2, 0) for sha2 in names)
        if so_far > LARGEST_PAGE_BYTES and number:
            return number
    return len(named)


def find_files(conn: Connection, campus_id: int, named: Iterable[str]) -> list[Part]:
    """The files with these hashes that came with statements."""
    rows = conn.execute(
        text(
            "SELECT sha2, content_type, content FROM theon.lrs_attachments"
            " WHERE campus_id = :campus AND sha2 = ANY (:named) ORDER BY sha2"
        ),
        {"campus": campus_id, "named": list(set(named))},
    )
    return [Part(row.sha2, row.content_type, bytes(row.content)) for row in rows]


def write_more(parameters: Mapping[str, str], after: datetime) -> str:
    """What asks for the next page: the same question, and where this one ended."""
    words = json.dumps({"q": dict(parameters), "after": after.isoformat()})
    return base64.urlsafe_b64encode(words.encode()).rstrip(b"=").decode()


def read_more(token: str) -> tuple[dict[str, str], datetime]:
    """What `write_more` wrote.

    Raises:
        StatementError: it is nothing of this kind.
    """
    try:
        given = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        parameters, after = given["q"], datetime.fromisoformat(given["after"])
        if after.tzinfo is None or not all(
            isinstance(word, str) for pair in parameters.items() for word in pair
        ):
            raise ValueError(token)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise StatementError(
            "this is not how an answer went on",
            where="more",
            next_step="Use `more` of an answer as it is.",
        ) from None
    return parameters, after
