"""The figures of the overview page, read from the published metrics under a scope."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.roster.campuses import Campus
from theon.store.engine import Store
from theon.store.scope import DISTRICT, Scope

WEEKS_SHOWN = 12
HEAT_WEEKS = 4
LEAST_LEARNERS = 5
"""A course with fewer learners in the week is not ranked: one person would decide its place."""


@dataclass(frozen=True)
class Week:
    """One week of the scope.

    Attributes:
        start: its Monday.
        full: whether it is over at every campus.
        learners: with at least one action; a learner of two campuses counts at each.
        seconds: time spent.
        actions, forum_posts: how many.
    """

    start: date
    full: bool
    learners: int
    seconds: int
    actions: int
    forum_posts: int

    @property
    def last_day(self) -> date:
        """Its Sunday."""
        return self.start + timedelta(days=6)


@dataclass(frozen=True)
class CourseRow:
    """A course in the shown week; `seconds_before` is None where it had no learners then."""

    campus: str
    course_id: str
    name: str
    learners: int
    seconds: int
    learners_before: int | None
    seconds_before: int | None

    @property
    def hours_per_learner(self) -> float:
        """Hours of time spent per learner active in the course."""
        return self.seconds / self.learners / 3600

    @property
    def hours_per_learner_before(self) -> float | None:
        """The same in the week before."""
        if not self.learners_before or self.seconds_before is None:
            return None
        return self.seconds_before / self.learners_before / 3600


@dataclass(frozen=True)
class CampusRow:
    """A campus in the shown week; `learners_before` is None where it had none then."""

    slug: str
    name: str
    learners: int
    seconds: int
    actions: int
    forum_posts: int
    learners_before: int | None

    @property
    def hours_per_learner(self) -> float:
        """Hours of time spent per active learner."""
        return self.seconds / self.learners / 3600


@dataclass(frozen=True)
class Quiet:
    """Learners of one campus who were active in both weeks before and not in the shown one."""

    campus: str
    user_ids: list[str]


@dataclass(frozen=True)
class Freshness:
    """How current and how complete the figures are.

    Attributes:
        refreshed_at: when metrics were last computed; None is never.
        newest_at: the newest activity.
        events: rows that intake brought into the lake.
        known: rows it had already and dropped.
        rejected: rows it could not read.
    """

    refreshed_at: datetime | None
    newest_at: datetime | None
    events: int
    known: int
    rejected: int


@dataclass(frozen=True)
class Overview:
    """Everything the page shows.

    Attributes:
        scope: the campus looked at; the district is the root.
        campuses: what the switcher offers, the district first.
        weeks: all weeks with activity, in order.
        shown: the week looked at; None where there is no activity.
        before: the week before it, if it had activity.
        days: seconds spent per local day, of the four weeks up to the shown one.
        courses: by hours per learner, longest first.
        campus_rows: by learners, most first.
        quiet: per campus with any, by slug.
        freshness: see there.
    """

    scope: Campus
    campuses: list[Campus]
    weeks: list[Week]
    shown: Week | None
    before: Week | None
    days: dict[date, int]
    courses: list[CourseRow]
    campus_rows: list[CampusRow]
    quiet: list[Quiet]
    freshness: Freshness

    @property
    def trend(self) -> list[Week]:
        """The last weeks up to the shown one."""
        if self.shown is None:
            return []
        return [week for week in self.weeks if week.start <= self.shown.start][-WEEKS_SHOWN:]

    def neighbour(self, step: int) -> Week | None:
        """The week `step` places after the shown one, if there is one with activity."""
        if self.shown is None:
            return None
        place = self.weeks.index(self.shown) + step
        return self.weeks[place] if 0 <= place < len(self.weeks) else None


def read_overview(store: Store, *, campus: str = DISTRICT, week: date | None = None) -> Overview:
    """Read what the page shows for a campus and all below it.

    Args:
        store: PostgreSQL with the published metrics.
        campus: slug; the district is everything.
        week: its Monday; by default the last week that is over.

    Raises:
        InputError: there is no such campus, or no activity in that week.
        UnavailableError: the database is not there.
    """
    with store.transaction(Scope.district()) as conn:
        campuses = _campuses(conn)
    scope = next((found for found in campuses if found.slug == campus), None)
    if scope is None:
        raise InputError(
            f"there is no campus {campus!r}",
            where="page",
            next_step="Choose one of the campuses above.",
        )
    with store.transaction(Scope(campus)) as conn:
        freshness = _freshness(conn)
        weeks = _weeks(conn) if _published(conn) else []
        shown = _choose(weeks, week)
        if shown is None:
            return Overview(scope, campuses, weeks, None, None, {}, [], [], [], freshness)
        earlier = shown.start - timedelta(days=7)
        return Overview(
            scope=scope,
            campuses=campuses,
            weeks=weeks,
            shown=shown,
            before=next((w for w in weeks if w.start == earlier), None),
            days=_days(conn, shown.start),
            courses=_courses(conn, shown.start),
            campus_rows=_campus_rows(conn, shown.start),
            quiet=_quiet(conn, shown.start),
            freshness=freshness,
        )


def _choose(weeks: list[Week], wanted: date | None) -> Week | None:
    if wanted is None:
        over = [week for week in weeks if week.full] or weeks
        return over[-1] if over else None
    found = next((week for week in weeks if week.start == wanted), None)
    if found is None:
        raise InputError(
            f"there is no activity in the week of {wanted}",
            where="page",
            next_step="Weeks are named by their Monday; leave the week out for the last one.",
        )
    return found


def _campuses(conn: Connection) -> list[Campus]:
    rows = conn.execute(
        text(
            "SELECT c.id, c.slug, c.name, c.timezone, p.slug FROM theon.campuses AS c"
            " LEFT JOIN theon.campuses AS p ON p.id = c.parent_id"
            " ORDER BY c.parent_id IS NOT NULL, c.name"
        )
    )
    return [Campus(*row) for row in rows]


def _published(conn: Connection) -> bool:
    found = conn.execute(text("SELECT to_regclass('metrics.campus_week') IS NOT NULL"))
    return bool(found.scalar_one())


def _weeks(conn: Connection) -> list[Week]:
    rows = conn.execute(
        text(
            "SELECT w.week_start,"
            " bool_and(w.week_start + 7 <= (now() AT TIME ZONE c.timezone)::date),"
            " sum(w.learners)::bigint, sum(w.time_spent_s)::bigint,"
            " sum(w.total_actions)::bigint, sum(w.forum_posts)::bigint"
            " FROM metrics.campus_week AS w JOIN theon.campuses AS c ON c.id = w.campus_id"
            " GROUP BY w.week_start ORDER BY w.week_start"
        )
    )
    return [Week(*row) for row in rows]


def _days(conn: Connection, week: date) -> dict[date, int]:
    rows = conn.execute(
        text(
            "SELECT day, sum(time_spent_s)::bigint AS seconds FROM metrics.course_day"
            " WHERE day >= :first AND day < :end GROUP BY day"
        ),
        {"first": week - timedelta(days=7 * (HEAT_WEEKS - 1)), "end": week + timedelta(days=7)},
    )
    return {row.day: row.seconds for row in rows}


def _courses(conn: Connection, week: date) -> list[CourseRow]:
    rows = conn.execute(
        text(
            "SELECT p.name, w.course_id,"
            " coalesce(c.full_name, c.short_name, 'Course ' || w.course_id),"
            " w.learners, w.time_spent_s::bigint, b.learners, b.time_spent_s::bigint"
            " FROM metrics.course_week AS w JOIN theon.campuses AS p ON p.id = w.campus_id"
            " LEFT JOIN theon.courses AS c USING (campus_id, course_id)"
            " LEFT JOIN metrics.course_week AS b ON b.campus_id = w.campus_id"
            " AND b.course_id = w.course_id AND b.week_start = CAST(:week AS date) - 7"
            " WHERE w.week_start = :week AND w.learners >= :least"
            " ORDER BY w.time_spent_s::float8 / w.learners DESC, p.name, w.course_id"
        ),
        {"week": week, "least": LEAST_LEARNERS},
    )
    return [CourseRow(*row) for row in rows]


def _campus_rows(conn: Connection, week: date) -> list[CampusRow]:
    rows = conn.execute(
        text(
            "SELECT c.slug, c.name, w.learners, w.time_spent_s::bigint,"
            " w.total_actions::bigint, w.forum_posts::bigint, b.learners"
            " FROM metrics.campus_week AS w JOIN theon.campuses AS c ON c.id = w.campus_id"
            " LEFT JOIN metrics.campus_week AS b ON b.campus_id = w.campus_id"
            " AND b.week_start = CAST(:week AS date) - 7"
            " WHERE w.week_start = :week ORDER BY w.learners DESC, c.slug"
        ),
        {"week": week},
    )
    return [CampusRow(*row) for row in rows]


def _quiet(conn: Connection, week: date) -> list[Quiet]:
    # Ids that are numbers sort as numbers: shorter first.
    rows = conn.execute(
        text(
            "SELECT c.name, array_agg(q.user_id ORDER BY length(q.user_id), q.user_id)"
            " FROM (SELECT campus_id, user_id FROM metrics.user_course_week"
            "  WHERE week_start BETWEEN CAST(:week AS date) - 14 AND :week"
            "  GROUP BY campus_id, user_id HAVING max(week_start) = CAST(:week AS date) - 7"
            "  AND min(week_start) = CAST(:week AS date) - 14) AS q"
            " JOIN theon.campuses AS c ON c.id = q.campus_id GROUP BY c.name ORDER BY c.name"
        ),
        {"week": week},
    )
    return [Quiet(*row) for row in rows]


def _freshness(conn: Connection) -> Freshness:
    refreshed = conn.execute(text("SELECT max(refreshed_at) FROM theon.refresh_state"))
    runs = conn.execute(
        text(
            # Files and databases by their runs, which are kept for ever; what came through the door
            # by the delivery ledger.
            "SELECT coalesce(sum(new), 0)::bigint, coalesce(sum(known), 0)::bigint,"
            " coalesce(sum(rejected), 0)::bigint FROM (SELECT sum(events_new) AS new,"
            " sum(events_known) AS known, sum(rows_rejected) AS rejected FROM theon.intake_runs"
            " UNION ALL SELECT sum(accepted), sum(duplicate), sum(rejected)"
            " FROM theon.delivery_counts WHERE source !~ '^(file|database):') AS both_roads"
        )
    )
    newest = None
    if _published(conn):
        found = conn.execute(text("SELECT max(last_access) FROM metrics.campus_week"))
        newest = found.scalar_one()
    return Freshness(refreshed.scalar_one(), newest, *runs.one())
