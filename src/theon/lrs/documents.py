"""Documents: the state of an activity for somebody, and profiles of activities and of agents.

A document is its bytes, its media type, and the hash by which whoever changes it says which one
they have seen (RFC 9110, If-Match and If-None-Match).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from theon.lrs.errors import DocumentConflictError, PreconditionError, StatementError
from theon.lrs.identity import digest
from theon.lrs.preparing import to_text
from theon.lrs.reading import read_content_type, read_json

LOCK = 7_306_088

_NO_REGISTRATION = UUID(int=0)
_JSON = "application/json"


@dataclass(frozen=True)
class Document:
    """A document as it is stored; `etag` is the SHA-1 of its content, in quotes."""

    content_type: str
    content: bytes
    etag: str
    updated_at: datetime


@dataclass(frozen=True)
class Place:
    """Where documents are.

    Attributes:
        campus_id: whose.
        kind: "state", "agent profile" or "activity profile".
        of: the hash of the activity, the agent or both.
        registration: of states, if one is given.
    """

    campus_id: int
    kind: str
    of: UUID
    registration: UUID | None = None

    @property
    def values(self) -> dict[str, Any]:
        """For statements of SQL."""
        return {
            "campus": self.campus_id,
            "place": digest(self.kind, str(self.of)),
            "registration": self.registration or _NO_REGISTRATION,
        }


@dataclass(frozen=True)
class Conditions:
    """What a request says about the document that it has seen.

    Attributes:
        match: If-Match.
        none_match: If-None-Match.
        needed: whether what is there is overwritten only by those who say one of the two.
        always: whether one of the two is needed also where there is no document yet.
    """

    match: str | None = None
    none_match: str | None = None
    needed: bool = False
    always: bool = False

    def check(self, etag: str | None) -> None:
        """Let pass who has seen the document that is there; `etag` is None if there is none.

        Raises:
            PreconditionError: they have seen another one.
            DocumentConflictError: they do not say, and there is one.
            StatementError: they do not say, and have to.
        """
        if self.match is not None and not _names(self.match, etag):
            raise PreconditionError(
                "the document is not the one that If-Match names",
                where="If-Match",
                next_step="Get it again, and send your change with its new ETag.",
            )
        if self.none_match is not None and _names(self.none_match, etag):
            raise PreconditionError(
                "there is a document of the kind that If-None-Match rules out",
                where="If-None-Match",
                next_step="Get it, and send your change with its ETag as If-Match.",
            )
        says = self.match is not None or self.none_match is not None
        if self.needed and etag is not None and not says:
            raise DocumentConflictError(
                "there is a document here already, and the request does not say that it was seen",
                where="If-Match",
                next_step="Get the document, and send your change with its ETag as If-Match; "
                "If-None-Match: * puts one only where there is none.",
            )
        if self.always and not says:
            raise StatementError(
                "the request does not say which document it has seen",
                where="If-None-Match",
                next_step="Send If-None-Match: * for a first one, as xAPI 1.0 asks of profiles.",
            )


def get_document(conn: Connection, place: Place, name: str) -> Document | None:
    """The document of this name, if there is one."""
    row = conn.execute(
        text(
            "SELECT content_type, content, etag, updated_at FROM theon.lrs_documents"
            " WHERE campus_id = :campus AND place = :place AND registration = :registration"
            " AND id_hash = :name"
        ),
        {**place.values, "name": digest(name)},
    ).first()
    if row is None:
        return None
    return Document(row.content_type, bytes(row.content), row.etag, row.updated_at)


def list_documents(conn: Connection, place: Place, since: datetime | None) -> list[str]:
    """The names of the documents changed after `since`; without a registration those of all."""
    rows = conn.execute(
        text(
            "SELECT DISTINCT id FROM theon.lrs_documents WHERE campus_id = :campus"
            f" AND place = :place{_registration(place)}"
            " AND (CAST(:since AS timestamptz) IS NULL OR updated_at > :since) ORDER BY id"
        ),
        {**place.values, "since": since},
    )
    return list(rows.scalars())


def put_document(
    conn: Connection,
    place: Place,
    name: str,
    content_type: str,
    content: bytes,
    conditions: Conditions,
) -> None:
    """Put a document where one may be.

    Raises:
        PreconditionError: the one that is there is not the one that was seen.
        DocumentConflictError: it would overwrite one, and need not have seen it.
        StatementError: the request has to say what it has seen, and does not.
    """
    _lock(conn, place, name)
    old = get_document(conn, place, name)
    conditions.check(old.etag if old else None)
    _write(conn, place, name, content_type, content)


def merge_document(
    conn: Connection,
    place: Place,
    name: str,
    content_type: str,
    content: bytes,
    conditions: Conditions,
) -> None:
    """Put the properties of a JSON object over those of the one that is there.

    Where there is none, the document is put, and may be of any kind.

    Raises:
        StatementError: one of the two is no JSON object.
        PreconditionError: the one that is there is not the one that was seen.
    """
    _lock(conn, place, name)
    old = get_document(conn, place, name)
    conditions.check(old.etag if old else None)
    if old is not None or read_content_type(content_type)[0] == _JSON:
        given = _read_object(content_type, content, "the document")
    if old is not None:
        known = _read_object(old.content_type, old.content, "the document that is there")
        content_type, content = _JSON, to_text({**known, **given}).encode()
    _write(conn, place, name, content_type, content)


def delete_document(conn: Connection, place: Place, name: str, conditions: Conditions) -> None:
    """Take a document away; one that is not there stays so.

    Raises:
        PreconditionError: the one that is there is not the one that was seen.
    """
    _lock(conn, place, name)
    old = get_document(conn, place, name)
    conditions.check(old.etag if old else None)
    conn.execute(
        text(
            "DELETE FROM theon.lrs_documents WHERE campus_id = :campus AND place = :place"
            " AND registration = :registration AND id_hash = :name"
        ),
        {**place.values, "name": digest(name)},
    )


def delete_documents(conn: Connection, place: Place) -> None:
    """Take away all documents here; without a registration those of all."""
    conn.execute(
        text(
            "DELETE FROM theon.lrs_documents WHERE campus_id = :campus"
            f" AND place = :place{_registration(place)}"
        ),
        place.values,
    )


def _registration(place: Place) -> str:
    return "" if place.registration is None else " AND registration = :registration"


def _lock(conn: Connection, place: Place, name: str) -> None:
    """Wait for whoever changes the same document; it need not be there yet."""
    parts = (str(value) for value in place.values.values())
    key = int.from_bytes(digest(*parts, name).bytes[:4], signed=True)
    conn.execute(text("SELECT pg_advisory_xact_lock(:lock, :key)"), {"lock": LOCK, "key": key})


def _write(conn: Connection, place: Place, name: str, content_type: str, content: bytes) -> None:
    conn.execute(
        text(
            "INSERT INTO theon.lrs_documents (campus_id, place, registration, id_hash, id,"
            " content_type, content, etag, updated_at) VALUES (:campus, :place, :registration,"
            " :hash, :name, :type, :content, :etag, clock_timestamp())"
            " ON CONFLICT (campus_id, place, registration, id_hash) DO UPDATE SET"
            " content_type = excluded.content_type, content = excluded.content,"
            " etag = excluded.etag, updated_at = excluded.updated_at"
        ),
        {
            **place.values,
            "hash": digest(name),
            "name": name,
            "type": content_type,
            "content": content,
            "etag": f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"',
        },
    )


def _read_object(content_type: str, content: bytes, what: str) -> Mapping[str, Any]:
    if read_content_type(content_type)[0] != _JSON:
        raise StatementError(f"{what} is not {_JSON}, so it cannot be merged", where="Content-Type")
    value = read_json(content)
    if not isinstance(value, dict):
        raise StatementError(f"{what} is no JSON object, so it cannot be merged", where="body")
    return value


def _names(header: str, etag: str | None) -> bool:
    """Whether a list of ETags, or `*`, names this one."""
    if etag is None:
        return False
    tags = (tag.strip().removeprefix("W/").strip('"') for tag in header.split(","))
    return any(tag in ("*", etag.strip('"')) for tag in tags)
