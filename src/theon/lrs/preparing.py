"""From what was sent to statements that can be stored: checked, completed, and with their keys."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from theon.lrs.errors import StatementError
from theon.lrs.identity import fingerprint
from theon.lrs.reading import Part, Sent
from theon.lrs.signatures import CONTENT_TYPE, USAGE, check_signature
from theon.lrs.statements import check_statement, is_voiding
from theon.lrs.values import read_time
from theon.lrs.versions import Version

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Prepared:
    """A statement that breaks no rule.

    Attributes:
        id: its own, or a new one.
        value: as sent, its id and version filled in, activities of contexts in lists.
        fingerprint: what it says, as `identity.fingerprint`.
        timestamp: when it happened, if it was said.
        refers_to: the statement that it is about, if it is about one.
        voiding: whether it takes that one back.
    """

    id: UUID
    value: dict[str, Any]
    fingerprint: bytes
    timestamp: datetime | None
    refers_to: UUID | None
    voiding: bool


def prepare(
    sent: Sent, version: Version, *, statement_id: str | None = None
) -> tuple[list[Prepared], list[Part]]:
    """Check everything that was sent, before anything of it is stored.

    Args:
        sent: as read.
        version: that the request speaks.
        statement_id: the id under which its only statement is to be put.

    Returns:
        The statements, and the files that they name.

    Raises:
        StatementError: a rule is broken; says by which statement.
    """
    if statement_id is not None and sent.is_list:
        raise StatementError("PUT takes one statement, not a list", where="body")
    found = []
    for number, value in enumerate(sent.statements):
        where = f"statement {number}" if sent.is_list else "statement"
        check_statement(value, version, where=where)
        _check_attachments(value, sent.parts, where)
        found.append(_complete(value, version, statement_id, where))
    if len({statement.id for statement in found}) < len(found):
        raise StatementError("two statements have the same id", where="body")
    named = {attachment["sha2"].lower() for s in found for attachment in _attachments(s.value)}
    for sha2 in sent.parts:
        if sha2 not in named:
            raise StatementError("no statement names this file", where=f"part {sha2}")
    return found, list(sent.parts.values())


def _complete(
    value: dict[str, Any], version: Version, statement_id: str | None, where: str
) -> Prepared:
    given = value.get("id", statement_id)
    if statement_id is not None and str(given).lower() != statement_id.lower():
        raise StatementError("its id is not the one that it is put under", where=f"{where}.id")
    identity = UUID(given) if given is not None else uuid4()
    whole = value | {
        "id": given if given is not None else str(identity),
        "version": value.get("version", version.of_statements),
    }
    _list_activities(whole)
    if whole["object"].get("objectType") == "SubStatement":
        _list_activities(whole["object"])
    refers = whole["object"].get("objectType") == "StatementRef"
    return Prepared(
        identity,
        whole,
        fingerprint(whole),
        read_time(whole["timestamp"]) if "timestamp" in whole else None,
        UUID(whole["object"]["id"]) if refers else None,
        is_voiding(whole),
    )


def _list_activities(told: dict[str, Any]) -> None:
    groups = told.get("context", {}).get("contextActivities")
    for name, value in (groups or {}).items():
        if not isinstance(value, list):
            groups[name] = [value]


def _attachments(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from value.get("attachments", ())
    if value["object"].get("objectType") == "SubStatement":
        yield from value["object"].get("attachments", ())


def _check_attachments(value: Mapping[str, Any], parts: Mapping[str, Part], where: str) -> None:
    for number, attachment in enumerate(_attachments(value)):
        place = f"{where}.attachments.{number}"
        part = parts.get(attachment["sha2"].lower())
        if part is None and "fileUrl" not in attachment:
            raise StatementError("it has no fileUrl, and its file did not come along", where=place)
        if attachment["usageType"] == USAGE:
            if attachment["contentType"] != CONTENT_TYPE:
                raise StatementError(f"a signature's contentType is {CONTENT_TYPE}", where=place)
            if part is None:
                raise StatementError("the signature did not come along", where=place)
            check_signature(value, part, place)


def to_text(value: Any) -> str:
    """A JSON value as it is stored and sent."""
    return _ENCODER.encode(value)
