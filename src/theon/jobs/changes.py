"""Which jobs changed since one last looked, at a cost that does not grow with the ledger.

Changes of state are in the history. Its numbers are given out before their transactions commit,
so a lower number may appear after a higher one: numbers that are missing are looked for until
every transaction that may hold one has ended. What running attempts tell is read from the jobs
that run, which are never more than there are slots.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, text

ROWS_PER_READ = 5_000
LOOKED_BACK = 10_000  # numbers that may still be missing when one begins to look
GAPS_AT_MOST = 100_000
GAPS_PER_READ = 5_000
MISSED_AT_MOST = 2_000  # changes that somebody who comes back is told one by one
RUNNING_AT_MOST = 10_000

_READ = """
SELECT s.xmin, h.id, h.job_id, h.before, h.after
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin) AS s
LEFT JOIN LATERAL (
    (SELECT id, job_id, before, after FROM theon.job_history WHERE id > :high
        ORDER BY id LIMIT :rows)
    UNION ALL
    SELECT id, job_id, before, after FROM theon.job_history WHERE id = ANY (:gaps)
) AS h ON true"""

_RUNNING = """
SELECT id, token, done, total, operation, cancel_asked FROM theon.jobs
WHERE state = 'running' ORDER BY id LIMIT :jobs"""


@dataclass(frozen=True)
class Changed:
    """What changed.

    Attributes:
        states: ids of jobs, each with the states that it left and took.
        position: every change up to this number of the history is told.
        more: whether there is more to read at once.
    """

    states: Mapping[int, frozenset[str]]
    position: int
    more: bool = False


class Changes:
    """Reads what changed, again and again; use it in transactions of the district's scope."""

    def __init__(self, conn: Connection) -> None:
        """Begin with what changes from now on."""
        ids = list(
            conn.execute(
                text("SELECT id FROM theon.job_history ORDER BY id DESC LIMIT :rows"),
                {"rows": LOOKED_BACK},
            ).scalars()
        )
        self._high = ids[0] if ids else 0
        missing = set(range(max(1, self._high - LOOKED_BACK), self._high)).difference(ids)
        self._gaps = _bounded(conn, missing)
        self._running = _running(conn)

    @property
    def position(self) -> int:
        """Every change up to this number of the history is told."""
        return min(self._gaps) - 1 if self._gaps else self._high

    def read(self, conn: Connection) -> Changed:
        """What changed since the last read; of very much, a part."""
        # Of very many, such as those of a bulk load that has not committed, some in turn.
        probed = list(self._gaps)[:GAPS_PER_READ]
        given = {"high": self._high, "rows": ROWS_PER_READ, "gaps": probed}
        rows = conn.execute(text(_READ), given).all()
        found = [row for row in rows if row.id is not None]
        ids = {row.id for row in found}
        high = max({self._high, *ids})
        # In the snapshot of this very read all transactions below `xmin` have ended.
        gaps = {gap: self._gaps[gap] for gap in list(self._gaps)[len(probed) :]}
        gaps |= {
            gap: self._gaps[gap]
            for gap in probed
            if gap not in ids and self._gaps[gap] > rows[0].xmin
        }
        first = max(self._high + 1, high - GAPS_AT_MOST)
        gaps |= _bounded(conn, set(range(first, high)).difference(ids))
        running = _running(conn)
        states: dict[int, set[str]] = {}
        for row in found:
            states.setdefault(row.job_id, set()).update({row.before, row.after} - {None})
        for job_id, told in running.items():
            if self._running.get(job_id) != told:
                states.setdefault(job_id, set()).add("running")
        came_late = not ids.isdisjoint(probed) and len(probed) == GAPS_PER_READ
        more = came_late or sum(row_id > self._high for row_id in ids) == ROWS_PER_READ
        # Only now: a read that failed is made again.
        self._high, self._gaps, self._running = high, gaps, running
        return Changed({i: frozenset(s) for i, s in states.items()}, self.position, more)


def latest(conn: Connection) -> int:
    """The highest number of the history; in the district's scope that of all campuses."""
    found = conn.execute(text("SELECT id FROM theon.job_history ORDER BY id DESC LIMIT 1"))
    return int(found.scalar() or 0)


def missed(conn: Connection, position: int, until: int) -> Changed | None:
    """What the scope saw change after a position; None if that is too much, or no position.

    Args:
        conn: in the scope of who asks.
        position: up to which they know.
        until: the `latest` of all campuses: it bounds what is read, whoever asks.
    """
    if not until - 25 * MISSED_AT_MOST <= position <= until:
        return None
    rows = conn.execute(
        text(
            "SELECT job_id, before, after FROM theon.job_history WHERE id > :position"
            " ORDER BY id LIMIT :rows"
        ),
        {"position": position, "rows": MISSED_AT_MOST + 1},
    ).all()
    if len(rows) > MISSED_AT_MOST:
        return None
    states: dict[int, set[str]] = {}
    for job_id, before, after in rows:
        states.setdefault(job_id, set()).update({before, after} - {None})
    return Changed({i: frozenset(s) for i, s in states.items()}, position)


def _bounded(conn: Connection, missing: Iterable[int]) -> dict[int, int]:
    """Missing numbers, each with a transaction that began after whoever may hold it."""
    numbers = sorted(missing)
    if not numbers:
        return {}
    # A number is taken by a transaction that has an id already, so a new id is above it.
    bound = conn.execute(text("SELECT pg_current_xact_id()::text::bigint")).scalar_one()
    return dict.fromkeys(numbers, int(bound))


def _running(conn: Connection) -> dict[int, tuple[object, ...]]:
    """What each running attempt tells."""
    rows = conn.execute(text(_RUNNING), {"jobs": RUNNING_AT_MOST})
    return {int(job_id): tuple(told) for job_id, *told in rows}
