"""What happens when, and which jobs there are: all of it from the seed."""

from dataclasses import dataclass
from random import Random

from tests.system.chaos_kinds import Work
from theon.jobs.enqueue import NewJob

CHAOS_S = 90.0
JOBS = 600
LAST_JOBS_S = 75.0
LONGER_THAN_A_LEASE_S = 34.0

# How often each is done, in proportion.
ACTIONS = {
    "kill worker": 4,
    "kill worker-tree": 2,
    "kill jobs": 9,
    "kill dispatcher": 4,
    "kill postmaster": 3,
    "kill postgres": 2,
    "kill redis": 3,
    "flush redis": 3,
    "freeze redis": 1,
    "freeze worker": 2,
    "freeze dispatcher": 2,
}


@dataclass(frozen=True)
class Event:
    """At `at_s` of the run, `action` is done; a freeze takes `freeze_s`."""

    at_s: float
    action: str
    freeze_s: float


def events(random: Random) -> list[Event]:
    """Something every other second, and three freezes that outlast a lease."""
    found = [
        Event(random.uniform(6, 12), "freeze worker", LONGER_THAN_A_LEASE_S),
        Event(random.uniform(20, 30), "freeze dispatcher", LONGER_THAN_A_LEASE_S),
        Event(random.uniform(48, 54), "freeze worker", LONGER_THAN_A_LEASE_S),
    ]
    at_s = 3.0
    while at_s < CHAOS_S - 1:
        (action,) = random.choices(list(ACTIONS), list(ACTIONS.values()))
        found.append(Event(at_s, action, min(random.uniform(1, 7), CHAOS_S - at_s)))
        at_s += random.uniform(1.2, 2.8)
    return sorted(found, key=lambda event: event.at_s)


@dataclass(frozen=True)
class Batch:
    """Jobs that are enqueued in one transaction at `at_s`."""

    at_s: float
    jobs: list[NewJob]


def batches(random: Random) -> list[Batch]:
    """A third of the jobs at once, with the poison; the others bit by bit."""
    new = [_job(random, n) for n in range(JOBS - 6)]
    first = [
        *new[:200],
        *(_new("chaos.poison", f"poison {n}", 0.3, priority="urgent") for n in range(3)),
        *(_new("chaos.short", f"heir {n}", 0.1, after=[f"poison {n}"]) for n in range(3)),
    ]
    found = [Batch(0.0, first)]
    rest = new[200:]
    size = 12
    gap_s = LAST_JOBS_S * size / len(rest)
    for number, start in enumerate(range(0, len(rest), size)):
        found.append(Batch((number + 1) * gap_s, _with_needs(random, rest[start : start + size])))
    return found


def _job(random: Random, n: int) -> NewJob:
    (kind,) = random.choices(["short", "effect", "long", "flaky", "unlucky"], [50, 25, 10, 13, 2])
    seconds = {
        "short": random.uniform(0, 0.4),
        "effect": random.choice([0.0, 0.2, 0.5, 2.0]),
        "long": random.uniform(1.0, 3.0),
        "flaky": 0.0,
        "unlucky": random.uniform(0, 0.5),
    }[kind]
    failures = random.randint(1, 3) if kind == "flaky" else 0
    return _new(f"chaos.{kind}", f"job {n}", seconds, failures=failures)


def _new(
    kind: str, name: str, seconds: float, failures: int = 0, priority: str = "normal",
    after: list[str] | None = None,
) -> NewJob:  # fmt: skip
    return NewJob(
        kind,
        Work(round(seconds, 3), failures),
        priority=priority,
        idempotency_key=name,
        label=name,
        after=after or [],
    )


def _with_needs(random: Random, jobs: list[NewJob]) -> list[NewJob]:
    """A few of them need one or two earlier ones of the same batch."""
    found: list[NewJob] = []
    for job in jobs:
        names = [other.label for other in found if other.label]
        needs = random.sample(names, min(len(names), 2)) if random.random() < 0.2 else []
        found.append(
            NewJob(
                job.kind, job.arguments, idempotency_key=job.idempotency_key, label=job.label,
                after=needs,
            )
        )  # fmt: skip
    return found
