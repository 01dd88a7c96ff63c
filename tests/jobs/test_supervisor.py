"""A worker runs attempts as the ledger says and answers for each of them."""

import time
from pathlib import Path
from typing import Any

import pytest
from tests.jobs import kinds_for_tests
from tests.jobs.conftest import LIMIT_S, Shop, alive, until

from theon.jobs import admin, inbox, ledger, supervisor
from theon.jobs.context import as_json
from theon.jobs.errors import PermanentError
from theon.jobs.kinds import Kinds
from theon.store.scope import Scope


def test_a_result_is_kept_as_json(shop: Shop) -> None:
    """Dataclasses, times and paths become JSON."""
    shop.open()
    (row,) = shop.settle(shop.run("try.answer", n=21))
    assert row.state == "completed"
    assert row.result == {"n": 42, "at": "2026-01-02T00:00:00Z", "place": "/x"}
    assert row.peak_mb is None or row.peak_mb > 0


def test_the_context_knows_the_job_and_its_transactions_see_its_campus(shop: Shop) -> None:
    """A job's own effects are in the scope of its campus."""
    shop.do(
        "INSERT INTO theon.campuses (slug, name, timezone, parent_id)"
        " SELECT 'north', 'North', 'UTC', id FROM theon.campuses"
    )
    shop.open()
    job_id = shop.run("try.context", campus="north", owner="kim")
    (row,) = shop.settle(job_id)
    assert row.result == {
        "job": job_id, "attempt": 1, "campus": "north", "owner": "kim", "scope": "north",
        "home": str(shop.settings.home), "cancelled": False,
    }  # fmt: skip


def test_a_child_is_kept_for_many_jobs(shop: Shop) -> None:
    """A small job does not pay for a process of its own."""
    shop.open()
    rows = shop.settle(*(shop.run("try.pid") for _ in range(5)))
    assert len({row.result for row in rows}) == 1


def test_a_child_is_replaced_after_its_number_of_jobs(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What jobs leave behind in a process does not add up for ever."""
    monkeypatch.setattr(supervisor, "ATTEMPTS_PER_CHILD", 3)
    shop.open()
    rows = [shop.settle(shop.run("try.pid"))[0] for _ in range(7)]
    pids = [row.result for row in rows]
    assert [len(set(pids[:3])), len(set(pids[3:6])), len(set(pids))] == [1, 1, 3]
    until(lambda: not alive(pids[0]), "the first child is gone")


def test_memory_that_a_job_left_behind_is_not_counted_against_the_next(shop: Shop) -> None:
    """A fat child is replaced before a job with a smaller limit gets it."""
    shop.open()
    (fat,) = shop.settle(shop.run("try.fat"))
    (slim,) = shop.settle(shop.run("try.slim"))
    assert (fat.state, slim.state) == ("completed", "completed")
    assert fat.result != slim.result
    assert fat.peak_mb is not None
    assert fat.peak_mb > 250


def test_many_jobs_run_on_few_slots_and_each_once(shop: Shop) -> None:
    """Batches of starts and finishes lose nothing."""
    shop.open(slots=2)
    ids = [shop.put("try.nothing") for _ in range(300)]
    rows = shop.settle(*ids)
    assert {row.state for row in rows} == {"completed"}
    assert {row.attempts for row in rows} == {1}
    assert shop.do("SELECT count(*) FROM theon.job_attempts")[0][0] == 300


def test_progress_reaches_the_ledger_while_the_job_runs(shop: Shop) -> None:
    """The page shows how far a job is."""
    shop.open()
    job_id = shop.run("try.wait", seconds=60, n=9)
    until(lambda: shop.row(job_id).operation == "step 9", "progress")
    row = shop.row(job_id)
    assert (row.state, row.done) == ("running", 1.0)


def test_a_checkpoint_is_handed_to_the_next_attempt(shop: Shop) -> None:
    """It is durable although the attempt failed."""
    shop.open()
    job_id = shop.put("try.checkpoint")
    (row,) = shop.settle(job_id)
    assert row.result == [42, 2]
    assert shop.outcomes(job_id) == ["failed", "completed"]


def test_a_failure_that_may_pass_is_retried_after_the_wait_of_its_kind(shop: Shop) -> None:
    """The ledger has the message, the class and the stack."""
    shop.open()
    row = shop.ended(shop.run("try.fail", how="transient"))
    assert (row.state, row.attempts, row.error_kind) == ("scheduled", 1, "TransientError")
    assert 60 < row.wait_s <= 100
    assert row.error == "line 4: the line is busy"
    assert "kinds_for_tests.py" in (row.stack or "")


def test_any_other_exception_is_retried_too(shop: Shop) -> None:
    """Nobody has to wrap what a library raises; `sys.exit` in a job ends no process."""
    shop.open()
    assert shop.ended(shop.run("try.fail")).error_kind == "KeyError"
    row = shop.ended(shop.run("try.fail", how="exit"))
    assert (row.state, row.error_kind, row.lost) == ("scheduled", "SystemExit", 0)


def test_a_permanent_failure_is_a_dead_letter_at_once(shop: Shop) -> None:
    """Another attempt would fail in the same way."""
    shop.open()
    row = shop.ended(shop.run("try.fail", how="permanent"))
    assert (row.state, row.attempts, row.error) == ("failed", 1, "there is no such line")


@pytest.mark.parametrize("how", ["object", "nul", "half", "huge"])
def test_a_result_that_cannot_be_kept_is_a_failure_that_says_why(shop: Shop, how: str) -> None:
    """And the batch it would have been written with is not harmed."""
    shop.open(slots=2)
    other = shop.put("try.answer", n=1)
    row, sibling = shop.settle(shop.put("try.strange", how=how), other)
    assert (row.state, row.error_kind) == ("failed", "PermanentError")
    assert "the result" in (row.error or "")
    assert sibling.state == "completed"


def test_a_large_result_comes_whole_and_no_number_is_null(shop: Shop) -> None:
    """A message may be larger than a pipe; JSON has no NaN."""
    shop.open()
    large, nan = shop.settle(
        shop.put("try.strange", how="large"), shop.put("try.strange", how="nan")
    )
    assert large.result == "y" * 3_000_000
    assert nan.result == [None]


def test_large_arguments_come_whole(shop: Shop) -> None:
    """They may be larger than a pipe as well."""
    shop.open()
    (row,) = shop.settle(shop.run("try.answer", n=2, how="z" * 2_000_000))
    assert row.result["n"] == 4


def test_an_error_with_what_postgresql_refuses_is_kept_nearly_as_it_was(shop: Shop) -> None:
    """NUL and half characters are replaced."""
    shop.open()
    row = shop.ended(shop.run("try.fail", how="nul"))
    assert (row.state, row.error) == ("scheduled", "a\N{REPLACEMENT CHARACTER}b ?")


@pytest.mark.parametrize("value", ["\\u0000", {"a\\": "b\\\\u0000"}, "ü\u2028"])
def test_a_text_that_only_looks_like_nul_is_kept(value: Any) -> None:
    assert as_json(value, "it") == value


def test_nul_in_a_key_is_refused() -> None:
    with pytest.raises(PermanentError, match="NUL"):
        as_json({"a\0": 1}, "it")


def test_a_kind_without_code_leaves_the_job_visible_and_retriable(shop: Shop) -> None:
    """After an upgrade the code may be gone: a dead letter that says so, and nothing lost."""
    shop.open(kinds=Kinds([kinds_for_tests.nothing]))
    row = shop.ended(shop.run("try.answer", n=3))
    assert (row.state, row.error_kind) == ("failed", "UnknownKindError")
    assert "no code of this installation declares" in (row.error or "")
    assert "retried after its code is back" in (row.error or "")
    (other,) = shop.settle(shop.run("try.nothing"))
    assert other.state == "completed"


def test_arguments_that_no_longer_fit_are_a_dead_letter(shop: Shop) -> None:
    """The code changed since the job was enqueued."""
    shop.open()
    job_id = shop.put("try.answer")
    shop.do('UPDATE theon.jobs SET arguments = \'{"n": "x"}\' WHERE id = :id', id=job_id)
    (row,) = shop.settle(job_id)
    assert (row.state, row.attempts, row.error_kind) == ("failed", 1, "InputError")
    assert "n:" in (row.error or "")


def test_a_message_with_a_spent_token_begins_nothing(shop: Shop) -> None:
    """A delivery may bring a message twice."""
    worker = shop.open()
    job_id = shop.put("try.answer", n=1)
    messages = shop.dispatch([job_id])
    shop.settle(job_id)
    worker.submit(messages)
    worker.submit([ledger.Message(999, 1)])
    shop.settle(shop.run("try.nothing"))
    assert shop.outcomes(job_id) == ["completed"]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a slot is not given back while a busy machine takes its time."""
    monkeypatch.setattr(inbox, "KEPT_S", LIMIT_S)


@pytest.mark.usefixtures("patient")
def test_messages_beyond_the_slots_wait_and_are_not_begun(shop: Shop) -> None:
    """Their dispatch lease brings them back while another worker may be free."""
    worker = shop.open()
    first = shop.run("try.wait", seconds=60, n=1)
    shop.notes(1)
    second = shop.run("try.wait", n=2)
    time.sleep(1.0)
    assert (shop.row(first).state, shop.row(second).state) == ("running", "dispatched")
    assert worker.busy == 1


class TestFinishWithAnEffect:
    """Rule 10: an effect in our database commits with the finish, under the token."""

    def effects(self, shop: Shop) -> list[Any]:
        return shop.do("SELECT subject FROM theon.job_audit WHERE action = 'effect'")

    def test_both_are_committed(self, shop: Shop) -> None:
        shop.open()
        job_id = shop.run("try.effect", n=5)
        (row,) = shop.settle(job_id)
        assert (row.state, row.result) == ("completed", {"n": 5})
        assert self.effects(shop) == [("5",)]
        assert shop.outcomes(job_id) == ["completed"]

    def test_neither_is_after_a_rollback(self, shop: Shop) -> None:
        """The job still runs then, and ends by what the function does next."""
        shop.open()
        (row,) = shop.settle(shop.run("try.effect", n=5, how="rollback"))
        assert (row.state, row.error_kind) == ("failed", "TransientError")
        assert self.effects(shop) == []

    def test_neither_is_by_an_attempt_that_lost_its_job(self, shop: Shop) -> None:
        shop.open()
        job_id = shop.run("try.effect", n=5, how="late")
        shop.notes(1)
        shop.do("UPDATE theon.jobs SET token = token + 1 WHERE id = :id", id=job_id)
        shop.let_go()
        shop.settle(shop.run("try.nothing"))
        assert self.effects(shop) == []
        assert shop.row(job_id).state == "running"  # whoever has the new token

    def test_a_function_may_go_on_after_it(self, shop: Shop) -> None:
        """A job that completed itself has not lost its lease, and its process is left alone."""
        shop.open()
        job_id = shop.run("try.effect", n=5, how="long", seconds=3)
        until(lambda: shop.row(job_id).state == "completed", "completed")
        (pid,) = {n["pid"] for n in shop.notes(1)}
        (row,) = shop.settle(shop.run("try.pid"))
        assert row.result == pid

    def test_dependents_in_other_campuses_are_freed(self, shop: Shop) -> None:
        """The campus's scope would hide them."""
        shop.do(
            "INSERT INTO theon.campuses (slug, name, timezone, parent_id)"
            " SELECT 'north', 'North', 'UTC', id FROM theon.campuses"
        )
        shop.open()
        first = shop.put("try.effect", campus="north", n=1)
        second = shop.put("try.nothing")
        shop.do(
            "INSERT INTO theon.job_dependencies (campus_id, job_id, needs_id, needs_campus_id)"
            " SELECT b.campus_id, b.id, a.id, a.campus_id FROM theon.jobs a, theon.jobs b"
            " WHERE a.id = :a AND b.id = :b",
            a=first,
            b=second,
        )
        shop.do("UPDATE theon.jobs SET waits_for = 1 WHERE id = :id", id=second)
        shop.settle(first)
        assert shop.do("SELECT waits_for FROM theon.jobs WHERE id = :id", id=second) == [(0,)]


class TestTheWorkersRow:
    """Workers are seen in the ledger: slots, what they run, what they use."""

    def row(self, shop: Shop) -> Any:
        found = shop.do(
            "SELECT id, state, slots, busy, running, queues, delivery, memory_mb, memory_free_mb,"
            " cpu_percent, pid FROM theon.job_workers"
        )
        return found[0] if found else None

    def test_it_says_what_runs(self, shop: Shop) -> None:
        worker = shop.open(slots=2, worker_id="w-1")
        job_id = shop.run("try.wait", seconds=60)
        until(lambda: (r := self.row(shop)) and r.busy == 1, "busy")
        row = self.row(shop)
        assert (row.id, row.state, row.slots, row.running) == ("w-1", "running", 2, [job_id])
        assert (row.queues, row.delivery) == (["try"], "local")
        assert row.memory_mb > 1
        assert row.memory_free_mb > 1
        assert row.cpu_percent >= 0
        assert worker.busy == 1

    def test_one_that_was_taken_for_lost_lives_again(self, shop: Shop) -> None:
        shop.open()
        until(lambda: self.row(shop), "registered")
        shop.do("UPDATE theon.job_workers SET state = 'lost'")
        until(lambda: self.row(shop).state == "running", "running again")

    def test_the_end_is_registered(self, shop: Shop) -> None:
        worker = shop.open()
        until(lambda: self.row(shop), "registered")
        shop.close()
        assert self.row(shop).state == worker.state == "stopped"


class TestDrain:
    """No new work; running jobs get their time; the rest goes back with nothing lost."""

    @pytest.mark.usefixtures("patient")
    def test_running_jobs_may_end_and_waiting_ones_go_back_at_once(self, shop: Shop) -> None:
        worker = shop.open(drain_s=LIMIT_S)
        running = shop.run("try.wait", how="hold", n=1)
        shop.notes(1)
        waiting = shop.run("try.wait", n=2)
        worker.drain()
        until(lambda: shop.row(waiting).state == "queued", "given back")
        assert worker.state == "draining"
        late = shop.run("try.nothing")
        shop.let_go()
        worker.join(LIMIT_S)
        assert worker.state == "stopped"
        assert shop.row(running).state == "completed"
        row = shop.row(late)
        assert (row.state, row.attempts) == ("queued", 0)
        assert shop.row(waiting).reason == "given back: the worker drains"

    def test_what_takes_longer_goes_back_with_its_checkpoint(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It spends no attempt, its process has ended, and its last words are kept."""
        monkeypatch.setattr(supervisor, "KILL_AFTER_S", LIMIT_S)
        worker = shop.open(drain_s=0.3)
        job_id = shop.run("try.resume")
        (note,) = shop.notes(1)
        worker.drain()
        worker.join(LIMIT_S)
        row = shop.row(job_id)
        assert (row.state, row.attempts, row.lost, row.checkpoint) == ("queued", 0, 0, 7)
        assert not alive(note["pid"])
        shop.open()
        (row,) = shop.settle(job_id)
        assert (row.state, row.result, row.attempts) == ("completed", 7, 1)

    @pytest.mark.usefixtures("patient")
    def test_the_ledger_can_ask_for_it(self, shop: Shop) -> None:
        """The worker hears it with a heartbeat, and drains as at SIGTERM; it is on record."""
        worker = shop.open(drain_s=LIMIT_S)
        running = shop.run("try.wait", how="hold", n=1)
        shop.notes(1)
        waiting = shop.run("try.wait", n=2)
        until(lambda: shop.do("SELECT FROM theon.job_workers"), "registered")
        with shop.store.transaction(Scope.district()) as conn:
            admin.drain_worker(conn, worker.worker_id, "ada")
        until(lambda: worker.asked_to_drain, "heard")
        until(lambda: shop.row(waiting).state == "queued", "given back")
        shop.let_go()
        worker.join(LIMIT_S)
        assert worker.state == "stopped"
        assert shop.row(running).state == "completed"
        row = shop.row(waiting)
        assert (row.state, row.attempts) == ("queued", 0)
        assert row.reason == "given back: the worker drains"
        assert shop.do("SELECT actor, action, subject FROM theon.job_audit") == [
            ("ada", "drain", f"worker {worker.worker_id}")
        ]
        assert shop.do("SELECT state FROM theon.job_workers") == [("stopped",)]

    def test_a_new_worker_of_the_same_name_does_not_drain(self, shop: Shop) -> None:
        """It was asked of the one before."""
        shop.open(worker_id="w-1")
        until(lambda: shop.do("SELECT FROM theon.job_workers"), "registered")
        with shop.store.transaction(Scope.district()) as conn:
            admin.drain_worker(conn, "w-1", "ada")
        assert shop.worker is not None
        shop.worker.join(LIMIT_S)
        worker = shop.open(worker_id="w-1")
        (row,) = shop.settle(shop.run("try.nothing"))
        assert row.state == "completed"
        asked = "SELECT drain_asked FROM theon.job_workers"
        until(lambda: shop.do(asked) == [(False,)], "the question is over")
        assert (worker.state, worker.asked_to_drain) == ("running", False)

    def test_stop_leaves_no_process(self, shop: Shop) -> None:
        worker = shop.open(slots=2)
        ids = [shop.run("try.wait", seconds=60, n=n) for n in range(2)]
        pids = [note["pid"] for note in shop.notes(2)]
        worker.stop()
        worker.join(LIMIT_S)
        assert [shop.row(i).state for i in ids] == ["queued", "queued"]
        assert not any(alive(pid) for pid in pids)

    def test_stopping_one_that_never_started_does_nothing(self, shop: Shop) -> None:
        worker = supervisor.Supervisor(
            shop.store,
            shop.settings,
            kinds_for_tests.kinds(),
            kinds_source=kinds_for_tests.SOURCE,
            queues=[],
            slots=1,
            delivery="local",
        )
        worker.drain()
        worker.stop()
        worker.join(1)


def test_the_last_child_does_not_stop_the_database(shop: Shop, tmp_path: Path) -> None:
    """Children join the embedded server and leave it running."""
    shop.open()
    shop.settle(shop.run("try.context"))
    shop.close()
    with shop.store.transaction(Scope.district()) as conn:
        assert conn.exec_driver_sql("SELECT 1").scalar_one() == 1
