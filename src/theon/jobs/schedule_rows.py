"""The tables of schedules: what is declared, what was decided about each fire time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.jobs import cron as cron_lines
from theon.jobs.context import clean
from theon.jobs.enqueue import PRIORITIES

FORMER_RUNS = 100  # that are looked at for one that has not ended


class Row(NamedTuple):
    """A schedule of one campus, as the database has it."""

    name: str
    campus_id: int
    campus: str
    kind: str
    arguments: Any
    cron: str
    timezone: str
    catch_up: str
    may_overlap: bool
    priority: int
    seen_until: datetime


_ROWS = """
SELECT s.name, s.campus_id, c.slug, s.kind, s.arguments, s.cron, s.timezone, s.catch_up,
    s.may_overlap, s.priority, s.seen_until
FROM theon.job_schedules AS s JOIN theon.campuses AS c ON c.id = s.campus_id"""


@dataclass(frozen=True)
class Decision:
    """What becomes of a fire time; `fire_times` is for how many missed ones it stands."""

    fire_at: datetime
    outcome: str
    fire_times: int = 1


@dataclass(frozen=True)
class ScheduleRun:
    """A fire time that was decided.

    Attributes:
        fire_at: when it was due; of a run by hand, when it was asked for.
        outcome: `enqueued`, `missed`, `overlapped` or `by hand`.
        fire_times: for how many missed fire times it stands, this one and earlier ones.
        job_id: of the run.
        job_state: of that job; None also where the job was removed since.
        decided_at: when.
    """

    fire_at: datetime
    outcome: str
    fire_times: int
    job_id: int | None
    job_state: str | None
    decided_at: datetime


@dataclass(frozen=True)
class ScheduleState:
    """A schedule of one campus: what it does, what comes, what was.

    Attributes:
        name, campus, kind, arguments, cron, timezone, catch_up, may_overlap, priority, summary:
            as declared; the time zone is never None here.
        paused_by, paused_at: who paused it and when; None while it is not paused.
        upcoming: its next fire times, in UTC; none while it is paused.
        runs: the latest fire times that were decided, newest first.
        missed: fire times of the last 30 days that were missed.
    """

    name: str
    campus: str
    kind: str
    arguments: Any
    cron: str
    timezone: str
    catch_up: str
    may_overlap: bool
    priority: str
    summary: str
    paused_by: str | None
    paused_at: datetime | None
    upcoming: tuple[datetime, ...]
    runs: tuple[ScheduleRun, ...]
    missed: int


_SYNC = """
INSERT INTO theon.job_schedules AS s (name, campus_id, kind, arguments, cron, timezone, catch_up,
    may_overlap, priority, summary, seen_until)
SELECT r.*, CAST(:now AS timestamptz) FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r (
    name text, campus_id int, kind text, arguments jsonb, cron text, timezone text, catch_up text,
    may_overlap boolean, priority smallint, summary text)
ORDER BY name, campus_id
ON CONFLICT (name, campus_id) DO UPDATE SET kind = excluded.kind, arguments = excluded.arguments,
    cron = excluded.cron, timezone = excluded.timezone, catch_up = excluded.catch_up,
    may_overlap = excluded.may_overlap, priority = excluded.priority, summary = excluded.summary,
    -- Of another line, or in another zone, no time before now was ever to be run.
    seen_until = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone)
        THEN s.seen_until ELSE excluded.seen_until END
WHERE (s.kind, s.arguments, s.cron, s.timezone, s.catch_up, s.may_overlap, s.priority, s.summary)
    <> (excluded.kind, excluded.arguments, excluded.cron, excluded.timezone, excluded.catch_up,
        excluded.may_overlap, excluded.priority, excluded.summary)"""

_REMOVE = """
DELETE FROM theon.job_schedules AS s WHERE NOT EXISTS (
    SELECT FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r (name text, campus_id int)
    WHERE r.name = s.name AND r.campus_id = s.campus_id)"""

_STATES = """
SELECT s.*, c.slug, coalesce(latest.runs, '[]') AS runs, coalesce(missed.missed, 0) AS missed
FROM theon.job_schedules AS s JOIN theon.campuses AS c ON c.id = s.campus_id
CROSS JOIN LATERAL (
    SELECT jsonb_agg(to_jsonb(r) ORDER BY r.fire_at DESC) AS runs FROM (
        SELECT u.fire_at, u.outcome, u.fire_times, u.job_id, j.state AS job_state, u.decided_at
        FROM theon.job_schedule_runs AS u LEFT JOIN theon.jobs AS j ON j.id = u.job_id
        WHERE u.schedule = s.name AND u.campus_id = s.campus_id
        ORDER BY u.fire_at DESC LIMIT :runs) AS r) AS latest
CROSS JOIN LATERAL (
    SELECT sum(u.fire_times)::int AS missed FROM theon.job_schedule_runs AS u
    WHERE u.schedule = s.name AND u.campus_id = s.campus_id AND u.outcome = 'missed'
        AND u.fire_at > clock_timestamp() - interval '30 days') AS missed
WHERE (CAST(:name AS text) IS NULL OR s.name = :name)
    AND (CAST(:campus AS text) IS NULL OR c.slug = :campus)
ORDER BY s.name, c.slug"""


def sync(conn: Connection, declared: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """Make the rows those that are declared; pauses and what was seen stay."""
    conn.execute(text("SELECT pg_advisory_xact_lock(hashtext('theon.jobs.schedules'))"))
    given = json.dumps(declared)
    conn.execute(text(_SYNC), {"rows": given, "now": now})
    conn.execute(text(_REMOVE), {"rows": given})


def active(conn: Connection, names: Sequence[str]) -> list[Row]:
    """The rows that are not paused of these schedules."""
    found = conn.execute(
        text(f"{_ROWS} WHERE s.paused_at IS NULL AND s.name = ANY (:names)"),
        {"names": list(names)},
    )
    return [Row._make(row) for row in found]


def take(conn: Connection, name: str, campus_ids: Sequence[int]) -> list[Row]:
    """Lock the rows of a schedule that are not paused and that nobody else holds."""
    found = conn.execute(
        text(
            f"{_ROWS} WHERE s.name = :name AND s.campus_id = ANY (:ids)"
            " AND s.paused_at IS NULL ORDER BY s.campus_id FOR UPDATE OF s SKIP LOCKED"
        ),
        {"name": name, "ids": list(campus_ids)},
    )
    return [Row._make(row) for row in found]


def move_on(conn: Connection, name: str, seen: Mapping[int, datetime]) -> None:
    """Say up to where the fire times of a schedule are decided, per campus."""
    conn.execute(
        text(
            "UPDATE theon.job_schedules AS s SET seen_until = v.seen_until"
            " FROM unnest(CAST(:ids AS int[]), CAST(:seen AS timestamptz[]))"
            "  AS v (campus_id, seen_until)"
            " WHERE s.name = :name AND s.campus_id = v.campus_id"
        ),
        {"name": name, "ids": list(seen), "seen": list(seen.values())},
    )


def states(
    conn: Connection, now: datetime, *, name: str | None, campus: str | None, count: int, runs: int
) -> list[ScheduleState]:
    """See `Scheduler.upcoming`."""
    priorities = {number: word for word, number in PRIORITIES.items()}
    return [
        ScheduleState(
            row.name, row.slug, row.kind, row.arguments, row.cron, row.timezone, row.catch_up,
            row.may_overlap, priorities.get(row.priority, str(row.priority)), row.summary,
            row.paused_by, row.paused_at,
            () if row.paused_at else _next(row, max(now, row.seen_until), count),
            tuple(_run(run) for run in row.runs),
            row.missed,
        )
        for row in conn.execute(text(_STATES), {"name": name, "campus": campus, "runs": runs})
    ]  # fmt: skip


def _next(row: Any, after: datetime, count: int) -> tuple[datetime, ...]:
    try:
        return tuple(cron_lines.next_fires(row.cron, row.timezone, after, count))
    except InputError:  # a campus's zone that this machine does not know; the log says so
        return ()


def _run(found: Mapping[str, Any]) -> ScheduleRun:
    times = {name: datetime.fromisoformat(found[name]) for name in ("fire_at", "decided_at")}
    return ScheduleRun(**{**found, **times})


def held(conn: Connection, name: str, campus: str | None) -> list[Row]:
    """The rows of a schedule in the scope, locked.

    Raises:
        InputError: there are none.
    """
    found = conn.execute(
        text(
            f"{_ROWS} WHERE s.name = :name AND (CAST(:campus AS text) IS NULL OR c.slug = :campus)"
            " ORDER BY s.campus_id FOR UPDATE OF s"
        ),
        {"name": clean(name), "campus": None if campus is None else clean(campus)},
    )
    rows = [Row._make(row) for row in found]
    if not rows:
        of = f" of campus {campus!r}" if campus else ""
        raise InputError(
            f"there is no schedule {name!r}{of} in this scope",
            where="schedules",
            next_step="`theon schedules list` shows those there are.",
        )
    return rows


def insert_runs(
    conn: Connection, decided: Sequence[tuple[Row, Decision]]
) -> set[tuple[int, datetime]]:
    """Write the decisions; returns (campus, fire time) of those that nobody had written."""
    rows = [
        {
            "campus_id": row.campus_id, "schedule": row.name, "outcome": decision.outcome,
            "fire_at": decision.fire_at.isoformat(), "fire_times": decision.fire_times,
        }
        for row, decision in decided
    ]  # fmt: skip
    found = conn.execute(
        text(
            "INSERT INTO theon.job_schedule_runs"
            " (campus_id, schedule, fire_at, outcome, fire_times)"
            " SELECT r.* FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r"
            " (campus_id int, schedule text, fire_at timestamptz, outcome text, fire_times int)"
            " ON CONFLICT DO NOTHING RETURNING campus_id, fire_at"
        ),
        {"rows": json.dumps(rows)},
    )
    return {(campus_id, fire_at) for campus_id, fire_at in found}


def complete_runs(
    conn: Connection, decided: Sequence[tuple[Row, Decision]], ids: Sequence[int | None]
) -> None:
    """Give runs their jobs; those without one were overlapped by the former run."""
    rows = [
        {
            "campus_id": row.campus_id, "schedule": row.name, "job_id": job_id,
            "fire_at": decision.fire_at.isoformat(),
        }
        for (row, decision), job_id in zip(decided, ids, strict=True)
    ]  # fmt: skip
    conn.execute(
        text(
            "UPDATE theon.job_schedule_runs AS u SET job_id = r.job_id,"
            " outcome = CASE WHEN r.job_id IS NULL THEN 'overlapped' ELSE u.outcome END"
            " FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS r"
            "  (campus_id int, schedule text, fire_at timestamptz, job_id bigint)"
            " WHERE u.schedule = r.schedule AND u.campus_id = r.campus_id"
            "  AND u.fire_at = r.fire_at"
        ),
        {"rows": json.dumps(rows)},
    )


def unended(conn: Connection, rows: Sequence[Row]) -> dict[int, int]:
    """Campus to the job of a former run that has not ended; `rows` are one schedule's, held."""
    if not rows:
        return {}
    found = conn.execute(
        text(
            "SELECT u.campus_id, j.id FROM unnest(CAST(:ids AS int[])) AS c (id)"
            " CROSS JOIN LATERAL (SELECT campus_id, job_id FROM theon.job_schedule_runs"
            "  WHERE schedule = :name AND campus_id = c.id AND job_id IS NOT NULL"
            "  ORDER BY fire_at DESC LIMIT :runs) AS u"
            " JOIN theon.jobs AS j ON j.id = u.job_id"
            " WHERE j.state NOT IN ('completed', 'failed', 'cancelled')"
        ),
        {
            "name": rows[0].name,
            "ids": sorted({row.campus_id for row in rows}),
            "runs": FORMER_RUNS,
        },
    )
    return {int(campus_id): int(job_id) for campus_id, job_id in found}
