"""What people do to jobs, queues and workers: cancel, retry, discard, prioritise, pause, drain.

Every function works in the caller's transaction and sees the jobs of its scope. Each writes a
line of the audit in the same transaction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.jobs import moves
from theon.jobs.audit import write_audit
from theon.jobs.context import clean
from theon.jobs.errors import DependencyError
from theon.jobs.kinds import Kinds
from theon.jobs.moves import Done
from theon.jobs.query import FIRST_ID_AFTER_ALL, NoSuchJobError, find_ids
from theon.jobs.search import JobFilter
from theon.jobs.situation import ALIVE_S
from theon.store.engine import Store
from theon.store.scope import Scope

JOBS_PER_BATCH = 2_000
IDS_IN_AUDIT = 200
COUNTED_AT_MOST = 100_000
SAMPLE_JOBS = 20
PAUSABLE = ("queue", "kind", "campus")


@dataclass(frozen=True)
class Action:
    """An action for many jobs.

    Attributes:
        name: `cancel`, `retry`, `discard` or `prioritise`.
        reason: why, in words.
        priority: the new one, of `prioritise`.
        arguments: for all of the jobs, of `retry`; their own unless given.
    """

    name: str
    reason: str = ""
    priority: str | None = None
    arguments: Any = None

    def __post_init__(self) -> None:
        """Refuse an action that cannot be.

        Raises:
            InputError: there is none of this name, or no such priority.
        """
        if self.name not in moves.STATES:
            raise InputError(
                f"there is no action {self.name!r}",
                where="jobs",
                next_step=f"Choose one of {', '.join(moves.STATES)}.",
            )
        if self.name == "prioritise":
            moves.priority_of(self.priority or "")

    @property
    def states(self) -> tuple[str, ...]:
        """Of the jobs that it is for; others are left alone."""
        return moves.STATES[self.name]


@dataclass(frozen=True)
class Preview:
    """What an action would change: how many jobs, and the ids of some, newest first.

    `exact` is False where there are more than were counted.
    """

    count: int
    exact: bool
    sample: tuple[int, ...]


# -- jobs by id ----------------------------------------------------------------------------


def cancel(conn: Connection, ids: Sequence[int], actor: str, reason: str = "") -> Done:
    """Cancel jobs that have not ended; those that wait for them fail.

    A job that does not run is cancelled at once, a running one when its worker ended its process.

    Raises:
        NoSuchJobError: the scope does not see one of them; nothing is cancelled.
    """
    done = moves.cancel(conn, _all(ids, moves.lock(conn, ids)), actor, reason)
    _record(conn, "cancel", ids, done, actor, {"reason": reason})
    return done


def retry(
    conn: Connection, kinds: Kinds, ids: Sequence[int], actor: str, arguments: Any = None
) -> Done:
    """Run failed and cancelled jobs again, from their last checkpoint.

    Failures and lost workers are counted anew; the history stays. With other arguments the
    checkpoint is dropped, for it belongs to the old ones. Limits are those that the kind has now.

    Raises:
        NoSuchJobError: the scope does not see one of them.
        DependencyError: one needs a job that failed or was cancelled and is not among them.
        UnknownKindError: arguments are given, and nobody declares the kind.
        InputError: the arguments do not fit.
    """
    rows = _all(ids, moves.lock_to_retry(conn, ids))
    done = moves.retry(conn, kinds, rows, actor, arguments)
    for job_id, why in done.refused.items():
        raise DependencyError(why, where=f"job {job_id}", next_step="Retry that one with it.")
    detail = {} if arguments is None else {"arguments": arguments}
    _record(conn, "retry", ids, done, actor, detail)
    return done


def discard(conn: Connection, ids: Sequence[int], actor: str, reason: str = "") -> Done:
    """Put dead letters aside: they are cancelled, and can still be retried.

    Raises:
        NoSuchJobError: the scope does not see one of them.
    """
    done = moves.discard(conn, _all(ids, moves.lock(conn, ids)), actor, reason)
    _record(conn, "discard", ids, done, actor, {"reason": reason})
    return done


def prioritise(conn: Connection, ids: Sequence[int], priority: str, actor: str) -> Done:
    """Give jobs that have not ended another priority; it counts from the next choice on.

    Raises:
        NoSuchJobError: the scope does not see one of them.
        InputError: there is no such priority.
    """
    done = moves.prioritise(conn, _all(ids, moves.lock(conn, ids)), priority)
    _record(conn, "prioritise", ids, done, actor, {"priority": priority})
    return done


def _all(ids: Sequence[int], rows: list[moves.Locked]) -> list[moves.Locked]:
    missing = sorted(set(ids) - {row.id for row in rows})
    if missing:
        raise NoSuchJobError(
            f"there is no job {missing[0]} in this scope",
            where="jobs",
            next_step="Nothing was changed. It may be of another campus, or removed.",
        )
    return rows


# -- jobs by filter ------------------------------------------------------------------------


def preview(conn: Connection, chosen: JobFilter, action: str = "cancel") -> Preview:
    """How many jobs an action by this filter would be for, and some of them.

    Raises:
        InputError: there is no such action, or the scope does not see a campus of the filter.
    """
    ids: list[int] = []
    for batch in _matching(conn, chosen, action):
        ids += batch
        if len(ids) > COUNTED_AT_MOST:
            break
    exact = len(ids) <= COUNTED_AT_MOST
    return Preview(min(len(ids), COUNTED_AT_MOST), exact, tuple(ids[:SAMPLE_JOBS]))


def apply(conn: Connection, kinds: Kinds, action: Action, chosen: JobFilter, actor: str) -> Done:
    """Do something to all jobs that match, in the caller's transaction: all or nothing.

    What it does not fit is skipped, and why is told. Of very many jobs, `apply_in_batches` does
    not keep others waiting.

    Raises:
        InputError: the scope does not see a campus of the filter, or arguments do not fit a job.
        UnknownKindError: arguments are given, and nobody declares the kind of a job.
    """
    ids = sorted(job_id for batch in _matching(conn, chosen, action.name) for job_id in batch)
    parts = [_act(conn, kinds, action, batch, actor) for batch in _batches(ids)]
    done = _sum(parts)
    _record(conn, action.name, ids, done, actor, _detail(action, chosen))
    return done


def apply_in_batches(
    store: Store, scope: Scope, kinds: Kinds, action: Action, chosen: JobFilter, actor: str
) -> Done:
    """Do something to the jobs that match now, a few thousand per transaction.

    Each transaction writes its line of the audit, with the filter and its count: what was done
    before an error stays done and is on record.

    Raises:
        InputError, UnknownKindError: see `apply`.
    """
    with store.transaction(scope) as conn:
        ids = sorted(job_id for batch in _matching(conn, chosen, action.name) for job_id in batch)
    parts = []
    for batch in _batches(ids):
        with store.transaction(scope) as conn:
            done = _act(conn, kinds, action, batch, actor)
            _record(conn, action.name, batch, done, actor, _detail(action, chosen))
        parts.append(done)
    return _sum(parts)


def _matching(conn: Connection, chosen: JobFilter, action: str) -> Iterator[list[int]]:
    """The ids of the jobs that match and that the action is for, newest first, in parts."""
    states = Action(action, priority="normal").states
    wanted = tuple(s for s in states if not chosen.states or s in chosen.states)
    before: int | None = FIRST_ID_AFTER_ALL if wanted else None
    while before is not None:
        fitting = replace(chosen, states=wanted)
        ids, scanned_to = find_ids(conn, fitting, before=before, limit=JOBS_PER_BATCH)
        yield ids
        # A part that is full goes on after its last; one that looked at enough, where it stopped.
        before = ids[-1] if len(ids) == JOBS_PER_BATCH else scanned_to


def _batches(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Oldest first: what others need comes before them."""
    for start in range(0, len(ids), JOBS_PER_BATCH):
        yield ids[start : start + JOBS_PER_BATCH]


def _act(conn: Connection, kinds: Kinds, action: Action, ids: Sequence[int], actor: str) -> Done:
    if action.name == "retry":
        return moves.retry(conn, kinds, moves.lock_to_retry(conn, ids), actor, action.arguments)
    rows = moves.lock(conn, ids)
    if action.name == "cancel":
        return moves.cancel(conn, rows, actor, action.reason)
    if action.name == "discard":
        return moves.discard(conn, rows, actor, action.reason)
    return moves.prioritise(conn, rows, action.priority or "")


def _sum(parts: Sequence[Done]) -> Done:
    return Done(
        tuple(job_id for part in parts for job_id in part.changed),
        tuple(job_id for part in parts for job_id in part.asked),
        {job_id: why for part in parts for job_id, why in part.skipped.items()},
        {job_id: why for part in parts for job_id, why in part.refused.items()},
    )


def _detail(action: Action, chosen: JobFilter) -> dict[str, Any]:
    said = {"reason": action.reason, "priority": action.priority, "arguments": action.arguments}
    return {"filter": chosen.as_json(), **{k: v for k, v in said.items() if v not in ("", None)}}


# -- pauses --------------------------------------------------------------------------------


def pause(
    conn: Connection,
    kinds: Kinds,
    subject: str,
    value: str,
    actor: str,
    *,
    campus: str | None = None,
    reason: str = "",
    until: datetime | None = None,
) -> None:
    """Let a queue, a kind or a campus rest: nothing of it begins; what runs goes on.

    A second pause of the same replaces the first.

    Args:
        conn: in the scope of who pauses.
        kinds: that there are.
        subject: `queue`, `kind` or `campus`.
        value: its name, or the campus's slug.
        actor: who pauses it.
        campus: slug of the campus in which a queue or kind rests, with all below; that of the
            scope unless given.
        reason: why, in words.
        until: when it goes on by itself; None is when somebody resumes it.

    Raises:
        InputError: there is no such queue, kind or campus, or `until` is over.
    """
    _check_subject(conn, kinds, subject, value)
    campus_id = _campus_id(conn, value if subject == "campus" else campus)
    if until is not None:
        now = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
        if until.tzinfo is None or until <= now:
            raise InputError(
                "a pause ends at a moment that is still to come, with its time zone",
                where=f"pause of {subject} {value}",
            )
    conn.execute(
        text(
            "INSERT INTO theon.job_pauses (campus_id, subject, value, reason, paused_by, until)"
            " VALUES (:campus_id, :subject, :value, :reason, :actor, :until)"
            " ON CONFLICT (campus_id, subject, value) DO UPDATE SET reason = excluded.reason,"
            "  paused_by = excluded.paused_by, paused_at = clock_timestamp(),"
            "  until = excluded.until"
        ),
        {
            "campus_id": campus_id, "subject": subject, "value": value, "reason": clean(reason),
            "actor": clean(actor), "until": until,
        },
    )  # fmt: skip
    detail = {"reason": reason, "until": until, "campus": campus}
    write_audit(conn, actor, "pause", f"{subject} {value}", detail, campus_id=campus_id)
    moves.notify(conn, "paused")


def resume(
    conn: Connection, subject: str, value: str, actor: str, *, campus: str | None = None
) -> None:
    """Let a queue, a kind or a campus go on.

    Raises:
        InputError: nobody paused it there. One that was paused further up is resumed there.
    """
    campus_id = _campus_id(conn, value if subject == "campus" else campus)
    resumed = conn.execute(
        text(
            "DELETE FROM theon.job_pauses"
            " WHERE campus_id = :campus_id AND subject = :subject AND value = :value"
        ),
        {"campus_id": campus_id, "subject": clean(subject), "value": clean(value)},
    ).rowcount
    if not resumed:
        raise InputError(
            f"{subject} {value!r} is not paused there",
            where="pauses",
            next_step="Name the campus in which it was paused. One that was paused for a campus "
            "further up is resumed by somebody whose scope that is.",
        )
    detail = {"campus": campus}
    write_audit(conn, actor, "resume", f"{subject} {value}", detail, campus_id=campus_id)
    moves.notify(conn, "resumed")


def drain_worker(conn: Connection, worker_id: str, actor: str) -> None:
    """Ask a worker to begin nothing more, as SIGTERM does.

    It hears it with its next heartbeat, lets its jobs go on for its time to drain, gives the rest
    back and ends. Workers are the district's: another scope has none.

    Raises:
        InputError: no such worker is at work in this scope.
    """
    asked = conn.execute(
        text(
            "UPDATE theon.job_workers SET drain_asked = true WHERE id = :id AND state = 'running'"
            " AND heartbeat_at > clock_timestamp() - make_interval(secs => :alive_s)"
        ),
        {"id": clean(worker_id), "alive_s": ALIVE_S},
    ).rowcount
    if not asked:
        raise InputError(
            f"no worker {worker_id!r} is at work",
            where="workers",
            next_step="It may have ended, or drains already. The page of workers shows those "
            "there are.",
        )
    write_audit(conn, actor, "drain", f"worker {worker_id}", {})


def _check_subject(conn: Connection, kinds: Kinds, subject: str, value: str) -> None:
    if subject not in PAUSABLE:
        raise InputError(
            f"{subject!r} cannot be paused",
            where="pauses",
            next_step=f"Choose one of {', '.join(PAUSABLE)}.",
        )
    if subject == "campus":
        return
    value = clean(value)
    declared = {kind.queue if subject == "queue" else kind.name for kind in kinds.values()}
    if value in declared:
        return
    # Jobs may be of a queue or a kind whose code is gone.
    known = conn.execute(
        text(f"SELECT EXISTS (SELECT FROM theon.job_counts WHERE {subject} = :value)"),
        {"value": value},
    ).scalar_one()
    if not known:
        raise InputError(
            f"there is no {subject} {value!r}",
            where="pauses",
            next_step=f"There are: {', '.join(sorted(declared))}.",
        )


def _campus_id(conn: Connection, slug: str | None) -> int:
    """The id of a campus; of the scope's own unless given."""
    found = conn.execute(
        text(
            "SELECT id FROM theon.campuses"
            " WHERE slug = coalesce(:slug, current_setting('theon.scope', true))"
        ),
        {"slug": None if slug is None else clean(slug)},
    ).scalar()
    if found is None:
        raise InputError(f"there is no campus {slug!r} in this scope", where="campus")
    return int(found)


# -- small parts ---------------------------------------------------------------------------


def _record(
    conn: Connection,
    action: str,
    ids: Sequence[int],
    done: Done,
    actor: str,
    detail: Mapping[str, Any],
) -> None:
    """One line of the audit; of the campus of the jobs, if it is one campus."""
    if not done.changed:
        return
    campuses = list(
        conn.execute(
            text("SELECT DISTINCT campus_id FROM theon.jobs WHERE id = ANY (:ids)"),
            {"ids": list(done.changed)},
        ).scalars()
    )
    subject = f"job {ids[0]}" if len(ids) == 1 else f"{len(done.changed):,} jobs"
    write_audit(
        conn,
        actor,
        action,
        subject,
        {
            **detail,
            "count": len(done.changed),
            "ids": list(done.changed[:IDS_IN_AUDIT]),
            "skipped": len(done.skipped) + len(done.refused),
        },
        campus_id=campuses[0] if len(campuses) == 1 else None,
    )
