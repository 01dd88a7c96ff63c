"""The headline figures of a scope as they are now: today's and this week's."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

# Each campus has its own today. Rows with nothing but outcomes have no activity.
_FIGURES = text("""
SELECT 'today' AS period, count(d.total_actions)::bigint AS learners,
    coalesce(sum(d.total_actions), 0)::bigint AS actions,
    coalesce(sum(d.time_spent_s), 0)::bigint AS seconds,
    coalesce(sum(d.forum_posts), 0)::bigint AS forum_posts, max(d.last_access) AS newest_at
FROM theon.campuses AS c JOIN metrics.user_day AS d
    ON d.campus_id = c.id AND d.day = (now() AT TIME ZONE c.timezone)::date
UNION ALL
SELECT 'week', coalesce(sum(w.learners), 0)::bigint, coalesce(sum(w.total_actions), 0)::bigint,
    coalesce(sum(w.time_spent_s), 0)::bigint, coalesce(sum(w.forum_posts), 0)::bigint,
    max(w.last_access)
FROM theon.campuses AS c JOIN metrics.campus_week AS w
    ON w.campus_id = c.id AND w.week_start = date_trunc('week', now() AT TIME ZONE c.timezone)::date
""")

# Campus by campus, or the planner would read the outcomes of all weeks.
_OUTCOMES = text("""
SELECT coalesce(sum(w.quizzes), 0)::bigint, coalesce(sum(w.assignments), 0)::bigint,
    coalesce(sum(w.activities), 0)::bigint
FROM theon.campuses AS c CROSS JOIN LATERAL (
    SELECT sum(o.quizzes_attempted) AS quizzes, sum(o.assignments_submitted) AS assignments,
        sum(o.activities_completed) AS activities
    FROM metrics.user_course_week_outcomes AS o WHERE o.campus_id = c.id
        AND o.week_start = date_trunc('week', now() AT TIME ZONE c.timezone)::date
) AS w
""")


@dataclass(frozen=True)
class Figures:
    """What happened in a period.

    Attributes:
        learners: with at least one action; a learner of two campuses counts at each.
        actions, forum_posts: how many.
        seconds: time spent.
    """

    learners: int = 0
    actions: int = 0
    seconds: int = 0
    forum_posts: int = 0


@dataclass(frozen=True)
class Outcomes:
    """What learners brought to an end in a period, added up over them and their courses.

    Attributes:
        quizzes_attempted, assignments_submitted, activities_completed: as in `user_course_week`.
    """

    quizzes_attempted: int = 0
    assignments_submitted: int = 0
    activities_completed: int = 0


@dataclass(frozen=True)
class Headline:
    """The figures of a scope, read at one moment.

    Attributes:
        campus: slug of the scope.
        position: rises with every change of the database; of two headlines the higher is newer.
        read_at: the database's clock, UTC.
        newest_at: the newest activity of this week, UTC; None if there is none.
        today: since midnight at each campus.
        week: since Monday at each campus.
        outcomes: of this week.
        visible: slugs of the campuses in scope.
    """

    campus: str
    position: int
    read_at: datetime
    newest_at: datetime | None
    today: Figures
    week: Figures
    outcomes: Outcomes
    visible: frozenset[str]

    @property
    def shown(self) -> tuple[Figures, Figures, Outcomes, datetime | None]:
        """What is the same while nothing has happened."""
        return self.today, self.week, self.outcomes, self.newest_at


def read_headline(conn: Connection, campus: str) -> Headline:
    """Read the headline of the transaction's scope.

    Args:
        conn: a transaction.
        campus: slug of its scope.
    """
    # The position first: what is committed after it may be in the figures already.
    position, read_at, visible, is_published = conn.execute(
        text(
            "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint, clock_timestamp(),"
            " array(SELECT slug FROM theon.campuses"
            "  WHERE id = ANY (theon.visible_campus_ids())),"
            " to_regclass('metrics.user_day') IS NOT NULL"
            " AND to_regclass('metrics.campus_week') IS NOT NULL"
            " AND to_regclass('metrics.user_course_week_outcomes') IS NOT NULL"
        )
    ).one()
    found = {"today": Figures(), "week": Figures()}
    newest_at = None
    outcomes = Outcomes()
    if is_published:
        outcomes = Outcomes(*conn.execute(_OUTCOMES).one())
        for period, *figures, newest in conn.execute(_FIGURES):
            found[period] = Figures(*figures)
            newest_at = newest if period == "week" else newest_at
    return Headline(
        campus,
        position,
        read_at,
        newest_at,
        found["today"],
        found["week"],
        outcomes,
        frozenset(visible),
    )
