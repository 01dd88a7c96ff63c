"""Schedules: jobs that begin at times of a cron line, once per fire time and without a leader.

Any number of scheduler processes look at the same rows. Whoever comes first locks a schedule's
row, writes what it decides about each fire time under the unique key (schedule, campus, fire
time), and enqueues the job in the same transaction; the others find it decided.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from theon.errors import ConflictError, InputError, TheonError
from theon.jobs import cron as cron_lines
from theon.jobs import schedule_rows as rows
from theon.jobs.audit import write_audit
from theon.jobs.enqueue import PRIORITIES, NewJob, enqueue_many
from theon.jobs.kinds import Kinds
from theon.jobs.schedule_rows import Decision, Row, ScheduleState
from theon.loops import Loop
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope

CATCH_UPS = ("latest", "all", "none")
GRACE = timedelta(seconds=60)  # a run that is later than this was missed
CAUGHT_UP_AT_MOST = 100  # missed runs that are enqueued, or have a row each
LOOK_BACK = timedelta(days=366)  # missed runs before that are not counted
TICK_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """A job that begins at the times of a cron line. Declared beside the feature that needs it.

    Attributes:
        name: unique; `room.what`, such as `metrics.hourly`.
        kind: name of the kind of job.
        cron: minute, hour, day of month, month, day of week; see `theon.jobs.cron`.
        arguments: of the kind.
        timezone: IANA name; None is the campus's own.
        per_campus: one run for each campus, the district among them; else one, of the district.
        catch_up: what happens to runs that were missed while no scheduler ran: the `latest` is
            enqueued, if no later one is on time; `all` are; or `none`. Those that are not
            enqueued are recorded as missed.
        may_overlap: whether a run may begin while the former one has not ended.
        priority: of its jobs.
        summary: what it is for.
    """

    name: str
    kind: str
    cron: str
    arguments: Any = field(default_factory=dict)
    timezone: str | None = None
    per_campus: bool = False
    catch_up: str = "latest"
    may_overlap: bool = False
    priority: str = "normal"
    summary: str = ""

    def __post_init__(self) -> None:
        """Refuse what could not be scheduled.

        Raises:
            InputError: says what is wrong, and with which schedule.
        """
        where = f"schedule {self.name!r}"
        if not self.name.strip():
            raise InputError("a schedule has a name", where=f"schedule of {self.kind!r}")
        for what, value, known in (
            ("way to catch up", self.catch_up, CATCH_UPS),
            ("priority", self.priority, tuple(PRIORITIES)),
        ):
            if value not in known:
                raise InputError(
                    f"there is no {what} {value!r}",
                    where=where,
                    next_step=f"Choose one of {', '.join(known)}.",
                )
        if self.catch_up == "all" and not self.may_overlap:
            raise InputError(
                "all missed runs are enqueued together, and runs may not overlap",
                where=where,
                next_step="Set may_overlap=True, or catch_up='latest'.",
            )
        try:
            cron_lines.check_cron(self.cron)
            if self.timezone is not None:
                cron_lines.check_timezone(self.timezone)
        except InputError as error:
            raise InputError(
                error.what, where=f"{where}, {error.where}", next_step=error.next_step
            ) from None


def decide(
    cron: str, timezone: str, catch_up: str, seen_until: datetime, now: datetime
) -> list[Decision]:
    """What becomes of the fire times after `seen_until` up to `now`, in order."""
    since = max(seen_until, now - LOOK_BACK)
    late: deque[datetime] = deque()
    on_time: list[datetime] = []
    older = Decision(since, "missed", 0)
    for moment in takewhile(lambda moment: moment <= now, cron_lines.fires(cron, timezone, since)):
        if moment >= now - GRACE:
            on_time.append(moment)
            continue
        late.append(moment)
        if len(late) > CAUGHT_UP_AT_MOST:
            older = Decision(late.popleft(), "missed", older.fire_times + 1)
    caught_up: set[datetime] = set()
    if catch_up == "all":
        caught_up = set(late)
    elif catch_up == "latest" and late and not on_time:
        caught_up = {late[-1]}
    return [
        *([older] if older.fire_times else []),
        *(Decision(m, "enqueued" if m in caught_up else "missed") for m in late),
        *(Decision(m, "enqueued") for m in on_time),
    ]


class Scheduler(Loop):
    """Enqueues the jobs of schedules when their time comes. Any number may run at once.

    `tick` (or `start` and `stop`) is the machinery; the other methods are what people do and see,
    in the transaction and scope of the caller.
    """

    def __init__(
        self,
        store: Store,
        kinds: Kinds,
        schedules: Iterable[Schedule],
        *,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        """Check the schedules against the kinds.

        Args:
            store: where the ledger is.
            kinds: that the schedules may run.
            schedules: all that this installation has; others are removed by `tick`.
            clock: what time it is; the database's clock unless given.

        Raises:
            UnknownKindError: nobody declares the kind of a schedule.
            InputError: two have the same name, or arguments do not fit.
        """
        super().__init__("scheduler")
        self._store = store
        self._kinds = kinds
        self._clock = clock
        self._schedules: dict[str, Schedule] = {}
        self._arguments: dict[str, Any] = {}
        for schedule in schedules:
            if schedule.name in self._schedules:
                raise InputError("two schedules have this name", where=f"schedule {schedule.name}")
            self._schedules[schedule.name] = schedule
            self._arguments[schedule.name] = kinds[schedule.kind].dump(schedule.arguments)
        self._synced: list[tuple[int, str]] | None = None
        self._told: dict[str, str] = {}

    # -- the machinery --------------------------------------------------------------------

    def tick(self) -> int:
        """Decide what is due; returns how many jobs were enqueued.

        A schedule that cannot be decided is logged and does not stop the others.

        Raises:
            UnavailableError: the database is away; what was not decided is due again.
        """
        with self._store.transaction(Scope.district()) as conn:
            campuses = self._sync(conn)
            due = self._due(conn)
        self._synced = campuses
        enqueued = 0
        for name, campus_ids in due.items():
            try:
                with self._store.transaction(Scope.district()) as conn:
                    enqueued += self._decide(conn, name, campus_ids)
            except (InputError, DBAPIError) as error:
                self._warn(name, error)
        return enqueued

    def _warn(self, schedule: str, error: Exception) -> None:
        """Say what is wrong with a schedule, once: it is looked at every second."""
        if self._told.get(schedule) != str(error):
            self._told[schedule] = str(error)
            _log.warning("schedule %s cannot be decided now: %s", schedule, error)

    def run(self) -> None:
        """Tick once a second, until `stop`."""
        while not self._stopping.is_set():
            try:
                self.tick()
            except (TheonError, DBAPIError) as error:
                _log.warning("the scheduler cannot work, and tries again: %s", error)
            except Exception:
                _log.exception("the scheduler met an error that it does not know")
            self._stopping.wait(TICK_S)

    def _now(self, conn: Connection) -> datetime:
        if self._clock is not None:
            return self._clock()
        now: datetime = conn.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now.astimezone(UTC)

    def _sync(self, conn: Connection) -> list[tuple[int, str]]:
        """Make the rows those that are declared; at the first tick and when campuses change.

        Not at every tick: a process of another version would undo it, and undo it again.
        """
        found = conn.execute(
            text("SELECT id, slug, timezone FROM theon.campuses ORDER BY id")
        ).all()
        campuses = [(row.id, row.timezone) for row in found]
        if campuses == self._synced:
            return campuses
        declared = [
            {
                "name": s.name, "campus_id": row.id, "kind": s.kind, "cron": s.cron,
                "arguments": self._arguments[s.name], "timezone": s.timezone or row.timezone,
                "catch_up": s.catch_up, "may_overlap": s.may_overlap,
                "priority": PRIORITIES[s.priority], "summary": s.summary,
            }
            for s in self._schedules.values()
            for row in found
            if s.per_campus or row.slug == DISTRICT
        ]  # fmt: skip
        rows.sync(conn, declared, self._now(conn))
        return campuses

    def _due(self, conn: Connection) -> dict[str, list[int]]:
        """The campuses of each schedule that has something to decide."""
        now = self._now(conn)
        due: dict[str, list[int]] = {}
        for row in rows.active(conn, list(self._schedules)):
            try:
                moment = cron_lines.next_fire(row.cron, row.timezone, row.seen_until)
            except InputError as error:
                self._warn(f"{row.name} of {row.campus}", error)
                continue
            if (moment is not None and moment <= now) or row.seen_until > now + GRACE:
                due.setdefault(row.name, []).append(row.campus_id)
        return due

    def _decide(self, conn: Connection, name: str, campus_ids: list[int]) -> int:
        """Decide the fire times of one schedule; returns how many jobs were enqueued."""
        # What another scheduler holds, it decides itself.
        held = rows.take(conn, name, campus_ids)
        now = self._now(conn)
        decided: list[tuple[Row, Decision]] = []
        seen: dict[int, datetime] = {}
        for row in held:
            if row.seen_until > now + GRACE:
                # The clock was put back. Times that come again have their rows already.
                seen[row.campus_id] = now
                continue
            for decision in decide(row.cron, row.timezone, row.catch_up, row.seen_until, now):
                decided.append((row, decision))
                seen[row.campus_id] = decision.fire_at
        enqueued = self._record(conn, decided)
        rows.move_on(conn, name, seen)
        return enqueued

    def _record(self, conn: Connection, decided: Sequence[tuple[Row, Decision]]) -> int:
        """Write decisions that nobody wrote before, and enqueue their jobs."""
        new = rows.insert_runs(conn, decided)
        wanted = [
            (row, decision)
            for row, decision in decided
            if decision.outcome == "enqueued" and (row.campus_id, decision.fire_at) in new
        ]
        busy = rows.unended(conn, [row for row, _ in wanted if not row.may_overlap])
        chosen, overlapped = [], []
        for row, decision in wanted:
            if row.may_overlap or row.campus_id not in busy:
                chosen.append((row, decision))
                busy.setdefault(row.campus_id, 0)  # this one
            else:
                overlapped.append((row, decision))
        jobs = [_job(row, decision.fire_at) for row, decision in chosen]
        ids = enqueue_many(conn, self._kinds, jobs) if jobs else []
        rows.complete_runs(conn, [*chosen, *overlapped], [*ids, *[None] * len(overlapped)])
        return len(ids)

    # -- what people do and see -----------------------------------------------------------

    def pause(self, conn: Connection, name: str, actor: str, *, campus: str | None = None) -> int:
        """Let a schedule rest in one campus, or in every campus of the scope; returns in how many.

        Raises:
            InputError: there is no such schedule in this scope.
        """
        ids = [row.campus_id for row in rows.held(conn, name, campus)]
        paused = conn.execute(
            text(
                "UPDATE theon.job_schedules SET paused_by = :actor, paused_at = clock_timestamp()"
                " WHERE name = :name AND campus_id = ANY (:ids) AND paused_at IS NULL"
            ),
            {"name": name, "ids": ids, "actor": actor},
        ).rowcount
        write_audit(conn, actor, "pause", f"schedule {name}", {"campus": campus, "count": paused})
        return paused

    def resume(self, conn: Connection, name: str, actor: str, *, campus: str | None = None) -> int:
        """Let a paused schedule go on from now; what it would have run meanwhile is not caught up.

        Raises:
            InputError: there is no such schedule in this scope.
        """
        ids = [row.campus_id for row in rows.held(conn, name, campus)]
        resumed = conn.execute(
            text(
                "UPDATE theon.job_schedules SET paused_by = NULL, paused_at = NULL,"
                " seen_until = greatest(seen_until, :now)"
                " WHERE name = :name AND campus_id = ANY (:ids) AND paused_at IS NOT NULL"
            ),
            {"name": name, "ids": ids, "now": self._now(conn)},
        ).rowcount
        write_audit(conn, actor, "resume", f"schedule {name}", {"campus": campus, "count": resumed})
        return resumed

    def run_now(
        self, conn: Connection, name: str, actor: str, *, campus: str | None = None
    ) -> list[int]:
        """Run a schedule once by hand, whether it is paused or not.

        Returns:
            Ids of the jobs: of one campus, or of every campus of the scope.

        Raises:
            InputError: there is no such schedule in this scope.
            ConflictError: its runs may not overlap, and the former one has not ended.
        """
        held = rows.held(conn, name, campus)
        busy = rows.unended(conn, [row for row in held if not row.may_overlap])
        now = self._now(conn)
        chosen = [(row, Decision(now, "by hand")) for row in held if row.campus_id not in busy]
        new = rows.insert_runs(conn, chosen)
        chosen = [(row, d) for row, d in chosen if (row.campus_id, d.fire_at) in new]
        if not chosen:
            raise ConflictError(
                f"its former run has not ended: job {', '.join(map(str, busy.values()))}"
                if busy
                else "it was run at this very moment",
                where=f"schedule {name}",
                next_step="Wait for it, or cancel it.",
            )
        jobs = [_job(row, decision.fire_at, owner=actor) for row, decision in chosen]
        ids = enqueue_many(conn, self._kinds, jobs)
        rows.complete_runs(conn, chosen, ids)
        write_audit(conn, actor, "run now", f"schedule {name}", {"campus": campus, "jobs": ids})
        return ids

    def upcoming(
        self,
        conn: Connection,
        *,
        name: str | None = None,
        campus: str | None = None,
        count: int = 5,
        runs: int = 10,
    ) -> list[ScheduleState]:
        """The schedules of the scope, by name and campus.

        Args:
            conn: in the scope of who asks.
            name: only this one.
            campus: slug of the only campus.
            count: how many of the next fire times.
            runs: how many of the latest decided ones.
        """
        now = self._now(conn)
        return rows.states(conn, now, name=name, campus=campus, count=count, runs=runs)


def _job(row: Row, fire_at: datetime, owner: str = "") -> NewJob:
    return NewJob(
        row.kind,
        row.arguments,
        campus=row.campus,
        owner=owner,
        priority=next(word for word, number in PRIORITIES.items() if number == row.priority),
        idempotency_key=f"schedule:{row.name}:{fire_at.astimezone(UTC).isoformat()}",
    )
