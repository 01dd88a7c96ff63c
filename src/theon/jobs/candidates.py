"""What the policy looks at, read from the ledger at a cost that does not grow with the queue."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from math import ceil

from sqlalchemy import Connection, text

from theon.jobs import ledger
from theon.jobs.kinds import JobKind, Kinds
from theon.jobs.policy import Candidate, Cap, Limits, Running, Worker
from theon.jobs.predict import Predictor, slot_cost

BUFFER = 4_000
PARTITIONS_PER_READ = 500
RESTART_S = 1.0
ALIVE_S = 15.0
IDLE_PARTITION = ("", 0, "")

Partition = tuple[str, int, str]  # queue, campus_id, owner
Place = tuple[float, int]  # rank_at as seconds since the epoch, id

# One step of the index for each partition, however long the partitions are.
_PARTITIONS = """
WITH RECURSIVE parts AS (
    (SELECT queue, campus_id, owner, 1 AS n FROM theon.jobs
     WHERE state = 'queued' AND (queue, campus_id, owner) > (:queue, :campus_id, :owner)
     ORDER BY queue, campus_id, owner LIMIT 1)
    UNION ALL
    SELECT j.queue, j.campus_id, j.owner, p.n + 1 FROM parts AS p CROSS JOIN LATERAL (
        SELECT queue, campus_id, owner FROM theon.jobs WHERE state = 'queued'
        AND (queue, campus_id, owner) > (p.queue, p.campus_id, p.owner)
        ORDER BY queue, campus_id, owner LIMIT 1) AS j
    WHERE p.n < :limit
) SELECT queue, campus_id, owner FROM parts"""

_FIRST = """
SELECT p.queue, p.campus_id, p.owner, j.id, j.kind, c.slug, extract(epoch FROM j.rank_at),
    j.priority, extract(epoch FROM j.deadline_at), j.lost, j.max_lost,
    extract(epoch FROM j.ready_at), j.size, j.timeout_s, j.memory_mb
FROM unnest(CAST(:queues AS text[]), CAST(:campuses AS int[]), CAST(:owners AS text[]),
    CAST(:ranks AS float8[]), CAST(:ids AS bigint[])) AS p (queue, campus_id, owner, rank_s, id)
JOIN theon.campuses AS c ON c.id = p.campus_id
CROSS JOIN LATERAL (
    SELECT * FROM theon.jobs AS j WHERE j.state = 'queued' AND j.queue = p.queue
    AND j.campus_id = p.campus_id AND j.owner = p.owner
    AND (j.rank_at, j.id) > (to_timestamp(p.rank_s), p.id)
    ORDER BY j.rank_at, j.id LIMIT :each) AS j"""


class Candidates:
    """A buffer of the first queued jobs of each partition.

    Index entries of jobs that left the queue stay while an old snapshot is held, so a read
    from the beginning would pass all of them each time. Reads go on where the last one ended,
    and begin anew at most so often that they take a tenth of the time.
    """

    def __init__(self, kinds: Kinds, clock: Callable[[], float] = time.monotonic) -> None:
        self._kinds = kinds
        self._clock = clock
        self._lines: dict[Partition, list[Candidate]] = {}
        self._places: dict[Partition, Place] = {}
        self._after: Partition = IDLE_PARTITION
        self._restart_at_s = 0.0
        self._soonest_s = 0.0

    def first(
        self, conn: Connection, count: int, predictor: Predictor, *, notified: bool = False
    ) -> list[Candidate]:
        """About `count` candidates, the first of each partition that was read."""
        now_s = self._clock()
        if now_s >= (self._soonest_s if notified else self._restart_at_s):
            self._lines, self._places = {}, {}
            self._read(conn, predictor)
            took_s = self._clock() - now_s
            self._soonest_s = now_s + max(0.02, 10 * took_s)
            self._restart_at_s = now_s + max(RESTART_S, 10 * took_s)
        elif sum(map(len, self._lines.values())) < count:
            self._read(conn, predictor)
        lines = [line for line in self._lines.values() if line]
        each = max(4, -(-count // len(lines))) if lines else 0
        return [candidate for line in lines for candidate in line[:each]]

    def remove(self, ids: set[int]) -> None:
        """Forget jobs that were handed out, or that somebody else took."""
        for line in self._lines.values():
            line[:] = [c for c in line if c.job_id not in ids]

    def _read(self, conn: Connection, predictor: Predictor) -> None:
        parts = self._next_partitions(conn)
        if not parts:
            return
        places = [self._places.get(part, (float("-inf"), 0)) for part in parts]
        found = conn.execute(
            text(_FIRST),
            {
                "queues": [p[0] for p in parts],
                "campuses": [p[1] for p in parts],
                "owners": [p[2] for p in parts],
                "ranks": [place[0] for place in places],
                "ids": [place[1] for place in places],
                "each": max(8, BUFFER // len(parts)),
            },
        )
        for queue, campus_id, owner, job_id, kind, slug, rank_s, *rest in found:
            priority, deadline_s, lost, max_lost, ready_s, size, timeout_s, memory_mb = rest
            part: Partition = (queue, campus_id, owner)
            self._places[part] = (float(rank_s), job_id)
            # A kind whose code is gone is handed out too: the worker says so in the ledger.
            known = self._kinds[kind] if kind in self._kinds else None  # noqa: SIM401 - `get` raises
            expected = predictor.predict(known or _nameless(kind, timeout_s, memory_mb), size)
            candidate = Candidate(
                job_id, kind, queue, slug, owner, float(rank_s), priority,
                None if deadline_s is None else float(deadline_s), lost,
                expected.p50_s, expected.memory_p95_mb, max_lost, float(ready_s),
                slot_cost(expected.p50_s),
            )  # fmt: skip
            self._lines.setdefault(part, []).append(candidate)

    def _next_partitions(self, conn: Connection) -> list[Partition]:
        """The next partitions in turn; where there are many, each read takes some of them."""
        after = self._after
        found: list[Partition] = []
        for start in dict.fromkeys((after, IDLE_PARTITION)):
            rows = conn.execute(
                text(_PARTITIONS),
                {
                    "queue": start[0], "campus_id": start[1], "owner": start[2],
                    "limit": PARTITIONS_PER_READ,
                },
            )  # fmt: skip
            found += [(queue, campus_id, owner) for queue, campus_id, owner in rows]
            if len(found) >= PARTITIONS_PER_READ:
                break
        parts = list(dict.fromkeys(found))[:PARTITIONS_PER_READ]
        full = len(parts) == PARTITIONS_PER_READ
        self._after = parts[-1] if full else IDLE_PARTITION
        return parts


def _nameless(kind: str, timeout_s: float, memory_mb: int) -> JobKind:
    return JobKind(kind, _gone, object, timeout_s=timeout_s, memory_mb=memory_mb)


def _gone(_ctx: object, _arguments: object) -> None:
    """The function of a kind whose code is gone; no worker calls it."""


Dispatched = Mapping[tuple[str, str], int]  # (queue, kind) to jobs


def running(conn: Connection, kinds: Kinds) -> tuple[Running, Dispatched]:
    """What is at work and what began of late; and what is on its way to any worker."""
    by_kind: Counter[str] = Counter()
    by_kind_owner: Counter[tuple[str, str]] = Counter()
    by_partition: Counter[tuple[str, str]] = Counter()
    dispatched: Counter[tuple[str, str]] = Counter()
    found = conn.execute(
        text(
            "SELECT j.kind, c.slug, j.owner, j.queue, j.worker IS NULL, count(*)"
            " FROM theon.jobs AS j JOIN theon.campuses AS c ON c.id = j.campus_id"
            " WHERE j.state IN ('dispatched', 'running') GROUP BY 1, 2, 3, 4, 5"
        )
    )
    for kind, slug, owner, queue, for_any_worker, count in found:
        by_kind[kind] += count
        by_kind_owner[(kind, owner)] += count
        by_partition[(slug, owner)] += count
        if for_any_worker:
            dispatched[(queue, kind)] += count
    begun: Counter[str] = Counter()
    limited = [kind.name for kind in kinds.values() if kind.per_minute is not None]
    if limited:
        rows = conn.execute(
            text(
                "SELECT kind, sum(n) FROM ("
                " SELECT kind, count(*) AS n FROM theon.job_attempts WHERE kind = ANY (:kinds)"
                "  AND ended_at > clock_timestamp() - interval '1 minute'"
                "  AND started_at > clock_timestamp() - interval '1 minute' GROUP BY kind"
                " UNION ALL SELECT kind, count(*) FROM theon.jobs WHERE kind = ANY (:kinds)"
                "  AND (state = 'dispatched' OR state = 'running'"
                "   AND started_at > clock_timestamp() - interval '1 minute') GROUP BY kind"
                ") AS both_places GROUP BY kind"
            ),
            {"kinds": limited},
        )
        begun.update({kind: int(count) for kind, count in rows})
    return Running(by_kind, by_kind_owner, by_partition, begun), dict(dispatched)


def limits(conn: Connection, kinds: Kinds) -> Limits:
    """The caps of the kinds and what is paused; a pause holds for a campus and all below it."""
    paused: dict[str, set[tuple[str, str]]] = defaultdict(set)
    found = conn.execute(
        text(
            "WITH RECURSIVE reach AS ("
            " SELECT campus_id AS id, subject, value FROM theon.job_pauses"
            "  WHERE subject <> 'campus' AND (until IS NULL OR until > clock_timestamp())"
            " UNION SELECT c.id, subject, value FROM theon.job_pauses JOIN theon.campuses AS c"
            "  ON c.slug = value WHERE subject = 'campus'"
            "  AND (until IS NULL OR until > clock_timestamp())"
            " UNION SELECT c.id, r.subject, CASE r.subject WHEN 'campus' THEN c.slug"
            "  ELSE r.value END FROM theon.campuses AS c JOIN reach AS r ON c.parent_id = r.id"
            ") SELECT c.slug, r.subject, r.value FROM reach AS r JOIN theon.campuses AS c"
            "  ON c.id = r.id"
        )
    )
    for slug, subject, value in found:
        paused[slug].add((subject, value))
    caps = {
        kind.name: Cap(kind.at_once, kind.at_once_per_owner, kind.per_minute)
        for kind in kinds.values()
        if (kind.at_once, kind.at_once_per_owner, kind.per_minute) != (None, None, None)
    }
    return Limits(caps, {slug: frozenset(things) for slug, things in paused.items()})


def workers(
    conn: Connection, dispatched: Dispatched, cost: Callable[[str], float] = lambda _kind: 1.0
) -> list[Worker]:
    """The live workers, each with the room that running and dispatched jobs leave it.

    `cost` gives, for a kind, the share of a slot that one of its jobs takes up.
    """
    found = conn.execute(
        text(
            # The ledger knows what runs; a heartbeat tells it two seconds late.
            "SELECT w.id, queues, slots, (SELECT jsonb_object_agg(kind, n) FROM ("
            "  SELECT j.kind, count(*) AS n FROM theon.jobs AS j"
            "  WHERE j.state = 'running' AND j.worker = w.id GROUP BY j.kind) AS r),"
            " memory_free_mb, EXISTS (SELECT FROM theon.jobs AS j"
            "  WHERE j.state IN ('dispatched', 'running') AND j.worker = w.id"
            f"  AND {ledger.ALONE}),"
            " extract(epoch FROM clock_timestamp() - heartbeat_at) FROM theon.job_workers AS w"
            " WHERE state = 'running' AND heartbeat_at > clock_timestamp()"
            "  - make_interval(secs => :alive_s) ORDER BY id"
        ),
        {"alive_s": ALIVE_S},
    ).all()
    left: defaultdict[str, float] = defaultdict(float)
    jobs: Counter[str] = Counter()
    for (queue, kind), count in dispatched.items():
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
                running_there, closed, float(silent_s),
            )
        )  # fmt: skip
    return live
