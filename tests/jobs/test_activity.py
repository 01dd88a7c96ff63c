"""What attempts did when: every one is counted once, and shares add up to the target."""

from datetime import timedelta
from itertools import pairwise

import pytest
from tests.jobs.test_figures import DISTRICT, KINDS, add_worker, begin, do, put, ran

from theon.errors import InputError
from theon.jobs import activity, admin, figures
from theon.jobs.activity import CampusFigures
from theon.jobs.enqueue import NewJob
from theon.jobs.figures import Window
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope


def test_every_attempt_is_in_one_slice_of_the_window(store: Store) -> None:
    ran(store, "test.quick", {"completed": 3, "failed": 2, "lost": 1, "released": 1}, seconds=1)
    do(
        store,
        "UPDATE theon.job_attempts SET ended_at = clock_timestamp() - interval '45 minutes'"
        " WHERE outcome = 'completed'",
    )
    with store.transaction(DISTRICT) as conn:
        window = figures.look_back(conn)
        found = activity.slices(conn, window, 6)
        assert sum(each.ended for each in activity.slices(conn, window, 1)) == 6
    assert [each.completed for each in found] == [0, 3, 0, 0, 0, 0]
    assert (found[5].failed, found[5].lost, found[5].ended) == (2, 1, 3)
    assert (found[0].start, found[5].end) == (window.since, window.now)
    assert all(a.end == b.start for a, b in pairwise(found))


def test_an_attempt_at_the_edge_of_the_window_is_in_its_last_slice(store: Store) -> None:
    ran(store, "test.quick", {"completed": 1}, seconds=1)
    with store.transaction(DISTRICT) as conn:
        at = conn.exec_driver_sql("SELECT ended_at FROM theon.job_attempts").scalar_one()
        found = activity.slices(conn, Window(at - timedelta(hours=1), at), 4)
        assert [each.completed for each in found] == [0, 0, 0, 1]
        later = activity.slices(conn, Window(at, at + timedelta(hours=1)), 4)
        assert sum(each.ended for each in later) == 0


def test_shares_of_workers_together_are_the_utilisation(store: Store) -> None:
    """Attempts that ended, those that still run, and workers that are gone."""
    add_worker(store, "w", start_s=1_000, slots=2)
    add_worker(store, "idle", start_s=500, slots=1)
    add_worker(store, "gone", start_s=3_000, beat_s=1_000, slots=3)
    ran(store, "test.quick", {"completed": 4}, seconds=100)
    begin(store, *put(store, NewJob("test.quick")))
    do(
        store,
        "UPDATE theon.jobs SET started_at = clock_timestamp() - interval '60 seconds'"
        " WHERE state = 'running'",
    )
    with store.transaction(DISTRICT) as conn:
        window = figures.look_back(conn)
        workers = figures.list_workers(conn)
        shares = activity.worker_shares(conn, window, workers)
        kinds = figures.kind_figures(conn, window)
        found = {target.name: target.value for target in figures.targets(conn, kinds, window)}
    assert shares["w"] == pytest.approx(460 / 2_000, rel=0.01)
    assert (shares["idle"], shares["gone"]) == (0.0, 0.0)
    offered_s = 2 * 1_000 + 500 + 3 * 2_000
    assert found["utilisation"] == pytest.approx(shares["w"] * 2_000 / offered_s, rel=0.01)


def test_a_worker_that_was_not_there_in_the_window_has_no_share(store: Store) -> None:
    add_worker(store, "gone", start_s=9_000, beat_s=5_000)
    with store.transaction(DISTRICT) as conn:
        window = figures.look_back(conn)
        assert activity.worker_shares(conn, window, figures.list_workers(conn)) == {}


def test_a_worker_runs_what_the_ledger_says(store: Store) -> None:
    ids = put(store, *[NewJob("test.quick")] * 3)
    begin(store, *ids[:2])
    with store.transaction(DISTRICT) as conn:
        assert activity.running_by_worker(conn) == {"w": tuple(ids[:2])}


def test_campuses_stand_side_by_side_with_their_own_jobs(store: Store) -> None:
    """One without jobs too; a campus sees itself alone."""
    add_campus(store, "north", "UTC", "North")
    add_campus(store, "south", "UTC", "South")
    ran(store, "test.quick", {"completed": 2, "failed": 1, "lost": 1}, seconds=8, campus="north")
    put(store, NewJob("test.quick", campus="north"), NewJob("test.quick"))
    with store.transaction(DISTRICT) as conn:
        window = figures.look_back(conn)
        district, north, south = activity.campus_figures(conn, window)
    assert (district.slug, district.waiting, district.completed) == ("district", 1, 0)
    assert north == CampusFigures("north", "North", 1, 0, 1, 2, 2, 8.0, 32.0)
    assert (south.waiting, south.run_mean_s, south.busy_s) == (0, None, 0.0)
    with store.transaction(Scope("north")) as conn:
        assert [each.slug for each in activity.campus_figures(conn, window)] == ["north"]


def test_processor_time_is_that_of_attempts_that_told_it(store: Store) -> None:
    ran(store, "test.quick", {"completed": 3}, seconds=1)
    do(store, "UPDATE theon.job_attempts SET cpu_s = job_id WHERE job_id < 3")
    with store.transaction(DISTRICT) as conn:
        assert activity.cpu_by_kind(conn, figures.look_back(conn)) == {"test.quick": 3.0}


def test_a_pause_further_up_is_told_below_and_not_by_whom(store: Store) -> None:
    """Neither one beside nor one below, nor one that is over; the scope stays what it was."""
    add_campus(store, "north", "UTC")
    add_campus(store, "south", "UTC")
    add_campus(store, "hill", "UTC", parent="north")
    with store.transaction(DISTRICT) as conn:
        admin.pause(conn, KINDS, "queue", "test", "ada", reason="disk full")
        admin.pause(conn, KINDS, "campus", "north", "ada")
        admin.pause(conn, KINDS, "kind", "test.quick", "ada", campus="south")
        admin.pause(conn, KINDS, "kind", "test.quick", "ada", campus="hill")
        assert figures.pauses_above(conn) == []
    with store.transaction(Scope("hill")) as conn:
        queue, north = figures.pauses_above(conn)
        assert [pause.campus for pause in figures.list_pauses(conn)] == ["hill"]
    assert (queue.subject, queue.value, queue.campus) == ("queue", "test", "district")
    assert (queue.reason, queue.paused_by) == ("disk full", figures.ABOVE)
    assert (north.subject, north.value) == ("campus", "north")
    do(store, "UPDATE theon.job_pauses SET until = clock_timestamp()")
    with store.transaction(Scope("hill")) as conn:
        assert figures.pauses_above(conn) == []


def test_only_a_worker_at_work_is_asked_to_drain_and_only_by_the_district(store: Store) -> None:
    """Of one that is silent, has ended or never was, a person hears so."""
    add_campus(store, "north", "UTC")
    add_worker(store, "w", start_s=100)
    add_worker(store, "silent", start_s=100, beat_s=60)
    add_worker(store, "ended", start_s=100)
    do(store, "UPDATE theon.job_workers SET state = 'stopped' WHERE id = 'ended'")
    for scope, name in (
        ("district", "silent"),
        ("district", "ended"),
        ("district", "x\0"),
        ("north", "w"),
    ):
        with pytest.raises(InputError, match="is at work"), store.transaction(Scope(scope)) as conn:
            admin.drain_worker(conn, name, "ada")
    with store.transaction(DISTRICT) as conn:
        admin.drain_worker(conn, "w", "ada")
        asked = {worker.id: worker.drain_asked for worker in figures.list_workers(conn)}
    assert asked == {"w": True, "silent": False, "ended": False}
