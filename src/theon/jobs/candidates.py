"""The jobs that the policy chooses from, at a cost that does not grow with the queue."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection, text

from theon.jobs.kinds import JobKind, Kinds
from theon.jobs.policy import Candidate
from theon.jobs.predict import Predictor, slot_cost

BUFFER = 2_000
LEAST_EACH = 8
PARTITIONS_PER_READ = 500
RESTART_S = 1.0
IDLE_PARTITION = ("", 0, "")

Partition = tuple[str, int, str]  # queue, campus_id, owner
Place = tuple[float, int]  # rank_at as seconds since the epoch, id

# One step of the index for each partition, however long the partitions are.
_PARTS = """
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
)"""
_PARTITIONS = text(f"{_PARTS} SELECT queue, campus_id, owner FROM parts")

_COLUMNS = """
SELECT p.queue, p.campus_id, p.owner, j.id, j.kind, c.slug, extract(epoch FROM j.rank_at),
    j.priority, extract(epoch FROM j.deadline_at), j.lost, j.max_lost,
    extract(epoch FROM j.ready_at), j.size, j.timeout_s, j.memory_mb"""
# All partitions from their beginnings.
_FRESH = text(f"""{_PARTS} {_COLUMNS}
FROM parts AS p JOIN theon.campuses AS c ON c.id = p.campus_id
CROSS JOIN LATERAL (
    SELECT * FROM theon.jobs AS j WHERE j.state = 'queued' AND j.queue = p.queue
    AND j.campus_id = p.campus_id AND j.owner = p.owner ORDER BY j.rank_at, j.id
    LIMIT greatest(:least, :buffer / (SELECT count(*) FROM parts))) AS j
ORDER BY p.n, j.rank_at, j.id""")
# Each of some partitions from its place.
_FIRST = text(f"""{_COLUMNS}
FROM unnest(CAST(:queues AS text[]), CAST(:campuses AS int[]), CAST(:owners AS text[]),
    CAST(:ranks AS float8[]), CAST(:ids AS bigint[])) AS p (queue, campus_id, owner, rank_s, id)
JOIN theon.campuses AS c ON c.id = p.campus_id
CROSS JOIN LATERAL (
    SELECT * FROM theon.jobs AS j WHERE j.state = 'queued' AND j.queue = p.queue
    AND j.campus_id = p.campus_id AND j.owner = p.owner
    AND (j.rank_at, j.id) > (to_timestamp(p.rank_s), p.id)
    ORDER BY j.rank_at, j.id LIMIT :each) AS j""")


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
        if self._after == IDLE_PARTITION and not self._places:
            self._read_fresh(conn, predictor)
            return
        parts = self._next_partitions(conn)
        if not parts:
            return
        places = [self._places.get(part, (float("-inf"), 0)) for part in parts]
        found = conn.execute(
            _FIRST,
            {
                "queues": [p[0] for p in parts],
                "campuses": [p[1] for p in parts],
                "owners": [p[2] for p in parts],
                "ranks": [place[0] for place in places],
                "ids": [place[1] for place in places],
                "each": max(LEAST_EACH, BUFFER // len(parts)),
            },
        )
        self._keep(found, predictor)

    def _read_fresh(self, conn: Connection, predictor: Predictor) -> None:
        """The usual case in one statement: few partitions, nothing read of them yet."""
        found = conn.execute(
            _FRESH,
            {
                "queue": IDLE_PARTITION[0], "campus_id": IDLE_PARTITION[1],
                "owner": IDLE_PARTITION[2], "limit": PARTITIONS_PER_READ,
                "least": LEAST_EACH, "buffer": BUFFER,
            },
        )  # fmt: skip
        self._keep(found, predictor)
        if len(self._places) == PARTITIONS_PER_READ:
            self._after = next(reversed(self._places))

    def _keep(self, found: Iterable[Any], predictor: Predictor) -> None:
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
                _PARTITIONS,
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
