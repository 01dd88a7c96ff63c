"""What the policy does to waits, shares and deadlines, in a discrete-event simulation.

    python -m bench.jobs_simulation [--csv attempts.csv] [--seed 7] [--slots 8]

The CSV holds rows of theon.job_attempts with a column `campus`; `started_at`, `ended_at` (ISO)
and `waited_s` say when a job was ready and how long it took.
"""

import argparse
import csv
import heapq
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, quantiles

from theon.jobs.enqueue import AGEING_S
from theon.jobs.policy import Candidate, Limits, Running, Worker, choose


@dataclass(frozen=True)
class Load:
    """One job: when it is ready, how long it takes, and what the policy sees of it."""

    ready_s: float
    took_s: float
    seen: Candidate


def synthetic(seed: int, jobs: int = 1500) -> list[Load]:
    """Three campuses with steady work; one of them floods at the start of the hour."""
    chance = random.Random(seed)  # noqa: S311 - a simulation
    loads = []
    for number in range(jobs):
        flood = number < jobs // 2
        campus = "north" if flood else chance.choice(["north", "south", "east"])
        ready_s = chance.uniform(0, 60) if flood else chance.uniform(0, 900)
        kind, mean_s = chance.choice([("report", 4.0), ("reward", 0.5), ("import", 10.0)])
        took_s = chance.expovariate(1 / mean_s)
        priority = chance.choices([2, 0, -2], [5, 85, 10])[0]
        deadline_s = ready_s + chance.uniform(60, 400) if chance.random() < 0.1 else None
        owner = f"{campus}-{chance.randrange(5)}"
        loads.append(_load(number, ready_s, took_s, kind, campus, owner, priority, deadline_s))
    return loads


def recorded(path: Path) -> list[Load]:
    """The loads of attempts that were recorded."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    loads = []
    for number, row in enumerate(rows):
        began, ended = (
            datetime.fromisoformat(row[c]).timestamp() for c in ("started_at", "ended_at")
        )
        ready_s = began - float(row["waited_s"])
        loads.append(_load(number, ready_s, ended - began, row["kind"], row["campus"], "", 0, None))
    first_s = min((load.ready_s for load in loads), default=0.0)
    return [Load(load.ready_s - first_s, load.took_s, load.seen) for load in loads]


def _load(
    number: int, ready_s: float, took_s: float, kind: str, campus: str, owner: str,
    priority: int, deadline_s: float | None,
) -> Load:  # fmt: skip
    rank_s = ready_s - priority * AGEING_S
    seen = Candidate(
        number, kind, "q", campus, owner, rank_s, priority, deadline_s, predicted_s=took_s
    )
    return Load(ready_s, took_s, seen)


Pick = Callable[[list[Load], Counter[tuple[str, str]], int, float], list[int]]


def by_policy(
    waiting: list[Load], at_work: Counter[tuple[str, str]], room: int, now_s: float
) -> list[int]:
    """The policy of the product."""
    live = [Worker("w", frozenset({"q"}), room)]
    seen = [load.seen for load in waiting]
    return choose(seen, Running(by_partition=at_work), Limits(), live, now_s).chosen


def first_in_first_out(
    waiting: list[Load], _at_work: Counter[tuple[str, str]], room: int, _now_s: float
) -> list[int]:
    """The one that was ready first."""
    order = sorted(waiting, key=lambda load: load.ready_s)
    return [load.seen.job_id for load in order[:room]]


def plain_priority(
    waiting: list[Load], _at_work: Counter[tuple[str, str]], room: int, _now_s: float
) -> list[int]:
    """The highest class, in it the first; no ageing, no shares."""
    order = sorted(waiting, key=lambda load: (-load.seen.priority, load.ready_s))
    return [load.seen.job_id for load in order[:room]]


def simulate(loads: list[Load], slots: int, pick: Pick) -> dict[str, float]:
    """Run all loads; waits, two Jain indexes of the campuses, and missed deadlines.

    `fair_shares` is of the slots that campuses hold while more than one has jobs waiting,
    weighted by time; `fair_speeds` is of the mean of time at work / time in the system.
    `others` are the campuses that do not have the most jobs.
    """
    coming = sorted(loads, key=lambda load: load.ready_s)
    waiting: dict[int, Load] = {}
    ends: list[tuple[float, int]] = []
    at_work: Counter[tuple[str, str]] = Counter()
    by_id = {load.seen.job_id: load for load in loads}
    begun: dict[int, float] = {}
    place, now_s = 0, 0.0
    shares: list[tuple[float, float]] = []  # seconds, index
    while place < len(coming) or waiting or ends:
        nexts = [ends[0][0]] if ends else []
        if place < len(coming):
            nexts.append(coming[place].ready_s)
        passed_s = max(now_s, min(nexts)) - now_s
        rivals = {load.seen.campus for load in waiting.values()}
        if passed_s > 0 and len(rivals) > 1:
            held = [sum(n for p, n in at_work.items() if p[0] == rival) for rival in rivals]
            shares.append((passed_s, _jain(held)))
        now_s += passed_s
        while ends and ends[0][0] <= now_s:
            at_work[by_id[heapq.heappop(ends)[1]].seen.partition] -= 1
        while place < len(coming) and coming[place].ready_s <= now_s:
            waiting[coming[place].seen.job_id] = coming[place]
            place += 1
        if len(ends) < slots and waiting:
            for job_id in pick(list(waiting.values()), at_work, slots - len(ends), now_s):
                load = waiting.pop(job_id)
                begun[job_id] = now_s
                at_work[load.seen.partition] += 1
                heapq.heappush(ends, (now_s + load.took_s, job_id))
    contended_s = sum(seconds for seconds, _ in shares)
    fair = sum(seconds * index for seconds, index in shares) / contended_s if shares else 1.0
    return {"fair_shares": fair, **_measures(loads, begun)}


def _jain(values: Sequence[float]) -> float:
    squares = sum(x * x for x in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def _measures(loads: list[Load], begun: dict[int, float]) -> dict[str, float]:
    waits = [begun[load.seen.job_id] - load.ready_s for load in loads]
    campuses: defaultdict[str, list[float]] = defaultdict(list)
    missed = 0
    for load, wait_s in zip(loads, waits, strict=True):
        campuses[load.seen.campus].append(load.took_s / (wait_s + load.took_s + 1e-9))
        deadline_s = load.seen.deadline_at_s
        missed += deadline_s is not None and load.ready_s + wait_s + load.took_s > deadline_s
    largest = Counter(load.seen.campus for load in loads).most_common(1)[0][0]
    others = [w for load, w in zip(loads, waits, strict=True) if load.seen.campus != largest]
    speeds = [fmean(values) for values in campuses.values()]
    return {
        "mean_wait_s": fmean(waits),
        "others_mean_wait_s": fmean(others) if others else 0.0,
        "p95_wait_s": quantiles(waits, n=20)[-1],
        "fair_speeds": _jain(speeds),
        "missed_deadlines": missed,
    }


def main() -> None:
    """Print a table and write it as JSON beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--slots", type=int, default=8)
    given = parser.parse_args()
    loads = recorded(given.csv) if given.csv else synthetic(given.seed)
    rules: dict[str, Pick] = {
        "policy": by_policy, "first in first out": first_in_first_out,
        "plain priority": plain_priority,
    }  # fmt: skip
    results = {name: simulate(loads, given.slots, pick) for name, pick in rules.items()}
    print(
        "| rule | mean wait s | mean of the smaller campuses s |"
        " p95 wait s | fair shares | fair speeds | missed deadlines |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, r in results.items():
        print(
            f"| {name} | {r['mean_wait_s']:.1f} | {r['others_mean_wait_s']:.1f} |"
            f" {r['p95_wait_s']:.1f} |"
            f" {r['fair_shares']:.3f} | {r['fair_speeds']:.3f} | {r['missed_deadlines']:.0f} |"
        )
    target = Path(__file__).with_name("jobs_simulation.json")
    target.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
