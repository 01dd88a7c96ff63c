"""Why a job waits, in a sentence for its page."""

import time

from sqlalchemy import Connection, text

from theon.jobs import policy, situation
from theon.jobs.kinds import Kinds

_JOB = """
SELECT j.state, j.reason, j.waits_for, j.kind, j.queue, c.slug, j.owner, j.lost, j.max_lost,
    to_char(j.ready_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS due,
    (SELECT array_agg(d.needs_id ORDER BY d.needs_id) FROM (
        SELECT needs_id FROM theon.job_dependencies AS d JOIN theon.jobs AS n ON n.id = d.needs_id
        WHERE d.job_id = j.id AND n.state <> 'completed' LIMIT 5) AS d) AS needs
FROM theon.jobs AS j JOIN theon.campuses AS c ON c.id = j.campus_id WHERE j.id = :id"""


def why_waiting(conn: Connection, job_id: int, kinds: Kinds) -> str:
    """The sentence; empty for a job that does not wait or that the scope does not see.

    Caps and slots are those that the scope of `conn` sees: use the district's for the truth.
    """
    job = conn.execute(text(_JOB), {"id": job_id}).one_or_none()
    if job is None or job.state not in ("scheduled", "queued"):
        return ""
    if job.state == "scheduled":
        if job.waits_for:
            which = f": {', '.join(map(str, job.needs))}" if job.needs else ""
            if job.waits_for == 1:
                return f"it needs a job that is not completed{which}"
            return f"it needs {job.waits_for} jobs that are not completed{which}"
        return f"its time comes at {job.due} UTC ({job.reason})"
    now = situation.read(conn, kinds)
    choice = policy.choose(
        [
            policy.Candidate(
                job_id,
                job.kind,
                job.queue,
                job.slug,
                job.owner,
                lost=job.lost,
                max_lost=job.max_lost,
            )
        ],
        now.running,
        now.limits,
        now.workers,
        time.time(),
    )
    return choice.waiting.get(job_id, "it may run now; others have their turn before it")
