"""What people do to jobs: at once, on record, in their scope, and never so that the ledger lies."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from tests.jobs.admin_bench import (
    DISTRICT,
    KINDS,
    audit,
    begin,
    detail,
    do,
    end,
    other_count,
    put,
    row,
    states,
)

from theon.errors import InputError
from theon.jobs import admin, ledger, situation
from theon.jobs.admin import Action
from theon.jobs.enqueue import AGEING_S, NewJob
from theon.jobs.errors import DependencyError, UnknownKindError
from theon.jobs.kinds import Kinds
from theon.jobs.query import NoSuchJobError
from theon.jobs.search import JobFilter
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope

# -- cancel --------------------------------------------------------------------------------


def test_what_does_not_run_is_cancelled_at_once(store: Store) -> None:
    """Scheduled, queued or dispatched; a message that is under way begins nothing any more."""
    later, queued, sent = put(
        store, NewJob("test.count", delay_s=900), NewJob("test.count"), NewJob("test.count")
    )
    (message,) = do(store, ledger.dispatch, [sent])
    done = do(store, admin.cancel, [later, queued, sent], "ada", "a mistake")
    assert (done.changed, done.asked) == ((later, queued, sent), ())
    for job_id in (later, queued, sent):
        found = row(store, job_id)
        assert (found.state, found.reason) == ("cancelled", "cancelled by ada: a mistake")
        assert found.ended_at is not None
        assert found.lease_until is None
    assert do(store, ledger.start, [message], "w") == []
    assert audit(store) == [("ada", "cancel", "3 jobs")]
    assert detail(store)[0]["ids"] == [later, queued, sent]


def test_a_running_job_is_asked_to_end(store: Store) -> None:
    """Its worker hears it with the next renewal, and ends it as it was told."""
    (job_id,) = put(store)
    (message,) = begin(store, job_id)
    done = do(store, admin.cancel, [job_id], "ada", "too long")
    assert (done.changed, done.asked) == ((job_id,), (job_id,))
    assert row(store, job_id).state == "running"
    (held,) = do(store, ledger.renew, [ledger.Progress(job_id, message.token)])
    assert held.cancel_asked
    assert row(store, job_id).reason == "cancelled by ada: too long"
    end(store, [message], "cancelled")
    assert row(store, job_id).state == "cancelled"


def test_what_has_ended_stays_as_it_ended(store: Store) -> None:
    """It is skipped, and why is told; where nothing was done nothing is on record."""
    (job_id,) = put(store)
    end(store, begin(store, job_id), "completed")
    assert do(store, admin.cancel, [job_id], "ada").skipped == {job_id: "it is completed"}
    assert do(store, admin.retry, KINDS, [job_id], "ada").skipped == {job_id: "it is completed"}
    assert do(store, admin.discard, [job_id], "ada").skipped == {job_id: "it is completed"}
    assert do(store, admin.prioritise, [job_id], "high", "ada").changed == ()
    assert audit(store) == []
    with pytest.raises(NoSuchJobError, match="no job 999"):
        do(store, admin.cancel, [job_id, 999], "ada")


def test_what_waits_for_a_cancelled_job_fails_also_in_another_campus(store: Store) -> None:
    """Whoever cancels it, and however far the waiting reaches."""
    add_campus(store, "north", "UTC")
    first, there, then = put(
        store,
        NewJob("test.count", campus="north", label="a"),
        NewJob("test.count", after=["a"], label="b"),
        NewJob("test.count", campus="north", after=["b"]),
    )
    do(store, admin.cancel, [first], "nora", scope="north")
    assert states(store, [first, there, then]) == ["cancelled", "failed", "failed"]
    assert row(store, there).error == f"job {first}, which it needs, did not complete"


@pytest.mark.parametrize("words", ["a\0b", "half \ud800", "%s :x {y}", "é" * 3_000])
def test_whatever_somebody_types_as_a_reason_is_kept(store: Store, words: str) -> None:
    """Letters that the database cannot keep are replaced; the action does not fail for them."""
    queued, running = put(store, NewJob("test.count"), NewJob("test.count"))
    begin(store, running)
    do(store, admin.cancel, [queued, running], words, words)
    with store.transaction(DISTRICT) as conn:
        admin.pause(conn, KINDS, "queue", "test", words, reason=words)
        with pytest.raises(InputError):
            admin.pause(conn, KINDS, "queue", words, "ada")
        with pytest.raises(InputError):
            admin.pause(conn, KINDS, "campus", words, "ada")
    kept = words.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert row(store, queued).reason == f"cancelled by {kept}: {kept}"
    assert [found["reason"] for found in detail(store)] == [kept, kept]


# -- retry and discard ---------------------------------------------------------------------


def test_a_retried_job_starts_anew_and_its_history_stays(store: Store) -> None:
    """Failures and losses are counted from nothing; the checkpoint is kept; limits are today's."""
    (job_id,) = put(store)
    for outcome in ("lost", "failed"):
        (message,) = begin(store, job_id)
        do(store, ledger.checkpoint, message, {"at": 5})
        end(store, [message], outcome)
    with store.transaction(DISTRICT) as conn:
        conn.execute(text("UPDATE theon.jobs SET timeout_s = 1, cancel_asked = true"))
    before = row(store, job_id)
    assert (before.state, before.attempts, before.lost) == ("failed", 1, 1)
    assert do(store, admin.retry, KINDS, [job_id], "ada").changed == (job_id,)
    found = row(store, job_id)
    assert (found.state, found.attempts, found.lost, found.cancel_asked) == (
        "scheduled", 0, 0, False,
    )  # fmt: skip
    assert (found.checkpoint, found.error, found.ended_at) == ({"at": 5}, None, None)
    assert (found.timeout_s, found.token, found.reason) == (77, 2, "retried by ada")
    with store.transaction(DISTRICT) as conn:
        history = text("SELECT count(*) FROM theon.job_history WHERE job_id = :id")
        assert conn.execute(history, {"id": job_id}).scalar_one() >= 8
        assert conn.execute(text("SELECT count(*) FROM theon.job_attempts")).scalar_one() == 2
    (message,) = begin(store, job_id)
    end(store, [message], "completed")
    assert row(store, job_id).state == "completed"
    assert audit(store) == [("ada", "retry", f"job {job_id}")]


def test_other_arguments_are_checked_and_take_the_place_of_the_old(store: Store) -> None:
    """With their size, and without the checkpoint, which belonged to the old ones."""
    (job_id,) = put(store)
    (message,) = begin(store, job_id)
    do(store, ledger.checkpoint, message, {"at": 5})
    end(store, [message])
    with pytest.raises(InputError, match="upto"):
        do(store, admin.retry, KINDS, [job_id], "ada", {"upto": "far"})
    assert row(store, job_id).state == "failed"
    do(store, admin.retry, KINDS, [job_id], "ada", {"upto": 9})
    found = row(store, job_id)
    assert (found.arguments, found.size, found.checkpoint) == ({"upto": 9}, 9, None)
    assert detail(store)[0]["arguments"] == {"upto": 9}


def test_a_job_whose_code_is_gone_can_be_retried_as_it_is(store: Store) -> None:
    """With its own arguments; others could not be checked."""
    (job_id,) = put(store)
    end(store, begin(store, job_id))
    gone = Kinds([other_count])
    with pytest.raises(UnknownKindError):
        do(store, admin.retry, gone, [job_id], "ada", {"upto": 2})
    assert do(store, admin.retry, gone, [job_id], "ada").changed == (job_id,)


def test_a_retried_job_waits_again_for_what_it_needs(store: Store) -> None:
    """What completed counts no more; what failed must be retried with it, or first."""
    good, bad, third = put(
        store, NewJob("test.count", label="g"), NewJob("test.count", label="b"),
        NewJob("test.count", after=["g", "b"]),
    )  # fmt: skip
    end(store, begin(store, good), "completed")
    end(store, begin(store, bad))
    assert row(store, third).state == "failed"
    with pytest.raises(DependencyError, match=f"needs job {bad}, which is failed"):
        do(store, admin.retry, KINDS, [third], "ada")
    assert do(store, admin.retry, KINDS, [third, bad], "ada").changed == (bad, third)
    assert row(store, third).waits_for == 1
    end(store, begin(store, bad), "completed")
    assert row(store, third).waits_for == 0
    end(store, begin(store, third), "completed")
    assert states(store, [good, bad, third]) == ["completed"] * 3


def test_a_need_in_another_campus_counts_too(store: Store) -> None:
    """The scope of who retries does not see it; the job waits for it all the same."""
    add_campus(store, "north", "UTC")
    (above,) = put(store)
    (job_id,) = put(store, NewJob("test.count", campus="north", after=[above]))
    do(store, admin.cancel, [job_id], "nora", scope="north")
    do(store, admin.retry, KINDS, [job_id], "nora", scope="north")
    assert (row(store, job_id).state, row(store, job_id).waits_for) == ("scheduled", 1)
    do(store, admin.cancel, [above], "ada")
    assert row(store, job_id).state == "failed"
    with pytest.raises(DependencyError, match=f"needs job {above}, which is cancelled"):
        do(store, admin.retry, KINDS, [job_id], "nora", scope="north")


def test_a_discarded_dead_letter_is_cancelled_and_can_come_back(store: Store) -> None:
    (failed, queued) = put(store, NewJob("test.count"), NewJob("test.count"))
    end(store, begin(store, failed))
    done = do(store, admin.discard, [failed, queued], "ada", "known")
    assert (done.changed, done.skipped) == ((failed,), {queued: "it is queued"})
    assert row(store, failed).reason == "discarded by ada: known"
    assert do(store, admin.retry, KINDS, [failed], "ada").changed == (failed,)


def test_another_priority_counts_at_once(store: Store) -> None:
    """The job moves in the queue, as if it had been enqueued with it."""
    ids = put(store, *[NewJob("test.count")] * 3)
    assert do(store, admin.prioritise, [ids[2]], "urgent", "ada").changed == (ids[2],)
    with store.transaction(DISTRICT) as conn:
        order = conn.execute(text("SELECT id FROM theon.jobs ORDER BY rank_at, id")).scalars()
        assert order.all() == [ids[2], ids[0], ids[1]]
    found = row(store, ids[2])
    assert found.rank_at == found.ready_at - timedelta(seconds=2 * AGEING_S)
    do(store, admin.prioritise, [ids[2]], "background", "ada")
    assert row(store, ids[2]).rank_at == found.ready_at + timedelta(seconds=2 * AGEING_S)
    with pytest.raises(InputError, match="no priority 'first'"):
        do(store, admin.prioritise, ids, "first", "ada")


# -- by filter -----------------------------------------------------------------------------


def test_a_filter_is_previewed_and_then_applied_to_the_same_jobs(store: Store) -> None:
    """Only to those in a state that the action is for; one line on record, with the filter."""
    mine = put(store, *[NewJob("test.count", owner="115")] * 3)
    others = put(store, NewJob("test.count"), NewJob("other.count", owner="115"))
    end(store, begin(store, mine[0]), "completed")
    chosen = JobFilter(kinds=("test",), owners=("115",))
    found = do(store, admin.preview, chosen, "cancel")
    assert (found.count, found.exact, found.sample) == (2, True, (mine[2], mine[1]))
    done = do(store, admin.apply, KINDS, Action("cancel", "too many"), chosen, "ada")
    assert done.changed == (mine[1], mine[2])
    assert states(store, mine + others) == [
        "completed", "cancelled", "cancelled", "queued", "queued",
    ]  # fmt: skip
    assert audit(store) == [("ada", "cancel", "2 jobs")]
    (found,) = detail(store)
    assert (found["filter"], found["count"]) == ({"kinds": ["test"], "owners": ["115"]}, 2)
    assert do(store, admin.preview, chosen, "cancel").count == 0


def test_many_jobs_are_changed_in_batches_each_on_record(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs before those that wait for them, whichever batch they are in."""
    monkeypatch.setattr(admin, "JOBS_PER_BATCH", 3)
    labels = [NewJob("test.count", label=str(n), after=[str(n - 1)] if n else []) for n in range(8)]
    ids = put(store, *labels)
    end(store, begin(store, ids[0]))
    assert states(store, ids) == ["failed"] * 8
    assert do(store, admin.preview, JobFilter(), "retry").count == 8
    action = Action("retry", arguments={"upto": 4})
    done = admin.apply_in_batches(store, DISTRICT, KINDS, action, JobFilter(), "ada")
    assert done.changed == tuple(ids)
    assert states(store, ids) == ["scheduled"] * 8
    assert audit(store) == [("ada", "retry", "3 jobs")] * 2 + [("ada", "retry", "2 jobs")]
    done = admin.apply_in_batches(store, DISTRICT, KINDS, Action("cancel"), JobFilter(), "ada")
    # Those that wait for a cancelled job fail with it, and are no longer there to be cancelled.
    assert sorted([*done.changed, *done.skipped]) == ids
    assert set(states(store, ids)) == {"cancelled", "failed"}


def test_what_cannot_be_retried_does_not_keep_the_others(store: Store) -> None:
    """By filter it is told and left; named one by one it is an error."""
    bad, waits = put(
        store, NewJob("other.count", label="b"), NewJob("test.count", after=["b"])
    )  # fmt: skip
    (alone,) = put(store)
    end(store, begin(store, bad))
    end(store, begin(store, alone))
    chosen = JobFilter(kinds=("test.count",), states=("failed",))
    done = do(store, admin.apply, KINDS, Action("retry"), chosen, "ada")
    assert done.changed == (alone,)
    assert done.refused == {waits: f"it needs job {bad}, which is failed"}


def test_an_action_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no action 'stop'"):
        Action("stop")
    with pytest.raises(InputError, match="no priority ''"):
        Action("prioritise")


# -- pauses --------------------------------------------------------------------------------


def paused(store: Store) -> dict[str, frozenset[tuple[str, str]]]:
    return dict(do(store, situation.read, KINDS).limits.paused)


def test_a_pause_is_what_the_dispatcher_reads(store: Store) -> None:
    """Of a queue or kind in a campus and below, or of a campus; until it is resumed or is over."""
    add_campus(store, "north", "UTC")
    add_campus(store, "school", "UTC", parent="north")
    with store.transaction(Scope("north")) as conn:
        admin.pause(conn, KINDS, "queue", "test", "nora", reason="exams")
    with store.transaction(DISTRICT) as conn:
        admin.pause(conn, KINDS, "campus", "school", "ada")
        admin.pause(conn, KINDS, "kind", "other.count", "ada")
    kind, queue = ("kind", "other.count"), ("queue", "test")
    assert paused(store) == {
        "district": {kind}, "north": {kind, queue}, "school": {kind, queue, ("campus", "school")},
    }  # fmt: skip
    with store.transaction(DISTRICT) as conn:
        admin.resume(conn, "kind", "other.count", "ada")
        admin.resume(conn, "queue", "test", "ada", campus="north")
    assert paused(store) == {"school": {("campus", "school")}}
    until = datetime.now(UTC) + timedelta(days=1)
    with store.transaction(DISTRICT) as conn:
        admin.pause(conn, KINDS, "campus", "school", "bob", until=until)
        conn.execute(text("UPDATE theon.job_pauses SET until = until - interval '2 days'"))
    assert paused(store) == {}
    assert [line[1:] for line in audit(store)][:2] == [
        ("pause", "queue test"), ("pause", "campus school"),
    ]  # fmt: skip


def test_only_what_is_there_can_be_paused_and_only_what_is_paused_resumed(store: Store) -> None:
    put(store, NewJob("test.count"))
    gone = Kinds([other_count])
    past = datetime.now(UTC) - timedelta(seconds=1)
    with store.transaction(DISTRICT) as conn:
        admin.pause(conn, gone, "kind", "test.count", "ada")  # its code is gone, its jobs are not
        for subject, value, what in (
            ("queue", "tset", "no queue 'tset'"),
            ("kind", "gone.kind", "no kind 'gone.kind'"),
            ("campus", "moon", "no campus 'moon'"),
            ("worker", "w", "'worker' cannot be paused"),
        ):
            with pytest.raises(InputError, match=what):
                admin.pause(conn, KINDS, subject, value, "ada")
        with pytest.raises(InputError, match="still to come"):
            admin.pause(conn, KINDS, "queue", "test", "ada", until=past)
        with pytest.raises(InputError, match="is not paused there"):
            admin.resume(conn, "queue", "test", "ada")


# -- scope ---------------------------------------------------------------------------------


def test_a_campus_changes_no_job_of_another(store: Store) -> None:
    """By id, by filter, or by a pause: its sibling's and the district's are not there for it."""
    add_campus(store, "north", "UTC")
    add_campus(store, "south", "UTC")
    south, whole = put(store, NewJob("test.count", campus="south"), NewJob("test.count"))
    failed, mine = put(store, *[NewJob("test.count", campus=c) for c in ("south", "north")])
    end(store, begin(store, failed))
    for job_id in (south, whole, failed):
        with store.transaction(Scope("north")) as conn:
            for act in (
                lambda: admin.cancel(conn, [job_id], "nora"),  # noqa: B023
                lambda: admin.retry(conn, KINDS, [job_id], "nora"),  # noqa: B023
                lambda: admin.discard(conn, [job_id], "nora"),  # noqa: B023
                lambda: admin.prioritise(conn, [job_id], "high", "nora"),  # noqa: B023
            ):
                with pytest.raises(NoSuchJobError):
                    act()
    with store.transaction(Scope("north")) as conn:
        for name in ("retry", "discard", "cancel"):
            assert admin.preview(conn, JobFilter(), name).count == int(name == "cancel")
            done = admin.apply(conn, KINDS, Action(name), JobFilter(), "nora")
            assert done.changed == ((mine,) if name == "cancel" else ())
        for campus in ("south", "district"):
            with pytest.raises(InputError, match="in this scope"):
                admin.pause(conn, KINDS, "campus", campus, "nora")
            with pytest.raises(InputError, match="in this scope"):
                admin.pause(conn, KINDS, "queue", "test", "nora", campus=campus)
            with pytest.raises(InputError, match="in this scope"):
                admin.apply(conn, KINDS, Action("cancel"), JobFilter(campuses=(campus,)), "nora")
        admin.pause(conn, KINDS, "queue", "test", "nora")
    assert states(store, [south, whole, failed, mine]) == [
        "queued",
        "queued",
        "failed",
        "cancelled",
    ]
    assert paused(store) == {"north": {("queue", "test")}}
    with store.transaction(Scope("north")) as conn:
        lines = conn.execute(text("SELECT action, subject FROM theon.job_audit ORDER BY id")).all()
    assert [tuple(line) for line in lines] == [("cancel", f"job {mine}"), ("pause", "queue test")]
