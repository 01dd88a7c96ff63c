"""Statements into the store: all of what was sent or nothing, and never changed again.

The statements of a campus are stored one transaction after another. So `stored` grows in the order
in which they can be read, and a statement and one that refers to it find each other whichever
comes first.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from theon.lrs.errors import StatementConflictError
from theon.lrs.identity import activities_of, actors_of, agent_key, digest, everybody, keys_of
from theon.lrs.preparing import Prepared, to_text
from theon.lrs.reading import Part
from theon.lrs.references import Node, inherit_keys, voided_by
from theon.lrs.statements import identifiers

LOCK = 7_306_087  # with a campus's id: somebody is storing statements of it

# The driver takes far longer to quote a list of texts for PostgreSQL than to write them as JSON.
_TEXTS = "json_array_elements_text(CAST(:texts AS json))"
_STEP = timedelta(microseconds=1)


@dataclass(frozen=True)
class Batch:
    """Statements that are stored all or not at all, and the files that they name."""

    statements: Sequence[Prepared]
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Stored:
    """What became of a batch.

    Attributes:
        ids: of all statements, in their order, as they are written in the statements.
        new: of these, those that were not there before, as they are stored from now on.
    """

    ids: list[str]
    new: list[str]


def store_batches(
    conn: Connection, campus_id: int, batches: Sequence[Batch], authority: Mapping[str, Any]
) -> tuple[list[Stored | StatementConflictError], list[str]]:
    """Store statements in the caller's transaction.

    A statement that is there already, saying the same, is left as it is. A batch with one that is
    there and says something else is left out.

    Args:
        conn: a transaction whose scope holds the campus.
        campus_id: whose they are.
        batches: checked; no two have a statement of the same id.
        authority: the Agent who vouches for them.

    Returns:
        What became of each batch; and the statements, as they are stored, that are voided from now
        on: old ones by new ones, and new ones by any.
    """
    # Waits for whoever stores statements of this campus now.
    conn.execute(
        text("SELECT pg_advisory_xact_lock(:lock, :campus)"), {"lock": LOCK, "campus": campus_id}
    )
    known = _known(conn, campus_id, [s.id for batch in batches for s in batch.statements])
    conflicts = [_find_conflict(batch, known) for batch in batches]
    taken = [b for b, conflict in zip(batches, conflicts, strict=True) if conflict is None]
    new = [s for batch in taken for s in batch.statements if s.id not in known]
    texts, voided = _store(conn, campus_id, new, authority) if new else ({}, [])
    _keep_parts(conn, campus_id, [part for batch in taken for part in batch.parts])
    outcomes = [
        conflict
        or Stored(
            [s.value["id"] for s in batch.statements],
            [texts[s.id] for s in batch.statements if s.id in texts],
        )
        for batch, conflict in zip(batches, conflicts, strict=True)
    ]
    return outcomes, voided


def _store(
    conn: Connection, campus_id: int, new: Sequence[Prepared], authority: Mapping[str, Any]
) -> tuple[dict[UUID, str], list[str]]:
    """The texts of statements that are stored now, by their ids; and those that are voided now."""
    first = _next_moment(conn, campus_id)
    moments = [first + _STEP * n for n in range(len(new))]
    values = [_finish(s, at, authority) for s, at in zip(new, moments, strict=True)]
    texts = [to_text(value) for value in values]
    _insert(conn, campus_id, new, moments, texts)
    _insert_keys(conn, campus_id, values, moments)
    nodes = [Node(s.id, at, s.refers_to) for s, at in zip(new, moments, strict=True)]
    refer = inherit_keys(conn, campus_id, nodes)
    _keep_definitions(conn, campus_id, values)
    _keep_names(conn, campus_id, values)
    voided = voided_by(conn, campus_id, nodes) if refer else []
    return {s.id: words for s, words in zip(new, texts, strict=True)}, voided


def moment(at: datetime) -> str:
    """A moment as statements write it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _known(conn: Connection, campus_id: int, ids: list[UUID]) -> dict[UUID, Row[Any]]:
    rows = conn.execute(
        text(
            "SELECT id, fingerprint, happened_at FROM theon.lrs_statements"
            " WHERE campus_id = :campus AND id = ANY (:ids)"
        ),
        {"campus": campus_id, "ids": ids},
    )
    return {row.id: row for row in rows}


def _find_conflict(batch: Batch, known: Mapping[UUID, Row[Any]]) -> StatementConflictError | None:
    for statement in batch.statements:
        found = known.get(statement.id)
        if found is None:
            continue
        times = {found.happened_at, statement.timestamp} - {None}
        if bytes(found.fingerprint) != statement.fingerprint or len(times) > 1:
            return StatementConflictError(
                "there is a statement with this id that says something else; a statement is "
                "never changed",
                where=f"statement {statement.id}",
                next_step="Send it under a new id, or void the one that is there.",
            )
    return None


def _next_moment(conn: Connection, campus_id: int) -> datetime:
    found: datetime = conn.execute(
        text(
            "SELECT greatest(clock_timestamp(), max(stored) + interval '1 microsecond')"
            " FROM theon.lrs_statements WHERE campus_id = :campus"
        ),
        {"campus": campus_id},
    ).scalar_one()
    return found


def _finish(statement: Prepared, at: datetime, authority: Mapping[str, Any]) -> dict[str, Any]:
    """The statement as it is read from now on."""
    stored = moment(at)
    return {
        **statement.value,
        "timestamp": statement.value.get("timestamp", stored),
        "stored": stored,
        "authority": dict(authority),
    }


def _insert(
    conn: Connection,
    campus_id: int,
    new: Sequence[Prepared],
    moments: Sequence[datetime],
    texts: Sequence[str],
) -> None:
    conn.execute(
        text(
            "INSERT INTO theon.lrs_statements (campus_id, id, stored, happened_at, fingerprint,"
            " refers_to, voiding, size_bytes, statement) SELECT :campus, * FROM ROWS FROM ("
            " unnest(CAST(:ids AS uuid[]), CAST(:moments AS timestamptz[]),"
            " CAST(:happened AS timestamptz[]), CAST(:fingerprints AS bytea[]),"
            " CAST(:refers AS uuid[]), CAST(:voiding AS boolean[]), CAST(:sizes AS int[])),"
            f" {_TEXTS})"
        ),
        {
            "campus": campus_id,
            "ids": [statement.id for statement in new],
            "moments": list(moments),
            "happened": [statement.timestamp for statement in new],
            "fingerprints": [statement.fingerprint for statement in new],
            "refers": [statement.refers_to for statement in new],
            "voiding": [statement.voiding for statement in new],
            "sizes": [len(words.encode()) for words in texts],
            "texts": to_text(texts),
        },
    )


def _insert_keys(
    conn: Connection,
    campus_id: int,
    values: Sequence[Mapping[str, Any]],
    moments: Sequence[datetime],
) -> None:
    pairs = [(key, at) for value, at in zip(values, moments, strict=True) for key in keys_of(value)]
    conn.execute(
        text(
            "INSERT INTO theon.lrs_keys (campus_id, key, stored, own)"
            " SELECT :campus, *, true"
            " FROM unnest(CAST(:keys AS uuid[]), CAST(:moments AS timestamptz[]))"
        ),
        {
            "campus": campus_id,
            "keys": [key for key, _ in pairs],
            "moments": [at for _, at in pairs],
        },
    )


def _keep_definitions(
    conn: Connection, campus_id: int, values: Iterable[Mapping[str, Any]]
) -> None:
    """Learn what activities are from what statements say of them; the latest word counts."""
    told: dict[str, dict[str, Any]] = {}
    for value in values:
        for activity in activities_of(value):
            if activity.get("definition"):
                before = told.get(activity["id"], {})
                told[activity["id"]] = _merge(before, activity["definition"])
    if not told:
        return
    hashes = {digest(name): name for name in told}
    rows = conn.execute(
        text(
            "SELECT id, definition FROM theon.lrs_activities"
            " WHERE campus_id = :campus AND id_hash = ANY (:hashes)"
        ),
        {"campus": campus_id, "hashes": list(hashes)},
    )
    known = {row.id: json.loads(row.definition) for row in rows}
    merged = {name: _merge(known.get(name, {}), told[name]) for name in hashes.values()}
    changed = {key: name for key, name in hashes.items() if merged[name] != known.get(name)}
    if not changed:
        return
    conn.execute(
        text(
            "INSERT INTO theon.lrs_activities (campus_id, id_hash, id, definition)"
            " SELECT :campus, r.hash, r.pair ->> 0, r.pair ->> 1 FROM ROWS FROM ("
            "unnest(CAST(:hashes AS uuid[])), json_array_elements(CAST(:pairs AS json)))"
            " AS r (hash, pair)"
            " ON CONFLICT (campus_id, id_hash) DO UPDATE SET definition = excluded.definition"
        ),
        {
            "campus": campus_id,
            "hashes": list(changed),
            "pairs": to_text([[name, to_text(merged[name])] for name in changed.values()]),
        },
    )


def _merge(known: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    maps = {
        name: {**known.get(name, {}), **told[name]}
        for name in ("name", "description", "extensions")
        if name in told
    }
    return {**known, **told, **maps}


def _keep_names(conn: Connection, campus_id: int, values: Iterable[Mapping[str, Any]]) -> None:
    """Remember by which names Agents go."""
    found = {
        (agent_key(actor), actor["name"])
        for value in values
        for actor in everybody(actors_of(value))
        if identifiers(actor) and "name" in actor
    }
    if not found:
        return
    conn.execute(
        text(
            "INSERT INTO theon.lrs_names (campus_id, agent, name_hash, name)"
            " SELECT :campus, * FROM ROWS FROM ("
            f"unnest(CAST(:agents AS uuid[]), CAST(:hashes AS uuid[])), {_TEXTS})"
            " ON CONFLICT DO NOTHING"
        ),
        {
            "campus": campus_id,
            "agents": [agent for agent, _ in found],
            "hashes": [digest(name) for _, name in found],
            "texts": to_text([name for _, name in found]),
        },
    )


def _keep_parts(conn: Connection, campus_id: int, parts: Sequence[Part]) -> None:
    for part in parts:
        conn.execute(
            text(
                "INSERT INTO theon.lrs_attachments (campus_id, sha2, content_type, content)"
                " VALUES (:campus, :sha2, :type, :content) ON CONFLICT DO NOTHING"
            ),
            {
                "campus": campus_id,
                "sha2": part.sha2,
                "type": part.content_type,
                "content": part.body,
            },
        )
