"""Which waiting jobs are handed out next, and why the others wait. A pure function.

Shares come first, then rank: of the campuses that have work, the one with the least running and
recent work goes next, inside it the user with the least, and of that user's jobs the one with
the earliest `rank_at` (priority class with ageing). A class of priority multiplies a share, so
an urgent job of a busy campus goes early and yet nobody starves. Jobs near their deadline go
before all that.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

QUARANTINE_LOST = 2  # after so many lost workers a job runs alone
# A job that is to run alone waits so long for a worker that is idle; then one is emptied for it.
EMPTY_AFTER_S = 10.0
SILENT_S = 5.0  # a worker that was not heard of for so long may be dead
PRIORITY_WEIGHT = 4.0  # a class of priority counts as so many times the share
DEADLINE_MARGIN_S = 60.0


@dataclass(frozen=True)
class Candidate:
    """A queued job as the policy sees it; times are seconds since the epoch."""

    job_id: int
    kind: str
    queue: str
    campus: str
    owner: str = ""
    rank_at_s: float = 0.0
    priority: int = 0
    deadline_at_s: float | None = None
    lost: int = 0
    predicted_s: float = 1.0
    predicted_memory_mb: float = 0.0
    max_lost: int = 3
    ready_at_s: float | None = None
    cost: float = 1.0  # share of a slot; see `theon.jobs.predict.slot_cost`

    @property
    def alone(self) -> bool:
        """Whether it has lost so many workers that it must not run beside others."""
        return runs_alone(self.lost, self.max_lost)

    @property
    def partition(self) -> tuple[str, str]:
        """Whose share it takes."""
        return (self.campus, self.owner)


def runs_alone(lost: int, max_lost: int) -> bool:
    """Whether a job runs alone after `lost` lost workers; `RUNS_ALONE` says the same in SQL.

    The last loss that a job may have is then one that no other job caused: whoever dies of the
    company it is in has `lost` below `max_lost` still. Only a kind whose `max_lost` is 1 wants
    that no loss is survived, whoever caused it.
    """
    return lost >= min(QUARANTINE_LOST, max(1, max_lost - 1))


RUNS_ALONE = f"lost >= least({QUARANTINE_LOST}, greatest(1, max_lost - 1))"


@dataclass(frozen=True)
class Running:
    """What is dispatched or running, and what began of late.

    Attributes:
        by_kind: jobs at work per kind.
        by_kind_owner: the same per (kind, owner).
        by_partition: the same per (campus, owner).
        begun_in_minute: attempts begun in the last minute per kind.
        recent: decayed count of what each (campus, owner) had.
    """

    by_kind: Mapping[str, int] = field(default_factory=dict)
    by_kind_owner: Mapping[tuple[str, str], int] = field(default_factory=dict)
    by_partition: Mapping[tuple[str, str], int] = field(default_factory=dict)
    begun_in_minute: Mapping[str, int] = field(default_factory=dict)
    recent: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cap:
    """The limits of a kind; None is no limit."""

    at_once: int | None = None
    at_once_per_owner: int | None = None
    per_minute: float | None = None


@dataclass(frozen=True)
class Limits:
    """Caps per kind, and what is paused for a campus: ("queue" | "kind" | "campus", value)."""

    caps: Mapping[str, Cap] = field(default_factory=dict)
    paused: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Worker:
    """A live worker.

    While there is any room a job is admitted, however much of a slot it takes: else short ones
    would keep a long one waiting for ever.

    Attributes:
        worker_id: its name in the ledger.
        queues: that it serves.
        room: for how many more slots it may be handed jobs.
        busy: what runs on it, and what was handed out and will probably come to it.
        memory_free_mb: of its machine.
        running: what runs on it.
        closed: whether a job runs alone on it, or waits there to do so.
        silent_s: seconds since it was heard of.
    """

    worker_id: str
    queues: frozenset[str]
    room: float
    busy: int = 0
    memory_free_mb: float | None = None
    running: int = 0
    closed: bool = False
    silent_s: float = 0.0


@dataclass(frozen=True)
class Choice:
    """What was decided.

    Attributes:
        chosen: jobs in order.
        waiting: why each other candidate waits, in words.
        alone: of the chosen ones those that are to run alone, and on which worker. It may have
            others still: it begins nothing more until they have ended and this one has.
    """

    chosen: list[int]
    waiting: dict[int, str]
    alone: dict[int, str] = field(default_factory=dict)


def choose(
    candidates: Iterable[Candidate],
    running: Running,
    limits: Limits,
    capacity: Sequence[Worker],
    now_s: float,
) -> Choice:
    """Rank and admit; the result depends on the arguments alone."""
    ledger = _Admission(running, limits, capacity, now_s)
    waves = sorted(candidates, key=lambda c: (c.rank_at_s, c.job_id))
    near = [c for c in waves if _is_near(c, now_s)]
    near.sort(key=lambda c: (c.deadline_at_s or 0.0, c.rank_at_s, c.job_id))
    for candidate in near:
        ledger.consider(candidate)
    taken = {c.job_id for c in near}
    lines: dict[tuple[str, str], deque[Candidate]] = defaultdict(deque)
    for candidate in waves:
        if candidate.job_id not in taken:
            lines[candidate.partition].append(candidate)
    while lines:
        partition = min(lines, key=lambda p: ledger.turn(lines[p][0]))
        # Those that cannot go hold nobody up: the next of the same user is looked at.
        while lines[partition] and not ledger.consider(lines[partition].popleft()):
            pass
        if not lines[partition]:
            del lines[partition]
    return Choice(ledger.chosen, ledger.waiting, ledger.alone)


def _is_near(candidate: Candidate, now_s: float) -> bool:
    if candidate.deadline_at_s is None:
        return False
    return candidate.deadline_at_s - now_s <= 2 * candidate.predicted_s + DEADLINE_MARGIN_S


class _Admission:
    """What is left of every limit while jobs are chosen."""

    def __init__(
        self, running: Running, limits: Limits, capacity: Sequence[Worker], now_s: float
    ) -> None:
        self.chosen: list[int] = []
        self.waiting: dict[int, str] = {}
        self.alone: dict[int, str] = {}
        self._now_s = now_s
        self._limits = limits
        self._kind = Counter(running.by_kind)
        self._kind_owner = Counter(running.by_kind_owner)
        self._begun = Counter(running.begun_in_minute)
        self._load: defaultdict[tuple[str, str], float] = defaultdict(float, running.recent)
        for partition, jobs in running.by_partition.items():
            self._load[partition] += jobs
        self._campus: defaultdict[str, float] = defaultdict(float)
        for (campus, _), load in self._load.items():
            self._campus[campus] += load
        self._workers = list(capacity)
        self._closed = [worker.closed for worker in capacity]
        self._room = [0.0 if worker.closed else worker.room for worker in capacity]
        self._busy = [worker.busy for worker in capacity]
        self._memory = [worker.memory_free_mb for worker in capacity]

    def turn(self, head: Candidate) -> tuple[float, float, float, int]:
        """The smaller, the earlier the partition of `head` has its turn."""
        weight = PRIORITY_WEIGHT**head.priority
        return (
            (self._campus[head.campus] + 1) / weight,
            (self._load[head.partition] + 1) / weight,
            head.rank_at_s,
            head.job_id,
        )

    def consider(self, candidate: Candidate) -> bool:
        """Choose the candidate, or keep why it waits."""
        reason = self._held_back(candidate)
        place = None
        if reason is None:
            place, reason = self._place(candidate)
        if place is None:
            self.waiting[candidate.job_id] = reason or ""
            return False
        self._take(candidate, place)
        return True

    def _held_back(self, c: Candidate) -> str | None:
        paused = self._limits.paused.get(c.campus, frozenset())
        for subject, value in (("queue", c.queue), ("kind", c.kind), ("campus", c.campus)):
            if (subject, value) in paused:
                return f"{subject} {value} is paused"
        cap = self._limits.caps.get(c.kind, Cap())
        if cap.at_once is not None and self._kind[c.kind] >= cap.at_once:
            return f"{c.kind} may run {cap.at_once} at once, and that many do"
        mine = self._kind_owner[(c.kind, c.owner)]
        if cap.at_once_per_owner is not None and mine >= cap.at_once_per_owner:
            who = c.owner or "the system"
            return f"{who} may run {cap.at_once_per_owner} {c.kind} at once, and that many do"
        if cap.per_minute is not None and self._begun[c.kind] + 1 > cap.per_minute:
            return f"{c.kind} may begin {cap.per_minute:g} times a minute, and did"
        return None

    def _place(self, c: Candidate) -> tuple[int | None, str | None]:
        serving = [n for n, worker in enumerate(self._workers) if c.queue in worker.queues]
        if not serving:
            return None, f"no worker serves the queue {c.queue}"
        if c.alone:
            place = self._place_alone(c, serving)
            if place is None:
                return None, f"it lost {c.lost} workers and waits for an idle one, to run alone"
            return place, None
        roomy = [n for n in serving if self._room[n] > 0]
        if not roomy:
            return None, f"no slot is free in the queue {c.queue}"
        fitting = [n for n in roomy if self._fits(n, c)]
        if not fitting:
            return None, f"no worker has {c.predicted_memory_mb:.0f} MB free for it"
        return max(fitting, key=lambda n: (self._room[n], -n)), None

    def _place_alone(self, c: Candidate, serving: list[int]) -> int | None:
        """An idle worker; if there has been none for a while, one that is emptied for it."""
        open_ones = [
            n for n in serving if not self._closed[n] and self._workers[n].silent_s <= SILENT_S
        ]
        idle = [n for n in open_ones if self._busy[n] == 0 and self._room[n] > 0]
        if idle:
            return max(idle, key=lambda n: (self._room[n], -n))
        if c.ready_at_s is None or self._now_s - c.ready_at_s < EMPTY_AFTER_S or not open_ones:
            return None
        # The others must go on: at most half of the workers, and the only one, are closed.
        if 2 * sum(self._closed[n] for n in serving) >= max(len(serving), 1):
            return None
        return min(open_ones, key=lambda n: (self._workers[n].running, n))

    def _fits(self, number: int, c: Candidate) -> bool:
        free = self._memory[number]
        # An idle worker takes what it cannot foresee, for else a large job would never run.
        return free is None or self._busy[number] == 0 or c.predicted_memory_mb <= free

    def _take(self, c: Candidate, place: int) -> None:
        self.chosen.append(c.job_id)
        self._kind[c.kind] += 1
        self._kind_owner[(c.kind, c.owner)] += 1
        self._begun[c.kind] += 1
        self._load[c.partition] += 1
        self._campus[c.campus] += 1
        self._busy[place] += 1
        self._room[place] -= c.cost
        if c.alone:
            self.alone[c.job_id] = self._workers[place].worker_id
            self._closed[place] = True
            self._room[place] = 0.0
        free = self._memory[place]
        if free is not None:
            self._memory[place] = free - c.predicted_memory_mb
