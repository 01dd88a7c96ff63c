"""The policy is pure, so its promises are properties."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from theon.jobs import policy
from theon.jobs.policy import Candidate, Cap, Limits, Running, Worker, choose

KINDS = ("a", "b")
CAMPUSES = ("north", "south", "east")


@st.composite
def loads(draw: st.DrawFn) -> list[Candidate]:
    count = draw(st.integers(0, 25))
    return [
        Candidate(
            job_id,
            draw(st.sampled_from(KINDS)),
            draw(st.sampled_from(["q", "r"])),
            draw(st.sampled_from(CAMPUSES)),
            draw(st.sampled_from(["", "ann", "ben"])),
            rank_at_s=draw(st.floats(0, 1000)),
            priority=draw(st.integers(-2, 2)),
            deadline_at_s=draw(st.none() | st.floats(0, 5000)),
            lost=draw(st.integers(0, 3)),
            predicted_memory_mb=draw(st.floats(0, 500)),
        )
        for job_id in range(count)
    ]


workers = st.lists(
    st.builds(
        Worker,
        st.just("w"),
        st.sampled_from([frozenset("q"), frozenset("r"), frozenset("qr")]),
        st.integers(0, 6),
        st.integers(0, 3),
        st.none() | st.floats(0, 2000),
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(loads(), workers, st.integers(0, 4), st.integers(0, 3))
def test_never_above_caps_nor_capacity_and_every_other_job_gets_a_reason(
    load: list[Candidate], live: list[Worker], at_once: int, already: int
) -> None:
    limits = Limits({"a": Cap(at_once=at_once, at_once_per_owner=2), "b": Cap(per_minute=3)})
    running = Running(by_kind={"a": already}, begun_in_minute={"b": already})
    choice = choose(load, running, limits, live, 1000.0)
    by_id = {c.job_id: c for c in load}
    kinds = Counter(by_id[i].kind for i in choice.chosen)
    assert kinds["a"] <= max(0, at_once - already)
    assert kinds["b"] <= max(0, 3 - already)
    owners = Counter(by_id[i].owner for i in choice.chosen if by_id[i].kind == "a")
    assert max(owners.values(), default=0) <= 2
    assert len(choice.chosen) <= sum(w.room for w in live)
    for queue in "qr":
        served = sum(w.room for w in live if queue in w.queues)
        assert sum(by_id[i].queue == queue for i in choice.chosen) <= served
    assert set(choice.chosen) | set(choice.waiting) == set(by_id)
    assert not set(choice.chosen) & set(choice.waiting)
    assert all(choice.waiting.values())


@settings(max_examples=60, deadline=None)
@given(loads(), st.sampled_from(["queue", "kind", "campus"]))
def test_what_is_paused_is_never_chosen(load: list[Candidate], subject: str) -> None:
    value = {"queue": "q", "kind": "a", "campus": "north"}[subject]
    paused = {campus: frozenset({(subject, value)}) for campus in CAMPUSES}
    live = [Worker("w", frozenset("qr"), 100)]
    choice = choose(load, Running(), Limits({}, paused), live, 1000.0)
    by_id = {c.job_id: c for c in load}
    assert all(getattr(by_id[i], subject) != value for i in choice.chosen)


@settings(max_examples=60, deadline=None)
@given(loads(), workers)
def test_a_job_that_lost_two_workers_runs_alone(load: list[Candidate], live: list[Worker]) -> None:
    choice = choose(load, Running(), Limits(), live, 1000.0)
    lost = {c.job_id: c.lost for c in load}
    suspects = sum(lost[i] >= 2 for i in choice.chosen)
    # Each takes a whole idle worker, so the others share what is left.
    assert suspects <= sum(w.busy == 0 and w.room > 0 for w in live)
    rooms = sorted(w.room for w in live if w.busy == 0 and w.room > 0)[:suspects]
    assert len(choice.chosen) - suspects <= sum(w.room for w in live) - sum(rooms)


def test_a_campus_that_floods_takes_no_more_than_its_share() -> None:
    flood = [Candidate(n, "a", "q", "north", rank_at_s=float(n)) for n in range(500)]
    others = [Candidate(1000 + n, "a", "q", "south", rank_at_s=9999.0) for n in range(500)]
    live = [Worker("w", frozenset("q"), 100)]
    choice = choose(flood + others, Running(), Limits(), live, 10_000.0)
    assert sum(i >= 1000 for i in choice.chosen) == 50


def test_nothing_starves_behind_a_stream_of_urgent_jobs() -> None:
    old = Candidate(1, "a", "q", "north", rank_at_s=600.0, priority=-2)
    live = [Worker("w", frozenset("q"), 1)]
    for now in range(0, 3000, 10):
        # Urgent jobs rank 600 s before their time.
        stream = [Candidate(100 + now, "a", "q", "north", rank_at_s=now - 600.0, priority=2)]
        if choose([old, *stream], Running(), Limits(), live, float(now)).chosen == [1]:
            return
    raise AssertionError("the background job never had its turn")


def test_a_job_near_its_deadline_goes_before_those_that_can_wait() -> None:
    first = Candidate(1, "a", "q", "north", rank_at_s=0.0, priority=2)
    near = Candidate(2, "a", "q", "north", rank_at_s=900.0, deadline_at_s=1010.0)
    live = [Worker("w", frozenset("q"), 1)]
    assert choose([first, near], Running(), Limits(), live, 1000.0).chosen == [2]


def lost_two(job_id: int = 1, ready_at_s: float | None = None) -> Candidate:
    return Candidate(job_id, "a", "q", "north", lost=2, ready_at_s=ready_at_s)


class TestAJobThatRunsAlone:
    """It gets a worker of its own, however busy the workers are, and the others go on."""

    now_s = 1000.0
    long_ago_s = now_s - policy.EMPTY_AFTER_S

    def choose(self, load: list[Candidate], *live: Worker) -> policy.Choice:
        return choose(load, Running(), Limits(), live, self.now_s)

    def test_it_waits_a_while_for_a_worker_that_is_idle(self) -> None:
        busy = Worker("busy", frozenset("q"), 3, busy=1, running=1)
        choice = self.choose([lost_two(ready_at_s=self.long_ago_s + 1)], busy)
        assert choice.waiting == {1: "it lost 2 workers and waits for an idle one, to run alone"}
        choice = self.choose([lost_two()], busy, Worker("idle", frozenset("q"), 2))
        assert choice.alone == {1: "idle"}

    def test_then_the_worker_with_the_least_running_is_emptied_for_it(self) -> None:
        live = [
            Worker("full", frozenset("q"), 0, busy=4, running=2),
            Worker("less", frozenset("q"), 0, busy=4, running=1),
        ]
        assert self.choose([lost_two(ready_at_s=self.long_ago_s)], *live).alone == {1: "less"}

    def test_its_worker_gets_nothing_else(self) -> None:
        others = [Candidate(n, "a", "q", "north", rank_at_s=9.0) for n in range(10, 20)]
        choice = self.choose([lost_two(), *others], Worker("w", frozenset("q"), 8))
        assert choice.chosen == [1]
        later = self.choose(others, Worker("w", frozenset("q"), 8, closed=True))
        assert later.chosen == []

    def test_no_more_than_half_of_the_workers_are_emptied_at_once(self) -> None:
        load = [lost_two(n, self.long_ago_s) for n in range(1, 5)]
        live = [Worker(f"w{n}", frozenset("q"), 1, busy=1, running=1) for n in range(4)]
        assert self.choose(load, *live).alone == {1: "w0", 2: "w1"}

    def test_a_worker_that_was_not_heard_of_lately_does_not_get_it(self) -> None:
        """It may be dead: it looks idle then."""
        silent = Worker("silent", frozenset("q"), 4, silent_s=policy.SILENT_S + 1)
        choice = self.choose([lost_two(ready_at_s=0.0)], silent)
        assert choice.alone == {}
        assert self.choose([Candidate(2, "a", "q", "north")], silent).chosen == [2]


@given(st.integers(0, 9), st.integers(2, 9))
def test_nobody_dies_of_the_company_it_was_in(lost: int, max_lost: int) -> None:
    """A job that may run beside others has a loss left after its worker died of one of them."""
    assert policy.runs_alone(lost, max_lost) or lost + 1 < max_lost
