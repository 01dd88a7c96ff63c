"""What the policy has to go by: what is at work, which workers live, what is paused or capped.

As a rule one statement reads it: of the time from enqueueing to the start each one is a part.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from sqlalchemy import Connection, text

from theon.jobs.kinds import Kinds
from theon.jobs.policy import RUNS_ALONE, Cap, Limits, Running, Worker

ALIVE_S = 15.0

# The ledger knows what runs on a worker; a heartbeat tells it two seconds late.
_READ = text(f"""
WITH at_work AS (
    SELECT j.kind, c.slug, j.owner, j.queue, j.worker IS NULL AS for_any, count(*) AS n
    FROM theon.jobs AS j JOIN theon.campuses AS c ON c.id = j.campus_id
    WHERE j.state IN ('dispatched', 'running') GROUP BY 1, 2, 3, 4, 5
), live AS (
    SELECT w.id, w.queues, w.slots, (SELECT jsonb_object_agg(kind, n) FROM (
            SELECT j.kind, count(*) AS n FROM theon.jobs AS j
            WHERE j.state = 'running' AND j.worker = w.id GROUP BY j.kind) AS r) AS running,
        w.memory_free_mb, EXISTS (SELECT FROM theon.jobs AS j
            WHERE j.state IN ('dispatched', 'running') AND j.worker = w.id
                AND {RUNS_ALONE}) AS closed,
        extract(epoch FROM clock_timestamp() - w.heartbeat_at)::float8 AS silent_s
    FROM theon.job_workers AS w
    WHERE w.state = 'running'
        AND w.heartbeat_at > clock_timestamp() - make_interval(secs => :alive_s)
    ORDER BY w.id
)
SELECT
    (SELECT jsonb_agg(jsonb_build_array(kind, slug, owner, queue, for_any, n)) FROM at_work),
    (SELECT jsonb_agg(jsonb_build_array(id, queues, slots, running, memory_free_mb, closed,
        silent_s)) FROM live),
    EXISTS (SELECT FROM theon.job_pauses)""")

# A pause holds for a campus and all below it.
_PAUSED = text("""
WITH RECURSIVE reach AS (
    SELECT campus_id AS id, subject, value FROM theon.job_pauses
    WHERE subject <> 'campus' AND (until IS NULL OR until > clock_timestamp())
    UNION SELECT c.id, subject, value FROM theon.job_pauses JOIN theon.campuses AS c
        ON c.slug = value
    WHERE subject = 'campus' AND (until IS NULL OR until > clock_timestamp())
    UNION SELECT c.id, r.subject, CASE r.subject WHEN 'campus' THEN c.slug ELSE r.value END
    FROM theon.campuses AS c JOIN reach AS r ON c.parent_id = r.id
) SELECT c.slug, r.subject, r.value FROM reach AS r JOIN theon.campuses AS c ON c.id = r.id""")

_BEGUN = text("""
    SELECT kind, sum(n)::int AS n FROM (
        SELECT kind, count(*) AS n FROM theon.job_attempts WHERE kind = ANY (:limited)
            AND ended_at > clock_timestamp() - interval '1 minute'
            AND started_at > clock_timestamp() - interval '1 minute' GROUP BY kind
        UNION ALL SELECT kind, count(*) FROM theon.jobs WHERE kind = ANY (:limited)
            AND (state = 'dispatched' OR state = 'running'
                AND started_at > clock_timestamp() - interval '1 minute') GROUP BY kind
    ) AS both_places GROUP BY kind""")


@dataclass(frozen=True)
class Situation:
    """What `policy.choose` takes beside the candidates."""

    running: Running
    limits: Limits
    workers: list[Worker]


def read(
    conn: Connection, kinds: Kinds, cost: Callable[[str], float] = lambda _kind: 1.0
) -> Situation:
    """The situation as the scope of `conn` sees it: use the district's for the truth.

    `cost` gives, for a kind, the share of a slot that one of its jobs takes up.
    """
    limited = [kind.name for kind in kinds.values() if kind.per_minute is not None]
    at_work, live, any_paused = conn.execute(_READ, {"alive_s": ALIVE_S}).one()
    paused = [tuple(row) for row in conn.execute(_PAUSED)] if any_paused else []
    begun = Counter[str]()
    if limited:
        begun.update(dict(conn.execute(_BEGUN, {"limited": limited}).tuples().all()))
    by_kind: Counter[str] = Counter()
    by_kind_owner: Counter[tuple[str, str]] = Counter()
    by_partition: Counter[tuple[str, str]] = Counter()
    on_their_way: Counter[tuple[str, str]] = Counter()
    for kind, slug, owner, queue, for_any_worker, count in at_work or ():
        by_kind[kind] += count
        by_kind_owner[(kind, owner)] += count
        by_partition[(slug, owner)] += count
        if for_any_worker:
            on_their_way[(queue, kind)] += count
    return Situation(
        Running(by_kind, by_kind_owner, by_partition, begun),
        _limits(kinds, paused),
        _workers(live or (), on_their_way, cost),
    )


def _limits(kinds: Kinds, paused: Iterable[tuple[str, str, str]]) -> Limits:
    by_campus: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for slug, subject, value in paused:
        by_campus[slug].add((subject, value))
    caps = {
        kind.name: Cap(kind.at_once, kind.at_once_per_owner, kind.per_minute)
        for kind in kinds.values()
        if (kind.at_once, kind.at_once_per_owner, kind.per_minute) != (None, None, None)
    }
    return Limits(caps, {slug: frozenset(things) for slug, things in by_campus.items()})


def _workers(
    found: Iterable[list[Any]],
    on_their_way: Mapping[tuple[str, str], int],
    cost: Callable[[str], float],
) -> list[Worker]:
    """The live workers, each with the room that running and dispatched jobs leave it."""
    left: defaultdict[str, float] = defaultdict(float)
    jobs: Counter[str] = Counter()
    for (queue, kind), count in on_their_way.items():
        left[queue] += count * cost(kind)
        jobs[queue] += count
    live = []
    for worker_id, queues, slots, kinds_there, memory_mb, closed, silent_s in found:
        at_work = kinds_there or {}
        taken_up = sum(count * cost(kind) for kind, count in at_work.items())
        room = 0.0 if closed else max(0.0, slots - taken_up)
        running_there = sum(at_work.values())
        pending = 0
        for queue in queues:
            # Nobody knows which worker gets a message: it counts where there is room first.
            taken = min(left[queue], room)
            if taken > 0:
                share = ceil(jobs[queue] * taken / left[queue])
                pending += share
                jobs[queue] -= share
                left[queue] -= taken
                room -= taken
        live.append(
            Worker(
                worker_id, frozenset(queues), room, running_there + pending, memory_mb,
                running_there, closed, silent_s,
            )
        )  # fmt: skip
    return live
