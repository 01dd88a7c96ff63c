"""Put jobs into the ledger, in the transaction of the work that needs them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from graphlib import CycleError as GraphCycleError
from graphlib import TopologicalSorter
from math import isfinite
from typing import Any

from pydantic_core import PydanticSerializationError
from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.jobs.errors import CycleError, DependencyError
from theon.jobs.kinds import JobKind, Kinds
from theon.jobs.texts import check_texts

CHANNEL = "theon_jobs"
# A class of priority is worth a wait of this length: that is how priority ages, and why nothing
# starves. `rank_at` is the time at which the job would have become ready at priority 0.
AGEING_S = 300
PRIORITIES = {"urgent": 2, "high": 1, "normal": 0, "low": -1, "background": -2}
ROWS_PER_STATEMENT = 5_000


@dataclass(frozen=True)
class NewJob:
    """A job to be put into the ledger.

    Attributes:
        kind: name of the kind.
        arguments: of the kind's dataclass, or JSON for it.
        campus: slug of the campus it belongs to; `district` for the whole.
        owner: who asked for it; empty for the system.
        priority: one of `PRIORITIES`.
        delay_s: seconds before it may run.
        deadline_at: when its result is wanted; jobs near it go first.
        idempotency_key: a second job of the same campus, kind and key is the first one.
        after: ids of jobs, or labels of this batch, that must be completed before it runs.
        label: a name for it inside this batch.
        max_attempts: another maximum than the kind's.
    """

    kind: str
    arguments: Any = field(default_factory=dict)
    campus: str = "district"
    owner: str = ""
    priority: str = "normal"
    delay_s: float = 0.0
    deadline_at: datetime | None = None
    idempotency_key: str | None = None
    after: Sequence[int | str] = ()
    label: str | None = None
    max_attempts: int | None = None


def enqueue(conn: Connection, kinds: Kinds, new: NewJob) -> int:
    """Put one job into the ledger; it runs only if the caller's transaction commits.

    Returns:
        Its id, or that of the job that already has its idempotency key.

    Raises:
        UnknownKindError: nobody declares the kind.
        InputError: arguments, campus, priority or key do not fit, or have what no text in the
            database can have.
        DependencyError: a job that it needs does not exist, has failed or was cancelled.
    """
    return enqueue_many(conn, kinds, [new])[0]


def enqueue_many(conn: Connection, kinds: Kinds, new: Sequence[NewJob]) -> list[int]:
    """Put jobs into the ledger, a few thousand per statement; all or none.

    Returns:
        Their ids in order; see `enqueue`.

    Raises:
        CycleError: jobs of the batch wait for each other in a circle; names them.
    """
    order = _in_order(new)
    ids: dict[int, int] = {}
    labels: dict[str, int] = {}
    # What others need comes first, so that their ids are known; without labels it is one round.
    for group in order:
        for start in range(0, len(group), ROWS_PER_STATEMENT):
            chunk = group[start : start + ROWS_PER_STATEMENT]
            found = _insert(conn, kinds, [new[n] for n in chunk], labels)
            for number, job_id in zip(chunk, found, strict=True):
                ids[number] = job_id
                label = new[number].label
                if label is not None:
                    labels[label] = job_id
    conn.execute(text("SELECT pg_notify(:channel, 'enqueued')"), {"channel": CHANNEL})
    return [ids[number] for number in range(len(new))]


def _in_order(new: Sequence[NewJob]) -> list[list[int]]:
    """The numbers of the jobs in groups, each of which needs only labels of earlier ones."""
    by_label: dict[str, int] = {}
    for number, job in enumerate(new):
        if job.label is not None:
            if job.label in by_label:
                raise InputError("two jobs of the batch have this label", where=job.label)
            by_label[job.label] = number
    graph: TopologicalSorter[int] = TopologicalSorter()
    for number, job in enumerate(new):
        needs = []
        for name in job.after:
            if isinstance(name, str):
                if name not in by_label:
                    raise DependencyError(
                        f"it needs {name!r}, and no job of the batch has that label",
                        where=f"job {job.label or number} ({job.kind})",
                    )
                needs.append(by_label[name])
        graph.add(number, *needs)
    try:
        graph.prepare()
    except GraphCycleError as error:
        names = [new[n].label or str(n) for n in error.args[1]]
        raise CycleError(
            f"these jobs wait for each other: {' → '.join(reversed(names))}",
            where="after",
            next_step="Take one of them out of the `after` of another. Nothing was enqueued.",
        ) from error
    groups = []
    while graph.is_active():
        ready = sorted(graph.get_ready())
        groups.append(ready)
        graph.done(*ready)
    return groups


def _insert(
    conn: Connection, kinds: Kinds, jobs: list[NewJob], labels: Mapping[str, int]
) -> list[int]:
    campuses = _campus_ids(conn, {job.campus for job in jobs})
    needs = [[labels[n] if isinstance(n, str) else n for n in job.after] for job in jobs]
    needed = _lock_needed(conn, sorted({n for group in needs for n in group}))
    ids = list(
        conn.execute(
            text(
                "SELECT nextval(pg_get_serial_sequence('theon.jobs', 'id'))"
                " FROM generate_series(1, :count)"
            ),
            {"count": len(jobs)},
        ).scalars()
    )
    rows = [
        _row(kinds[job.kind], job, job_id, campuses, sum(needed[n][1] for n in set(group)))
        for job, job_id, group in zip(jobs, ids, needs, strict=True)
    ]
    inserted = set(conn.execute(text(_INSERT), {"rows": _as_json(rows)}).scalars())
    edges = [
        {"campus_id": row["campus_id"], "job_id": row["id"], "needs_id": n,
         "needs_campus_id": needed[n][0]}
        for row, group in zip(rows, needs, strict=True)
        for n in dict.fromkeys(group)
        if row["id"] in inserted
    ]  # fmt: skip
    if edges:
        conn.execute(text(_INSERT_NEEDS), {"rows": json.dumps(edges)})
    if len(inserted) == len(ids):
        return ids
    return [i if i in inserted else _of_key(conn, row) for i, row in zip(ids, rows, strict=True)]


def _row(
    kind: JobKind, job: NewJob, job_id: int, campuses: Mapping[str, int], waits_for: int
) -> dict[str, Any]:
    if job.priority not in PRIORITIES:
        raise InputError(
            f"there is no priority {job.priority!r}",
            where=f"job {kind.name}",
            next_step=f"Choose one of {', '.join(PRIORITIES)}.",
        )
    if not isfinite(job.delay_s):
        raise InputError("delay_s is a number of seconds", where=f"job {kind.name}")
    if job.max_attempts is not None and job.max_attempts < 1:
        raise InputError("max_attempts is at least 1", where=f"job {kind.name}")
    arguments = kind.parse(job.arguments)
    try:
        dumped = kind.dump(arguments)
    except (PydanticSerializationError, UnicodeError):
        check_texts(job.arguments, "arguments", where=f"job {kind.name}")
        raise
    return {
        "id": job_id,
        "campus_id": campuses[job.campus],
        "kind": kind.name,
        "queue": kind.queue,
        "category": kind.category,
        "owner": job.owner,
        "arguments": dumped,
        "size": kind.size(arguments) if kind.size else None,
        "priority": PRIORITIES[job.priority],
        "delay_s": max(0.0, job.delay_s),
        "deadline_at": job.deadline_at.isoformat() if job.deadline_at else None,
        "idempotency_key": job.idempotency_key,
        "waits_for": waits_for,
        "max_attempts": job.max_attempts or kind.max_attempts,
        "max_lost": kind.max_lost,
        "timeout_s": kind.timeout_s,
        "memory_mb": kind.memory_mb,
    }


def _as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Jobs as JSON that PostgreSQL can keep.

    Raises:
        InputError: a text has a NUL character or half of one, or a number is not finite.
    """
    try:
        dumped = json.dumps(rows, allow_nan=False)
    except (ValueError, RecursionError):
        _check(rows)
        raise
    # Only what may be wrong is looked at in full: most jobs are many and plain.
    if "\\u0000" in dumped or "\\ud" in dumped:
        _check(rows)
    return dumped


def _check(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        for name in ("arguments", "owner", "idempotency_key", "size"):
            check_texts(row[name], name, where=f"job {row['kind']}")


_INSERT = f"""
INSERT INTO theon.jobs (id, campus_id, kind, queue, category, owner, arguments, size, state,
    reason, priority, rank_at, ready_at, deadline_at, idempotency_key, waits_for, max_attempts,
    max_lost, timeout_s, memory_mb)
OVERRIDING SYSTEM VALUE
SELECT r.id, r.campus_id, r.kind, r.queue, r.category, r.owner, r.arguments, r.size,
    CASE WHEN r.waits_for = 0 AND r.delay_s = 0 THEN 'queued' ELSE 'scheduled' END,
    CASE WHEN r.waits_for > 0 THEN 'waits for ' || r.waits_for || ' other job'
            || CASE WHEN r.waits_for > 1 THEN 's' ELSE '' END
        WHEN r.delay_s > 0 THEN 'waits for its time' ELSE 'may run now' END,
    r.priority, c.at + make_interval(secs => r.delay_s - r.priority * {AGEING_S}),
    c.at + make_interval(secs => r.delay_s), r.deadline_at, r.idempotency_key, r.waits_for,
    r.max_attempts, r.max_lost, r.timeout_s, r.memory_mb
FROM (SELECT clock_timestamp() AS at) AS c, jsonb_to_recordset(CAST(:rows AS jsonb)) AS r (
    id bigint, campus_id int, kind text, queue text, category text, owner text, arguments jsonb,
    size float8, priority smallint, delay_s float8, deadline_at timestamptz,
    idempotency_key text, waits_for int, max_attempts int, max_lost int, timeout_s float8,
    memory_mb int)
ON CONFLICT (campus_id, kind, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id"""

_INSERT_NEEDS = """
INSERT INTO theon.job_dependencies (campus_id, job_id, needs_id, needs_campus_id)
SELECT r.campus_id, r.job_id, r.needs_id, r.needs_campus_id
FROM jsonb_to_recordset(CAST(:rows AS jsonb))
    AS r (campus_id int, job_id bigint, needs_id bigint, needs_campus_id int)"""


def _campus_ids(conn: Connection, slugs: set[str]) -> dict[str, int]:
    for slug in slugs:
        check_texts(slug, "campus", where="job")
    found = conn.execute(
        text("SELECT slug, id FROM theon.campuses WHERE slug = ANY (:slugs)"),
        {"slugs": sorted(slugs)},
    )
    ids = {str(slug): int(number) for slug, number in found}
    for slug in sorted(slugs):
        if slug not in ids:
            raise InputError(
                f"there is no campus {slug!r} in this scope",
                where="job",
                next_step="`theon campus list` shows those there are.",
            )
    return ids


def _lock_needed(conn: Connection, ids: list[int]) -> dict[int, tuple[int, int]]:
    """Of each job that is needed: its campus, and 1 if it is still to be waited for.

    The rows are locked: a job that ends meanwhile waits for the caller's commit, and then finds
    who waits for it.
    """
    if not ids:
        return {}
    found = conn.execute(
        text("SELECT id, campus_id, state FROM theon.jobs WHERE id = ANY (:ids) FOR SHARE"),
        {"ids": ids},
    )
    needed: dict[int, tuple[int, int]] = {}
    for job_id, campus_id, state in found:
        if state in ("failed", "cancelled"):
            raise DependencyError(
                f"job {job_id}, which it needs, is {state}",
                where="after",
                next_step=f"Retry job {job_id} first: theon jobs retry {job_id}",
            )
        needed[job_id] = (campus_id, int(state != "completed"))
    for job_id in ids:
        if job_id not in needed:
            raise DependencyError(
                f"job {job_id}, which it needs, does not exist in this scope", where="after"
            )
    return needed


def _of_key(conn: Connection, row: Mapping[str, Any]) -> int:
    """The job that has the campus, kind and key of `row` already."""
    found = conn.execute(
        text(
            "SELECT id FROM theon.jobs WHERE campus_id = :campus_id AND kind = :kind"
            " AND idempotency_key = :idempotency_key"
        ),
        {name: row[name] for name in ("campus_id", "kind", "idempotency_key")},
    )
    return int(found.scalar_one())
