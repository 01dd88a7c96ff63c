"""Predictions come from history, and from the kind's limits where there is too little of it."""

from dataclasses import dataclass

from sqlalchemy import text

from theon.jobs.kinds import JobContext, job
from theon.jobs.predict import bucket, load
from theon.store.engine import Store
from theon.store.scope import Scope


@dataclass(frozen=True)
class Nothing:
    pass


@job("test.nothing", timeout_s=100.0, memory_mb=400)
def nothing(ctx: JobContext, args: Nothing) -> None:
    """Do nothing."""


def test_a_kind_without_history_is_predicted_from_its_limits(store: Store) -> None:
    with store.transaction(Scope.district()) as conn:
        found = load(conn).predict(nothing, None)
    assert (found.p95_s, found.memory_p95_mb, found.attempts) == (100.0, 100.0, 0)


def test_small_and_large_jobs_of_a_kind_are_predicted_apart(store: Store) -> None:
    with store.transaction(Scope.district()) as conn:
        conn.execute(
            text(
                "WITH made AS (INSERT INTO theon.jobs (campus_id, kind, queue, category,"
                "  arguments, state, priority, rank_at, ready_at, max_attempts, max_lost,"
                "  timeout_s, memory_mb, size) SELECT c.id, 'test.nothing', 'q', 'system', '{}',"
                "  'completed', 0, now(), now(), 1, 1, 1, 1, s FROM theon.campuses AS c,"
                "  unnest(ARRAY[2.0, 2000.0]) AS s, generate_series(1, 10)"
                "  RETURNING campus_id, id, size)"
                " INSERT INTO theon.job_attempts (campus_id, job_id, token, attempt, kind, size,"
                "  started_at, ended_at, waited_s, outcome, peak_memory_mb)"
                " SELECT campus_id, id, 1, 1, 'test.nothing', size, now(),"
                "  now() + make_interval(secs => size), 0, 'completed', size FROM made"
            )
        )
        predictor = load(conn)
    small, large = predictor.predict(nothing, 2.0), predictor.predict(nothing, 2000.0)
    assert (small.p50_s, small.memory_p95_mb) == (2.0, 2.0)
    assert (large.p50_s, large.attempts) == (2000.0, 10)
    assert predictor.predict(nothing, None).attempts == 20


def test_buckets_of_the_database_and_of_the_code_are_the_same(store: Store) -> None:
    sizes = [0.0, 0.5, 1.0, 3.9, 4.0, 17.0, 100.0, 4096.5]
    with store.transaction(Scope.district()) as conn:
        found = conn.execute(
            text(
                "SELECT CASE WHEN s < 1 THEN 0 ELSE 1 + floor(ln(s) / ln(4))::int END"
                " FROM unnest(CAST(:sizes AS float8[])) AS s"
            ),
            {"sizes": sizes},
        ).scalars()
        assert list(found) == [bucket(size) for size in sizes]
