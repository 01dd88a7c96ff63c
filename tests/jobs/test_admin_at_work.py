"""What administrators do to jobs while dispatchers and workers are at work on them."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from tests.jobs import kinds_for_tests
from tests.jobs.admin_bench import (
    DISTRICT,
    KINDS,
    begin,
    do,
    end,
    put,
    row,
)
from tests.jobs.conftest import Shop, alive, until

from theon.jobs import admin, ledger, moves
from theon.jobs.admin import Action
from theon.jobs.enqueue import NewJob
from theon.store.engine import Store


def test_a_job_that_begins_while_it_is_cancelled_is_cancelled_or_asked_to_end(store: Store) -> None:
    """Whoever is first: none is left running that nobody told."""
    ids = put(store, *[NewJob("test.count")] * 60)
    messages = do(store, ledger.dispatch, ids)
    ready = threading.Barrier(2)

    def start() -> None:
        ready.wait(30)
        for message in messages:
            do(store, ledger.start, [message], "w")

    def cancel() -> None:
        ready.wait(30)
        for job_id in ids:
            do(store, admin.cancel, [job_id], "ada")

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(start), pool.submit(cancel)]:
            future.result(60)
    found = [row(store, job_id) for job_id in ids]
    assert all(r.state == "cancelled" or (r.state == "running" and r.cancel_asked) for r in found)


def test_a_need_that_ends_while_its_dependent_is_retried_is_not_waited_for_in_vain(
    store: Store,
) -> None:
    """Neither waits for the other for ever, and the count is right whoever is first."""
    for _ in range(25):
        need, job_id = put(
            store, NewJob("test.count", label="n"), NewJob("test.count", after=["n"])
        )
        do(store, admin.cancel, [job_id], "ada")
        messages = begin(store, need)
        ready = threading.Barrier(2)

        def finish(messages: Any = messages, ready: Any = ready) -> None:
            ready.wait(30)
            end(store, messages, "completed")

        def retry(job_id: int = job_id, ready: Any = ready) -> None:
            ready.wait(30)
            do(store, admin.retry, KINDS, [job_id], "ada")

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(finish), pool.submit(retry)]:
                future.result(60)
        assert (row(store, job_id).state, row(store, job_id).waits_for) == ("scheduled", 0)


def test_a_worker_ends_what_was_cancelled_and_it_can_run_again(shop: Shop) -> None:
    """With a real worker and a real process: it says who cancelled it; the retry is another run."""
    shop.open()
    job_id = shop.run("try.wait", seconds=120)
    (noted,) = shop.notes(1)
    with shop.store.transaction(DISTRICT) as conn:
        assert admin.cancel(conn, [job_id], "ada", "too long").asked == (job_id,)
    found = shop.ended(job_id)
    assert (found.state, found.reason) == ("cancelled", "cancelled by ada: too long")
    until(lambda: not alive(noted["pid"]), "its process ends")
    with shop.store.transaction(DISTRICT) as conn:
        arguments = {"notes": str(shop.notes_path)}
        admin.retry(conn, kinds_for_tests.kinds(), [job_id], "ada", arguments)
    (found,) = shop.settle(job_id)
    assert (found.state, found.result, found.attempts) == ("completed", "waited", 1)
    assert shop.outcomes(job_id) == ["cancelled", "completed"]


numbers = st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["cancel", "retry", "discard", "prioritise", "completed", "failed", "lost", "released"]
        ),
        numbers,
    ),
    max_size=14,
)
# Which jobs each of seven needs: a chain, a fork, a join.
NEEDS: list[list[int]] = [[], [0], [1], [0], [2, 3], [], [4, 5]]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_jobs_that_wait_do_so_for_what_is_still_open(
    store: Store, steps: list[tuple[str, list[int]]]
) -> None:
    """After any moves of people and workers: the count is that of open needs, none of them ended
    badly, and the counters are those of the jobs."""
    with store.owner_transaction() as conn:
        conn.exec_driver_sql("TRUNCATE theon.jobs, theon.job_counts CASCADE")
    ids = put(
        store,
        *(
            NewJob("test.count", label=str(n), after=[str(m) for m in needs])
            for n, needs in enumerate(NEEDS)
        ),
    )
    for name, chosen in steps:
        jobs = [ids[n] for n in chosen]
        if name in moves.STATES:
            with store.transaction(DISTRICT) as conn:
                admin._act(conn, KINDS, Action(name, priority="high"), jobs, "ada")
        else:
            end(store, begin(store, *jobs), name)
        with store.transaction(DISTRICT) as conn:
            wrong = conn.execute(
                text(
                    "SELECT j.id, j.waits_for, count(n.id) FILTER (WHERE n.state <> 'completed'),"
                    "  count(n.id) FILTER (WHERE n.state IN ('failed', 'cancelled'))"
                    " FROM theon.jobs AS j"
                    " LEFT JOIN theon.job_dependencies AS d ON d.job_id = j.id"
                    " LEFT JOIN theon.jobs AS n ON n.id = d.needs_id"
                    " WHERE j.state NOT IN ('failed', 'cancelled') GROUP BY j.id HAVING"
                    "  j.waits_for <> count(n.id) FILTER (WHERE n.state <> 'completed')"
                    "  OR count(n.id) FILTER (WHERE n.state IN ('failed', 'cancelled')) > 0"
                )
            ).all()
            counted = conn.execute(
                text(
                    "SELECT state, sum(delta)::int FROM theon.job_counts GROUP BY 1"
                    " HAVING sum(delta) <> 0 EXCEPT SELECT state, count(*) FROM theon.jobs"
                    " GROUP BY 1"
                )
            ).all()
        assert (wrong, counted) == ([], [])
