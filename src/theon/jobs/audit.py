"""The record of what people did to jobs, queues and schedules."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, text

from theon.jobs.context import clean


def write_audit(
    conn: Connection,
    actor: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any],
    *,
    campus_id: int | None = None,
) -> None:
    """Write a line in the transaction of what was done.

    Args:
        conn: in the scope of who did it.
        actor: who.
        action: a verb, such as `cancel`.
        subject: to what, such as `job 12` or `queue metrics`.
        detail: the rest, as JSON.
        campus_id: whose campus's line it is; that of the scope unless given.
    """
    conn.execute(
        text(
            "INSERT INTO theon.job_audit (campus_id, actor, action, subject, detail)"
            " SELECT coalesce(CAST(:campus_id AS int), c.id), :actor, :action, :subject,"
            "  CAST(:detail AS jsonb)"
            " FROM theon.campuses AS c WHERE c.slug = current_setting('theon.scope', true)"
        ),
        {
            "campus_id": campus_id, "actor": clean(actor), "action": action,
            "subject": clean(subject), "detail": json.dumps(_clean(detail), default=str),
        },
    )  # fmt: skip


def _clean(value: Any) -> Any:
    """`value` with texts that PostgreSQL can keep: a line must not fail for what somebody typed."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(name)): _clean(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part) for part in value]
    return value
