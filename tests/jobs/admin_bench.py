"""Jobs that tests put, begin and end by hand, and what the tables say of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from theon.jobs import ledger
from theon.jobs.enqueue import NewJob, enqueue_many
from theon.jobs.kinds import Kinds, job
from theon.jobs.ledger import Message, Outcome
from theon.store.engine import Store
from theon.store.scope import Scope

DISTRICT = Scope.district()


@dataclass(frozen=True)
class Count:
    """How far to count."""

    upto: int = 1


@job("test.count", queue="test", max_attempts=2, size=lambda args: args.upto, timeout_s=77)
def count(ctx: Any, args: Count) -> None:
    """Count."""


@job("other.count", queue="other")
def other_count(ctx: Any, args: Count) -> None:
    """Count elsewhere."""


KINDS = Kinds([count, other_count])


def put(store: Store, *new: NewJob) -> list[int]:
    with store.transaction(DISTRICT) as conn:
        return enqueue_many(conn, KINDS, new or [NewJob("test.count")])


def do(store: Store, function: Callable[..., Any], *args: Any, scope: str = "district") -> Any:
    with store.transaction(Scope(scope)) as conn:
        return function(conn, *args)


def begin(store: Store, *ids: int) -> list[Message]:
    with store.transaction(DISTRICT) as conn:
        ledger.promote(conn)
        return [a.message for a in ledger.start(conn, ledger.dispatch(conn, ids), "w")]


def end(store: Store, messages: Sequence[Message], outcome: str = "failed") -> None:
    with store.transaction(DISTRICT) as conn:
        given = [Outcome(m.job_id, m.token, outcome, transient=False, error="e") for m in messages]
        ledger.finish(conn, given)


def row(store: Store, job_id: int) -> Any:
    with store.transaction(DISTRICT) as conn:
        return conn.execute(text("SELECT * FROM theon.jobs WHERE id = :id"), {"id": job_id}).one()


def states(store: Store, ids: Sequence[int]) -> list[str]:
    return [row(store, job_id).state for job_id in ids]


def audit(store: Store) -> list[tuple[str, str, str]]:
    with store.transaction(DISTRICT) as conn:
        found = conn.execute(text("SELECT actor, action, subject FROM theon.job_audit ORDER BY id"))
        return [(actor, action, subject) for actor, action, subject in found]


def detail(store: Store) -> list[dict[str, Any]]:
    with store.transaction(DISTRICT) as conn:
        found = conn.execute(text("SELECT detail FROM theon.job_audit ORDER BY id"))
        return list(found.scalars())
