"""Events to cells, cells to days: the two statements all metrics rest on.

A cell holds counts and the first and last second of one learner in one course in one quarter
of an hour. A slot is no longer than any session limit, so every gap inside it counts and they
add up to `last_s - first_s`. Between two neighbouring cells lies one gap. So a day's time is
the sum over its cells of `last_s - first_s`, plus the gap before each cell where that is
within the limit: exactly what one pass over all events in order would give.
"""

from theon.events.activity import ActivityRules
from theon.settings import SLOT_S

HOUR_S = 3600

EVENT_COLUMNS = [
    "occurred_at",
    "user_id",
    "course_id",
    "event_name",
    "component",
    "action",
    "origin",
    "anonymous",
    "real_user_id",
]


def cells_sql(events: str, rules: ActivityRules) -> str:
    """SQL: the cells of the events of some whole hours.

    Args:
        events: SQL giving `EVENT_COLUMNS`.
        rules: which of them count, and as what.

    Returns:
        SQL with the columns hour, slot, user_id, course_id, total_actions, one per measure,
        first_s, last_s (epoch seconds).
    """
    # Flags first, so that a condition that several measures share is evaluated once.
    flags = ", ".join(f"{sql} AS {name}" for name, sql in rules.measures.items())
    measures = ", ".join(f"count_if({name})::INTEGER AS {name}" for name in rules.measures)
    return f"""
    SELECT (second_ // {HOUR_S})::INTEGER AS hour, slot, user_id, course_id,
        total_actions, {", ".join(rules.measures)}, first_s, last_s
    FROM (
        SELECT user_id, course_id, (epoch_us(occurred_at) // {SLOT_S * 1_000_000})::INTEGER AS slot,
            count(*)::INTEGER AS total_actions, {measures},
            min(epoch_us(occurred_at)) // 1000000 AS first_s,
            max(epoch_us(occurred_at)) // 1000000 AS last_s,
            first_s AS second_
        FROM (
            SELECT user_id, course_id, occurred_at, {flags}
            FROM ({events}) WHERE {rules.counts_sql()}
        )
        GROUP BY user_id, course_id, slot
    )"""


def days_sql(cells: str, rules: ActivityRules, session_limit_s: int) -> str:
    """SQL: the days of some cells, for the slots in the table `slot_days(slot, day)`.

    Args:
        cells: SQL of all cells of these slots and of those up to the session limit before
            each run of them, so that a gap that ends in a wanted day is seen whole.
        rules: name the measures.
        session_limit_s: seconds.

    Returns:
        SQL with the columns day (days since 1970), user_id, course_id, total_actions,
        time_spent_s, one per measure, first_s, last_s.
    """
    measures = ", ".join(f"sum({name})::INTEGER AS {name}" for name in rules.measures)
    # Learners are numbered: to sort and group by one number is much cheaper than by two texts.
    # `IS NOT DISTINCT FROM`, as GROUP BY has it: rules may let events without a course count.
    return f"""
    WITH learners_ AS MATERIALIZED (
        SELECT user_id, course_id, row_number() OVER ()::INTEGER AS learner
        FROM (SELECT DISTINCT user_id, course_id FROM ({cells}))
    )
    SELECT day, user_id, course_id, total_actions, time_spent_s,
        {", ".join(rules.measures)}, first_s, last_s
    FROM (
        SELECT slot_days.day, learner, sum(total_actions)::INTEGER AS total_actions,
            sum(last_s - first_s + CASE WHEN gap_s <= {session_limit_s} THEN gap_s ELSE 0 END)
                ::INTEGER AS time_spent_s,
            {measures}, min(first_s) AS first_s, max(last_s) AS last_s
        FROM (
            SELECT *, first_s - lag(last_s) OVER (PARTITION BY learner ORDER BY slot) AS gap_s
            FROM (
                SELECT learner, slot, total_actions, {", ".join(rules.measures)}, first_s, last_s
                FROM ({cells}) c JOIN learners_ ON c.user_id IS NOT DISTINCT FROM learners_.user_id
                    AND c.course_id IS NOT DISTINCT FROM learners_.course_id
            )
        ) JOIN slot_days USING (slot)
        GROUP BY slot_days.day, learner
    ) JOIN learners_ USING (learner)"""


def one_pass_days_sql(events: str, rules: ActivityRules, session_limit_s: int) -> str:
    """SQL: the same days straight from all events in one window pass, as an analyst would.

    Used to verify, never to compute: it shares nothing with cells but the activity rules.
    """
    measures = ", ".join(f"count(*) FILTER ({name})::INTEGER AS {name}" for name in rules.measures)
    flags = ", ".join(f"{sql} AS {name}" for name, sql in rules.measures.items())
    return f"""
    SELECT slot_days.day, user_id, course_id, count(*)::INTEGER AS total_actions,
        coalesce(sum(gap_s) FILTER (gap_s <= {session_limit_s}), 0)::INTEGER AS time_spent_s,
        {measures}, min(second_) AS first_s, max(second_) AS last_s
    FROM (
        SELECT *, second_ - lag(second_) OVER
            (PARTITION BY user_id, course_id ORDER BY second_) AS gap_s
        FROM (
            SELECT user_id, course_id, epoch_us(occurred_at) // 1000000 AS second_, {flags}
            FROM ({events}) WHERE {rules.counts_sql()}
        )
    ) JOIN slot_days ON slot_days.slot = second_ // {SLOT_S}
    GROUP BY slot_days.day, user_id, course_id"""


def days_view_sql(days: str, campus: str, rules: ActivityRules) -> str:
    """SQL: `days` as definitions see it, with the campus, its calendar and timestamps."""
    return f"""
    SELECT '{campus}' AS campus, user_id, course_id,
        DATE '1970-01-01' + day AS day,
        date_trunc('week', DATE '1970-01-01' + day)::DATE AS week_start,
        date_trunc('month', DATE '1970-01-01' + day)::DATE AS month_start,
        total_actions, time_spent_s, {", ".join(rules.measures)},
        make_timestamptz(first_s * 1000000) AS first_access,
        make_timestamptz(last_s * 1000000) AS last_access
    FROM ({days})"""


def slot_days_sql(slots: str, timezone: str) -> str:
    """SQL of (slot, day): the local day, as days since 1970, in which each slot lies.

    Args:
        slots: SQL giving `slot`; quarter hours fit every time zone's midnight.
        timezone: IANA name.
    """
    return f"SELECT slot, {local_day_sql('slot', timezone)} AS day FROM ({slots})"


def local_day_sql(slot: str, timezone: str) -> str:
    """SQL expression: the local day, as days since 1970, in which the slot `slot` begins."""
    # A slot's microseconds do not fit the 32 bits that slots are kept in.
    at = f"make_timestamptz(({slot})::BIGINT * {SLOT_S * 1_000_000})"
    return f"(timezone('{timezone}', {at})::DATE - DATE '1970-01-01')::INTEGER"
