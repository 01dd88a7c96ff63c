"""A job that lost two workers runs alone, whatever messages arrive in which order."""

from typing import Any

import pytest
from tests.jobs import kinds_for_tests
from tests.jobs.conftest import LIMIT_S, Shop, until

from theon.jobs import alone, quarantine
from theon.jobs.deliveries.local import LocalDelivery
from theon.jobs.dispatcher import Dispatcher
from theon.store.scope import Scope


class TestQuarantine:
    """Rule 5, where it runs: the supervisor that starts attempts keeps it."""

    def suspect(self, shop: Shop, **arguments: Any) -> int:
        job_id = shop.put("try.wait", **arguments)
        shop.do("UPDATE theon.jobs SET lost = 2 WHERE id = :id", id=job_id)
        return job_id

    def times(self, shop: Shop, job_id: int) -> Any:
        (found,) = shop.do(
            "SELECT started_at, ended_at FROM theon.job_attempts WHERE job_id = :id"
            " AND outcome = 'completed'",
            id=job_id,
        )
        return found

    def test_it_begins_when_all_others_have_ended_and_none_begins_before_it_has(
        self, shop: Shop
    ) -> None:
        shop.open(slots=3)
        before = [shop.run("try.wait", seconds=1.5, n=n) for n in range(2)]
        shop.notes(2)
        suspects = [self.suspect(shop, seconds=0.5, n=n) for n in range(2)]
        shop.dispatch(suspects)
        after = [shop.put("try.wait", n=n) for n in range(3)]
        rows = shop.settle(*before, *suspects, *after)
        assert {row.state for row in rows} == {"completed"}
        assert {row.attempts for row in rows} == {1}
        spans = {i: self.times(shop, i) for i in (*before, *suspects, *after)}
        for suspect in suspects:
            begun, ended = spans[suspect]
            beside = [i for i, (b, e) in spans.items() if b < ended and e > begun]
            assert beside == [suspect]

    def test_it_goes_back_unspent_where_the_others_do_not_end(
        self, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(quarantine, "WAIT_S", 0.5)
        shop.open(slots=2)
        other = shop.run("try.wait", seconds=60, n=1)
        shop.notes(1)
        suspect = self.suspect(shop, n=2)
        shop.dispatch([suspect])
        until(lambda: shop.row(suspect).reason == quarantine.NOT_EMPTY, "given back")
        row = shop.row(suspect)
        assert (row.state, row.attempts, row.lost, row.worker) == ("queued", 0, 2, None)
        assert shop.row(other).state == "running"

    def test_what_arrives_meanwhile_goes_back_before_its_dispatch_lease_ends(
        self, shop: Shop
    ) -> None:
        """Another worker may have room."""
        shop.open(slots=2)
        suspect = self.suspect(shop, seconds=60, n=1)
        shop.dispatch([suspect])
        shop.notes(1)
        late = shop.run("try.nothing")
        until(lambda: shop.row(late).state == "queued", "given back")
        row = shop.row(late)
        assert row.reason == "given back: its worker runs another job alone"
        assert row.attempts == 0

    def test_what_is_handed_to_a_worker_by_name_needs_no_message(self, shop: Shop) -> None:
        """A broker could bring it to any worker."""
        shop.open(worker_id="w-1")
        suspect = self.suspect(shop, n=1)
        with shop.store.transaction(Scope.district()) as conn:
            assert len(alone.dispatch_alone(conn, {suspect: "w-1"})) == 1
        assert shop.ended(suspect).state == "completed"

    def test_it_has_its_turn_while_the_queue_is_long(self, shop: Shop) -> None:
        """A worker that is never idle by itself is emptied for it."""
        worker = shop.open(slots=2)
        others = [shop.put("try.wait", seconds=0.2, n=n) for n in range(60)]
        suspect = self.suspect(shop, n=99)
        shop.do(
            "UPDATE theon.jobs SET ready_at = ready_at - interval '60 s',"
            " rank_at = rank_at - interval '60 s' WHERE id = :id",
            id=suspect,
        )
        dispatcher = Dispatcher(shop.store, kinds_for_tests.kinds(), LocalDelivery(worker))
        shop.do("UPDATE theon.jobs SET state = 'dispatched' WHERE id = :id", id=suspect)
        until(lambda: dispatcher.tick() and shop.notes(1), "others run")
        shop.do("UPDATE theon.jobs SET state = 'queued' WHERE id = :id", id=suspect)

        def ended() -> bool:
            dispatcher.tick()
            return shop.row(suspect).state == "completed"

        until(ended, "it had its turn")
        assert any(shop.row(i).state == "queued" for i in others)
        begun, over = self.times(shop, suspect)
        assert shop.do(
            "SELECT job_id FROM theon.job_attempts WHERE started_at < :over AND ended_at > :begun",
            over=over,
            begun=begun,
        ) == [(suspect,)]

    def test_while_it_waits_it_has_lost_nothing(self, shop: Shop) -> None:
        """The worker may die of the others until then; the wait does not end its lease."""
        shop.open(slots=2)
        shop.run("try.wait", seconds=60, n=1)
        shop.notes(1)
        suspect = self.suspect(shop, n=2)
        shop.dispatch([suspect])

        def lease() -> Any:
            found = shop.do("SELECT worker, lease_until FROM theon.jobs WHERE id = :i", i=suspect)
            return found[0] if found[0][0] else None

        first = until(lease, "held")
        until(lambda: lease()[1] > first[1], "its dispatch lease is renewed")
        assert shop.row(suspect).state == "dispatched"

    def test_a_worker_that_drains_gives_it_back(self, shop: Shop) -> None:
        worker = shop.open(slots=2, drain_s=0.3)
        shop.run("try.wait", seconds=60, n=1)
        shop.notes(1)
        suspect = self.suspect(shop, n=2)
        shop.dispatch([suspect])
        until(lambda: shop.row(suspect).worker is not None, "held")
        worker.drain()
        worker.join(LIMIT_S)
        row = shop.row(suspect)
        assert (row.state, row.attempts, row.lost) == ("queued", 0, 2)
