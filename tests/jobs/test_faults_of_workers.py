"""Whatever breaks - a job, its process, its worker, the database - is ended, told and survived."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import pytest
from sqlalchemy import Connection
from tests.jobs import worker_for_tests
from tests.jobs.conftest import DISTRICT, LIMIT_S, Shop, alive, until
from tests.jobs.kinds_for_tests import BRIEF_S

from theon.errors import UnavailableError
from theon.jobs import clerk, ledger, supervisor
from theon.store.engine import Store
from theon.store.scope import Scope


@pytest.fixture
def sibling(shop: Shop) -> Iterator[int]:
    """A job beside the one that breaks; it must end as if nothing had happened."""
    shop.open(slots=2)
    job_id = shop.run("try.wait", seconds=4, n=77)
    shop.notes(1)
    yield job_id
    row = shop.ended(job_id)
    assert (row.state, row.result, row.attempts, row.lost) == ("completed", "waited", 1, 0)


class TestLimits:
    """Rule 4: the child ends, the ledger says why in words, siblings go on."""

    def test_time(self, shop: Shop, sibling: int) -> None:
        row = shop.ended(shop.run("try.brief"))
        assert (row.state, row.error_kind) == ("failed", "TimeLimit")
        assert row.reason == row.error == f"took longer than its {BRIEF_S:g} s"
        until(lambda: not alive(shop.notes(2)[1]["pid"]), "its process is gone")

    def test_time_of_a_job_that_swallows_the_request_to_end(
        self, shop: Shop, sibling: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SIGTERM first, so that it may clean up; then SIGKILL."""
        monkeypatch.setattr(supervisor, "KILL_AFTER_S", BRIEF_S)
        row = shop.ended(shop.run("try.stubborn"))
        assert row.reason == f"took longer than its {BRIEF_S:g} s"
        notes = shop.notes(3)
        assert notes[2] == {"pid": notes[1]["pid"], "swallowed": True}
        assert not alive(notes[1]["pid"])

    def test_memory(self, shop: Shop, sibling: int) -> None:
        row = shop.ended(shop.run("try.greedy"))
        assert (row.state, row.error_kind) == ("failed", "MemoryLimit")
        used, _, limit = row.reason.removeprefix("used ").partition(" MB, its limit is ")
        assert (float(used.replace(",", "")) > 300, limit) == (True, "300 MB")
        assert row.peak_mb is not None
        assert row.peak_mb > 300

    def test_cancel(self, shop: Shop, sibling: int) -> None:
        """The reason that whoever cancelled left is kept."""
        job_id = shop.run("try.wait", seconds=60, n=1)
        note = shop.notes(2)[1]
        shop.do(
            "UPDATE theon.jobs SET cancel_asked = true, reason = 'cancelled by kim' WHERE id = :id",
            id=job_id,
        )
        row = shop.ended(job_id)
        assert (row.state, row.reason) == ("cancelled", "cancelled by kim")
        assert not alive(note["pid"])

    def test_cancel_without_a_reason(self, shop: Shop, sibling: int) -> None:
        job_id = shop.run("try.wait", seconds=60, n=1)
        shop.notes(2)
        shop.do("UPDATE theon.jobs SET cancel_asked = true WHERE id = :id", id=job_id)
        assert shop.ended(job_id).reason == "cancelled while it ran"

    def test_a_lost_lease(self, shop: Shop, sibling: int) -> None:
        """Another attempt owns the job: the process ends and writes nothing."""
        job_id = shop.run("try.wait", seconds=60, n=1)
        note = shop.notes(2)[1]
        shop.do("UPDATE theon.jobs SET token = token + 1 WHERE id = :id", id=job_id)
        until(lambda: not alive(note["pid"]), "its process is gone")
        row = shop.row(job_id)
        assert (row.state, row.token, row.attempts) == ("running", 2, 1)
        assert shop.outcomes(job_id) == []

    def test_what_the_job_started_ends_with_it(self, shop: Shop, sibling: int) -> None:
        shop.ended(shop.run("try.parent"))
        program = shop.notes(2)[1]["program"]
        until(lambda: not alive(program), "the program is gone")


class TestChildrenThatDie:
    """An attempt whose process died is `lost`, not failed: it may not be the job's fault."""

    def test_by_kill(self, shop: Shop, sibling: int) -> None:
        job_id = shop.run("try.wait", seconds=60, n=1)
        os.kill(shop.notes(2)[1]["pid"], signal.SIGKILL)
        row = shop.ended(job_id)
        assert (row.state, row.lost, row.attempts) == ("scheduled", 1, 0)
        assert (row.error_kind, row.reason) == ("ChildDied", "its process was ended by SIGKILL")

    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            ("exit", "its process ended by itself with status 7"),
            ("segfault", "its process was ended by SIGSEGV"),
        ],
    )
    def test_by_themselves(self, shop: Shop, sibling: int, how: str, reason: str) -> None:
        row = shop.ended(shop.run("try.die", how=how))
        assert (row.lost, row.attempts, row.error_kind, row.reason) == (1, 0, "ChildDied", reason)

    def test_a_poison_job_reaches_the_dead_letters(self, shop: Shop, sibling: int) -> None:
        """After as many losses as its kind allows."""
        job_id = shop.put("try.die")
        (row,) = shop.settle(job_id)
        assert (row.state, row.lost, row.attempts) == ("failed", 3, 0)
        assert shop.outcomes(job_id) == ["lost"] * 3

    def test_idle(self, shop: Shop, sibling: int) -> None:
        """An idle child that is killed is replaced, and no job notices."""
        (row,) = shop.settle(shop.run("try.pid"))
        os.kill(row.result, signal.SIGKILL)
        (again,) = shop.settle(shop.run("try.pid"))
        assert (again.lost, again.attempts) == (0, 1)
        assert again.result != row.result

    def test_frozen(self, shop: Shop, sibling: int) -> None:
        """A child that is stopped in the middle does not hold up the worker."""
        job_id = shop.put("try.wait", seconds=60, n=1)
        shop.do("UPDATE theon.jobs SET timeout_s = 2, max_attempts = 1 WHERE id = :id", id=job_id)
        shop.dispatch([job_id])
        os.kill(shop.notes(2)[1]["pid"], signal.SIGSTOP)
        assert shop.ended(job_id).reason == "took longer than its 2 s"

    def test_frozen_while_it_is_given_a_large_job(self, shop: Shop, sibling: int) -> None:
        """Nobody reads the other end of the pipe; the worker writes on when somebody does."""
        (row,) = shop.settle(shop.run("try.pid"))
        os.kill(row.result, signal.SIGSTOP)
        job_id = shop.put("try.answer", how="x" * 3_000_000)
        shop.do("UPDATE theon.jobs SET timeout_s = 1, max_attempts = 1 WHERE id = :id", id=job_id)
        shop.dispatch([job_id])
        assert shop.ended(job_id).reason == "took longer than its 1 s"
        (again,) = shop.settle(shop.run("try.nothing"))
        assert again.state == "completed"


def test_when_the_server_of_forks_is_killed_jobs_go_on_in_new_children(shop: Shop) -> None:
    """What ran is lost with it and comes back; the worker goes on."""
    shop.open(slots=2)
    job_id = shop.put("try.wait", how="hold", n=1)
    shop.dispatch([job_id])
    (note,) = shop.notes(1)
    parent = psutil.Process(note["pid"]).parent()
    assert parent is not None
    assert parent.pid != os.getpid()
    parent.kill()
    until(lambda: not alive(note["pid"]), "what ran is lost")
    shop.let_go()
    (row,) = shop.settle(job_id)
    assert (row.state, row.result, row.lost) == ("completed", "waited", 1)


class TestAWorkerInItsOwnProcess:
    """Rule 6: a child ends when its supervisor is gone."""

    @contextmanager
    def worker(self, shop: Shop, slots: int) -> Iterator["subprocess.Popen[str]"]:
        process = subprocess.Popen(
            [sys.executable, worker_for_tests.__file__, str(shop.settings.home), str(slots)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()

    def give(self, shop: Shop, process: "subprocess.Popen[str]", ids: list[int]) -> None:
        assert process.stdin is not None
        for message in shop.dispatch(ids):
            process.stdin.write(f"{message.job_id} {message.token}\n")
        process.stdin.flush()

    def test_killed_its_children_end_and_its_jobs_come_back(self, shop: Shop) -> None:
        ids = [shop.put("try.wait", seconds=60, n=n) for n in range(2)]
        with self.worker(shop, slots=2) as process:
            self.give(shop, process, ids)
            pids = [note["pid"] for note in shop.notes(2)]
            process.kill()
            until(lambda: not any(alive(pid) for pid in pids), "the children are gone")
        shop.do("UPDATE theon.jobs SET lease_until = clock_timestamp() - interval '1 s'")
        with shop.store.transaction(DISTRICT) as conn:
            assert ledger.expire(conn) == (0, 2)
        for row in map(shop.row, ids):
            assert (row.state, row.lost, row.attempts) == ("scheduled", 1, 0)
            assert row.reason == "its worker to be killed was lost: the lease ended"

    @pytest.mark.slow
    def test_frozen_its_children_end_when_the_lease_is_over(self, shop: Shop) -> None:
        """It can end nobody, and somebody else may have the job by then."""
        job_id = shop.put("try.wait", seconds=120, n=1)
        with self.worker(shop, slots=1) as process:
            self.give(shop, process, [job_id])
            (note,) = shop.notes(1)
            process.send_signal(signal.SIGSTOP)
            time.sleep(1.0)
            assert alive(note["pid"])
            until(lambda: not alive(note["pid"]), "the child is gone")

    def test_sigterm_for_the_whole_is_not_needed_where_input_ends(self, shop: Shop) -> None:
        """An orderly end gives back what runs and leaves the database to the others."""
        job_id = shop.put("try.wait", seconds=60, n=1)
        with self.worker(shop, slots=1) as process:
            self.give(shop, process, [job_id])
            shop.notes(1)
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
            assert process.wait(LIMIT_S) == 0
        row = shop.row(job_id)
        assert (row.state, row.attempts) == ("queued", 0)


class TestWithoutTheDatabase:
    """Outcomes are kept and told later; leases that cannot be renewed end their processes."""

    @pytest.fixture
    def away(self, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
        """While it is set, the machinery's transactions fail as they do without a server."""
        away = threading.Event()
        real = Store.transaction

        @contextmanager
        def transaction(store: Store, scope: Scope, *settings: Any) -> Iterator[Connection]:
            if away.is_set() and threading.current_thread().name.startswith("theon-"):
                raise UnavailableError("the database is away")
            with real(store, scope, *settings) as conn:
                yield conn

        monkeypatch.setattr(Store, "transaction", transaction)
        return away

    def test_an_outcome_is_told_when_it_is_back(self, shop: Shop, away: threading.Event) -> None:
        worker = shop.open()
        job_id = shop.run("try.wait", how="hold", n=1)
        shop.notes(1)
        away.set()
        shop.let_go()
        until(lambda: worker.busy == 0, "the attempt is over")
        time.sleep(1.0)  # in which somebody tries in vain to tell it
        assert shop.row(job_id).state == "running"
        away.clear()
        row = shop.ended(job_id)
        assert (row.state, row.attempts, row.lost) == ("completed", 1, 0)

    def test_a_lease_that_cannot_be_renewed_ends_its_process_before_it_ends(
        self, shop: Shop, away: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One second before: whoever has the job then is alone with it."""
        monkeypatch.setattr(clerk.ledger, "RUN_LEASE_S", 6.0)
        shop.open()
        job_id = shop.run("try.wait", seconds=60, n=1)
        (note,) = shop.notes(1)
        until(lambda: (r := self.lease_s(shop, job_id)) is not None and r <= 6, "a short lease")
        away.set()
        until(lambda: not alive(note["pid"]), "its process is gone")
        away.clear()
        row = shop.ended(job_id)
        assert (row.state, row.attempts, row.lost) == ("queued", 0, 0)
        assert row.reason == "given back: its worker could not reach the database in time"

    def lease_s(self, shop: Shop, job_id: int) -> Any:
        return shop.do(
            "SELECT extract(epoch FROM lease_until - clock_timestamp()) FROM theon.jobs"
            " WHERE id = :id",
            id=job_id,
        )[0][0]

    def test_a_start_whose_commit_was_not_heard_of_is_not_lost(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The connection broke after the commit: the attempt has begun and is ours."""
        real = Store.transaction
        broken: list[str] = []

        @contextmanager
        def transaction(store: Store, scope: Scope, *settings: Any) -> Iterator[Connection]:
            with real(store, scope, *settings) as conn:
                yield conn
            if threading.current_thread().name.startswith("theon-clerk") and not broken:
                broken.append("once")
                raise UnavailableError("the connection was lost")

        monkeypatch.setattr(Store, "transaction", transaction)
        shop.open()
        job_id = shop.run("try.answer", n=4)
        row = shop.ended(job_id)
        assert broken == ["once"]
        assert (row.state, row.attempts, row.lost) == ("completed", 1, 0)
        assert shop.outcomes(job_id) == ["completed"]


def test_a_job_whose_row_is_locked_does_not_keep_its_siblings_from_renewing(shop: Shop) -> None:
    """A job that commits its effect with its finish holds its row until the commit."""
    shop.open(slots=2)
    holds = shop.run("try.effect", n=1, how="hold")
    renewed = shop.run("try.wait", seconds=60, n=2)
    shop.notes(2)
    time.sleep(1.0)

    def lease() -> Any:
        return shop.do("SELECT lease_until FROM theon.jobs WHERE id = :id", id=renewed)[0][0]

    before = lease()
    until(lambda: lease() > before, "the sibling's lease is renewed")
    assert shop.row(holds).state == "running"
    shop.let_go()
    assert shop.ended(holds).state == "completed"
