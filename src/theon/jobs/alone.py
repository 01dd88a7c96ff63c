"""The ledger's moves for jobs that run alone on a worker: see `policy.runs_alone`."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from theon.jobs.ledger import DISPATCH_LEASE_S, Message, pairs
from theon.jobs.policy import RUNS_ALONE


def dispatch_alone(
    conn: Connection, places: Mapping[int, str], *, lease_s: float = DISPATCH_LEASE_S
) -> list[Message]:
    """Mark queued jobs as handed to the worker that `places` names; others are left alone.

    No message is sent: a broker brings messages to whoever comes first. The worker finds them
    with `hold`.
    """
    found = conn.execute(
        text(
            "WITH held AS (SELECT j.id, p.worker FROM theon.jobs AS j JOIN"
            "   unnest(CAST(:ids AS bigint[]), CAST(:workers AS text[])) AS p (id, worker)"
            "   ON p.id = j.id WHERE j.state = 'queued' ORDER BY j.id FOR UPDATE OF j SKIP LOCKED)"
            " UPDATE theon.jobs AS j SET state = 'dispatched', token = j.token + 1,"
            "  worker = h.worker, changed_at = clock_timestamp(),"
            "  lease_until = clock_timestamp() + make_interval(secs => :lease_s),"
            "  reason = 'handed to one worker, to run alone there'"
            " FROM held AS h WHERE j.id = h.id RETURNING j.id, j.token"
        ),
        {"ids": list(places), "workers": list(places.values()), "lease_s": lease_s},
    )
    return [Message(job_id, token) for job_id, token in found]


def hold(
    conn: Connection,
    messages: Sequence[Message],
    worker: str,
    *,
    lease_s: float = DISPATCH_LEASE_S,
) -> list[Message]:
    """Keep what was dispatched and runs alone, until the worker has nothing else.

    Returns:
        What was handed to this worker by name, and those of `messages` that run alone. Their
        dispatch leases are renewed.
    """
    found = conn.execute(
        text(
            "UPDATE theon.jobs SET worker = :worker,"
            " lease_until = clock_timestamp() + make_interval(secs => :lease_s)"
            " WHERE id IN (SELECT id FROM theon.jobs WHERE state = 'dispatched' AND (worker ="
            f"  :worker OR worker IS NULL AND {RUNS_ALONE} AND (id, token) IN (SELECT * FROM"
            "    unnest(CAST(:ids AS bigint[]), CAST(:tokens AS bigint[]))))"
            "  ORDER BY id FOR UPDATE SKIP LOCKED) RETURNING id, token"
        ),
        {**pairs(messages), "worker": worker, "lease_s": lease_s},
    )
    return [Message(job_id, token) for job_id, token in found]
