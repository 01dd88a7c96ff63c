"""How long a job will take and how much memory, from the attempts that ended."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from theon.jobs.kinds import JobKind

ATTEMPTS_PER_KIND = 500  # the latest; older ones say less
ENOUGH = 5  # attempts of a bucket before its quantiles are believed
PRIOR_SHARE = 0.1  # of the timeout, when nothing is known
# Work that a slot may find waiting for it. A job that takes longer than this fills a slot; of
# shorter ones several are handed out for it, so that it need not wait for each.
AHEAD_S = 0.5
LEAST_COST = 1 / 256


@dataclass(frozen=True)
class Prediction:
    """Quantiles of duration and peak memory; `attempts` is on how many they rest."""

    p50_s: float
    p95_s: float
    memory_p95_mb: float
    attempts: int


def slot_cost(seconds: float) -> float:
    """The share of a slot that a job of so many predicted seconds takes up: 1, or less if short."""
    return max(LEAST_COST, min(1.0, seconds / AHEAD_S))


def bucket(size: float | None) -> int | None:
    """The bucket of a size: jobs of a bucket differ at most by a factor of four."""
    if size is None:
        return None
    return 0 if size < 1 else 1 + int(math.log(size, 4))


@dataclass(frozen=True)
class Predictor:
    """Predictions per kind and bucket; (kind, "all") has those of all sizes."""

    known: Mapping[tuple[str, int | str | None], Prediction] = field(default_factory=dict)

    def predict(self, kind: JobKind, size: float | None) -> Prediction:
        """From the bucket, else from all sizes of the kind, else from its limits."""
        for key in ((kind.name, bucket(size)), (kind.name, "all")):
            found = self.known.get(key)
            if found is not None and found.attempts >= ENOUGH:
                return found
        return Prediction(kind.timeout_s * PRIOR_SHARE, kind.timeout_s, kind.memory_mb / 4, 0)


def load(conn: Connection) -> Predictor:
    """Read the quantiles of the latest attempts of every kind that the scope sees."""
    found = conn.execute(
        text(
            "WITH RECURSIVE kinds AS ((SELECT kind FROM theon.job_attempts ORDER BY kind LIMIT 1)"
            "  UNION ALL SELECT (SELECT a.kind FROM theon.job_attempts AS a"
            "   WHERE a.kind > k.kind ORDER BY a.kind LIMIT 1) FROM kinds AS k"
            "   WHERE k.kind IS NOT NULL),"
            " latest AS (SELECT a.* FROM kinds AS k, LATERAL (SELECT kind,"
            "  CASE WHEN size < 1 THEN 0 ELSE 1 + floor(ln(size) / ln(4))::int END AS bucket,"
            "  coalesce(run_s, extract(epoch FROM ended_at - started_at)) AS took_s, peak_memory_mb"
            "  FROM theon.job_attempts WHERE kind = k.kind AND outcome = 'completed'"
            "  ORDER BY ended_at DESC LIMIT :limit) AS a)"
            " SELECT kind, bucket, grouping(bucket) AS whole,"
            "  percentile_cont(0.5) WITHIN GROUP (ORDER BY took_s),"
            "  percentile_cont(0.95) WITHIN GROUP (ORDER BY took_s),"
            "  percentile_cont(0.95) WITHIN GROUP (ORDER BY peak_memory_mb), count(*)"
            " FROM latest GROUP BY GROUPING SETS ((kind, bucket), (kind))"
        ),
        {"limit": ATTEMPTS_PER_KIND},
    )
    return Predictor(
        {
            (kind, "all" if whole else group): Prediction(p50, p95, memory or 0.0, count)
            for kind, group, whole, p50, p95, memory, count in found
        }
    )
