"""The states of a job and the one table of transitions between them.

The database's trigger knows the same table (`theon.jobs_updated`) and refuses every other change
of state, so no code path, however wrong, can make the ledger lie.
"""

from enum import StrEnum


class State(StrEnum):
    """Where a job is. Pages and the API use the same words."""

    SCHEDULED = "scheduled"  # waits for its time or for other jobs
    QUEUED = "queued"  # may run now, waits for a slot
    DISPATCHED = "dispatched"  # handed to a delivery under a token
    RUNNING = "running"  # an attempt has begun
    COMPLETED = "completed"
    FAILED = "failed"  # the dead letter
    CANCELLED = "cancelled"


TRANSITIONS: dict[tuple[State, State], str] = {
    (State.SCHEDULED, State.QUEUED): "its time came and all that it needs is completed",
    (State.SCHEDULED, State.CANCELLED): "cancelled before it was due",
    (State.SCHEDULED, State.FAILED): "a job that it needs failed or was cancelled",
    (State.QUEUED, State.DISPATCHED): "chosen by the policy and handed to a delivery",
    (State.QUEUED, State.CANCELLED): "cancelled while waiting",
    (State.DISPATCHED, State.RUNNING): "a worker began an attempt",
    (State.DISPATCHED, State.QUEUED): "no worker began it before the dispatch lease ended",
    (State.DISPATCHED, State.FAILED): "its code is gone",
    (State.DISPATCHED, State.CANCELLED): "cancelled before a worker began it",
    (State.RUNNING, State.COMPLETED): "the attempt ended well",
    (
        State.RUNNING,
        State.SCHEDULED,
    ): "the attempt failed or its worker was lost; it will be retried",
    (State.RUNNING, State.QUEUED): "given back without fault: the worker drains",
    (State.RUNNING, State.FAILED): "no attempt is left, or the error is permanent",
    (State.RUNNING, State.CANCELLED): "cancelled while running; its process was ended",
    (State.FAILED, State.SCHEDULED): "a person retried the dead letter",
    (State.FAILED, State.CANCELLED): "a person discarded the dead letter",
    (State.CANCELLED, State.SCHEDULED): "a person retried the cancelled job",
}

ENDED = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})
WAITING = frozenset({State.SCHEDULED, State.QUEUED})


def may_become(before: State, after: State) -> bool:
    """Whether the ledger allows this change of state."""
    return (before, after) in TRANSITIONS
