"""What must be true after the chaos; each check gives sentences about what is not."""

from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from tests.system.chaos_kinds import WITH_EFFECT
from theon.jobs.policy import runs_alone
from theon.jobs.states import ENDED, State, may_become
from theon.store.engine import Store
from theon.store.scope import Scope

JOBS = """
SELECT id, kind, idempotency_key AS name, state, attempts, max_attempts, lost, max_lost, reason,
    error_kind FROM theon.jobs ORDER BY id"""
ATTEMPTS = """
SELECT job_id, token, worker, outcome, error_kind, started_at, ended_at FROM theon.job_attempts
ORDER BY job_id, token"""
HISTORY = """
SELECT job_id, before, after, at, token, attempt, worker, reason FROM theon.job_history
ORDER BY job_id, id"""
NEEDS = """
SELECT d.job_id, d.needs_id, min(a.started_at) AS begun, n.ended_at AS needed
FROM theon.job_dependencies AS d JOIN theon.jobs AS n ON n.id = d.needs_id
JOIN theon.job_attempts AS a ON a.job_id = d.job_id GROUP BY 1, 2, 4"""


def read(store: Store, statement: str) -> list[Any]:
    with store.transaction(Scope.district()) as conn:
        return list(conn.execute(text(statement)).all())


def open_jobs(store: Store) -> list[Any]:
    return [job for job in read(store, JOBS) if State(job.state) not in ENDED]


def stories(store: Store, ids: set[int]) -> str:
    """The history of jobs, for people."""
    lines: list[str] = []
    for row in read(store, HISTORY):
        if row.job_id in ids:
            lines.append(
                f"job {row.job_id} {row.at:%H:%M:%S.%f} {row.before} → {row.after}, token"
                f" {row.token}, attempt {row.attempt}, {row.worker}: {row.reason}"
            )
    return "\n".join(lines)


def faults(store: Store, expected: int) -> dict[int, list[str]]:
    """Job id to what is wrong with it; 0 for what concerns no single job."""
    jobs = read(store, JOBS)
    attempts: dict[int, list[Any]] = defaultdict(list)
    for row in read(store, ATTEMPTS):
        attempts[row.job_id].append(row)
    found: dict[int, list[str]] = defaultdict(list)
    if len(jobs) != expected:
        found[0].append(f"{len(jobs)} jobs are in the ledger and {expected} were put there")
    effects = Counter(row.job_id for row in read(store, "SELECT job_id FROM theon.chaos_effects"))
    for job in jobs:
        found[job.id] += _ended_as_it_should(job)
        found[job.id] += _once(job, attempts[job.id], effects[job.id])
    for job_id, words in _illegal_paths(store, jobs):
        found[job_id].append(words)
    for job_id, words in _company(jobs, attempts):
        found[job_id].append(words)
    for row in read(store, NEEDS):
        if row.needed is None or row.begun < row.needed:
            found[row.job_id].append(f"it began before job {row.needs_id}, which it needs, ended")
    return {job_id: words for job_id, words in found.items() if words}


def summary(store: Store) -> str:
    """What the jobs went through, to see that the chaos was one."""
    outcomes = Counter(
        f"{row.outcome} {row.error_kind or ''}".rstrip() for row in read(store, ATTEMPTS)
    )
    jobs = read(store, JOBS)
    alone = sum(runs_alone(job.lost, job.max_lost) for job in jobs)
    begun = min(row.at for row in read(store, HISTORY))
    ended = Counter(
        int((row.at - begun).total_seconds() // 10)
        for row in read(store, HISTORY)
        if State(row.after) in ENDED
    )
    pace = " ".join(str(ended[n]) for n in range(max(ended, default=0) + 1))
    ways = ", ".join(f"{n} {name}" for name, n in sorted(outcomes.items()))
    return (
        f"jobs ended in each ten seconds: {pace}; attempts: {ways};"
        f" {alone} of {len(jobs)} jobs came to run alone, the unluckiest innocent lost"
        f" {max(job.lost for job in jobs if job.kind != 'chaos.poison')} workers"
    )


def _ended_as_it_should(job: Any) -> list[str]:
    words = []
    if job.kind == "chaos.poison":
        if (job.state, job.lost) != ("failed", job.max_lost):
            words.append(f"a poison job is {job.state} after {job.lost} losses ({job.reason})")
    elif job.name.startswith("heir"):
        if (job.state, job.error_kind) != ("failed", "DependencyError"):
            words.append(f"it needs a poison job and is {job.state} ({job.reason})")
    elif job.state != "completed":
        words.append(f"an innocent job is {job.state}, lost {job.lost} ({job.reason})")
    if not 0 <= job.attempts <= job.max_attempts:
        words.append(f"{job.attempts} attempts, at most {job.max_attempts} were allowed")
    return words


def _once(job: Any, attempts: list[Any], effects: int) -> list[str]:
    words = []
    completed = sum(a.outcome == "completed" for a in attempts)
    if completed != (job.state == "completed"):
        words.append(f"it is {job.state} and {completed} attempts completed")
    wanted = int(job.state == "completed" and job.kind in WITH_EFFECT)
    if effects != wanted:
        words.append(f"it has {effects} effects, not {wanted}")
    return words


def _illegal_paths(store: Store, jobs: list[Any]) -> list[tuple[int, str]]:
    words = []
    states: dict[int, str] = {}
    for row in read(store, HISTORY):
        known = states.get(row.job_id)
        if row.before != known:
            words.append((row.job_id, f"its history goes on from {row.before}, not {known}"))
        if known is not None and not may_become(State(known), State(row.after)):
            words.append((row.job_id, f"it went from {known} to {row.after}"))
        states[row.job_id] = row.after
    for job in jobs:
        if states.get(job.id) != job.state:
            words.append((job.id, f"it is {job.state}, its history ends at {states.get(job.id)}"))
    return words


def _heard_late(attempt: Any) -> timedelta:
    """A lease that ended while the database was away is taken back a moment after it is there."""
    return timedelta(seconds=2 if attempt.outcome == "lost" else 0)


def _company(jobs: list[Any], attempts: dict[int, list[Any]]) -> list[tuple[int, str]]:
    """Rule 5: after two losses a job runs alone, so nobody dies of the company it was in."""
    on_worker: dict[str, list[Any]] = defaultdict(list)
    for rows in attempts.values():
        for row in rows:
            on_worker[row.worker].append(row)
    words = []
    for job in jobs:
        lost = 0
        for own in attempts[job.id]:
            if runs_alone(lost, job.max_lost):
                beside = [
                    other.job_id
                    for other in on_worker[own.worker]
                    if other is not own
                    and other.started_at < own.ended_at
                    and other.ended_at > own.started_at + _heard_late(other)
                ]
                if beside:
                    words.append((job.id, f"after {lost} losses it ran beside {beside}"))
            lost += own.outcome == "lost"
    return words
