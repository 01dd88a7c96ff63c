"""The query an analyst would write: one window pass over all events, in three dialects.

Each gives `user_course_week` with the same columns, so that results can be compared.
"""

RESOURCES = (
    "('mod_resource', 'mod_url', 'mod_folder', 'mod_page', 'mod_book', 'mod_imscp', "
    "'mod_h5pactivity', 'mod_scorm')"
)
POSTS = r"('\mod_forum\event\discussion_created', '\mod_forum\event\post_created')"
CLICKHOUSE_POSTS = POSTS.replace("\\", "\\\\")
LIMIT_S = 1800
COLUMNS = (
    "user_id, course_id, week_start, total_actions, active_days, time_spent_s, "
    "resources_viewed, pages_viewed, forum_views, forum_posts, first_s, last_s"
)


def _counts(where: str, in_posts: str) -> str:
    return f"""
    {where.format("action = 'viewed' AND component IN " + RESOURCES)} AS resources_viewed,
    {where.format("action = 'viewed'")} AS pages_viewed,
    {where.format("action = 'viewed' AND component = 'mod_forum'")} AS forum_views,
    {where.format("event_name IN " + in_posts)} AS forum_posts,
    min(s) AS first_s, max(s) AS last_s"""


def duckdb_sql(source: str, timezone: str) -> str:
    """For DuckDB; `source` is a table function or table with the lake's columns."""
    return f"""
    SELECT user_id, course_id, date_trunc('week', day)::DATE AS week_start,
        count(*) AS total_actions, count(DISTINCT day) AS active_days,
        coalesce(sum(gap) FILTER (gap <= {LIMIT_S}), 0)::BIGINT AS time_spent_s,
        {_counts("count(*) FILTER ({})", POSTS)}
    FROM (
        SELECT *, timezone('{timezone}', occurred_at)::DATE AS day,
            s - lag(s) OVER (PARTITION BY user_id, course_id ORDER BY s) AS gap
        FROM (
            SELECT user_id, course_id, occurred_at, component, action, event_name,
                epoch_us(occurred_at) // 1000000 AS s
            FROM {source}
            WHERE user_id NOT IN ('0', '1') AND NOT starts_with(user_id, '-')
                AND anonymous IS NOT TRUE AND real_user_id IS NULL AND origin IN ('web', 'ws')
                AND course_id NOT IN ('0', '1')
                AND component NOT IN ('mod_quiz', 'mod_assign')
                AND NOT contains(event_name, 'submitted')
        )
    ) GROUP BY ALL"""


def clickhouse_sql(source: str, timezone: str) -> str:
    """For ClickHouse; `source` is a table function with the lake's columns."""
    return f"""
    SELECT user_id, course_id, toMonday(day) AS week_start,
        count() AS total_actions, uniqExact(day) AS active_days,
        coalesce(sumIf(gap, number > 1 AND gap <= {LIMIT_S}), 0) AS time_spent_s,
        {_counts("countIf({})", CLICKHOUSE_POSTS)}
    FROM (
        SELECT user_id, course_id, component, action, event_name, s,
            toDate(toDateTime(s, '{timezone}')) AS day,
            s - lagInFrame(s, 1, s) OVER running AS gap, row_number() OVER running AS number
        FROM (
            SELECT user_id, course_id, component, action, event_name,
                toInt64(toUnixTimestamp(occurred_at)) AS s
            FROM {source}
            WHERE user_id NOT IN ('0', '1') AND NOT startsWith(user_id, '-')
                AND coalesce(anonymous, false) = false AND real_user_id IS NULL
                AND origin IN ('web', 'ws') AND course_id NOT IN ('0', '1')
                AND component NOT IN ('mod_quiz', 'mod_assign')
                AND position(event_name, 'submitted') = 0
        )
        WINDOW running AS (PARTITION BY user_id, course_id ORDER BY s
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    ) GROUP BY user_id, course_id, week_start"""


def postgres_sql(source: str, timezone: str) -> str:
    """For PostgreSQL; `source` is a table with the lake's columns."""
    return f"""
    SELECT user_id, course_id, date_trunc('week', day)::date AS week_start,
        count(*) AS total_actions, count(DISTINCT day) AS active_days,
        coalesce(sum(gap) FILTER (WHERE gap <= {LIMIT_S}), 0)::bigint AS time_spent_s,
        {_counts("count(*) FILTER (WHERE {})", POSTS)}
    FROM (
        SELECT *, (occurred_at AT TIME ZONE '{timezone}')::date AS day,
            s - lag(s) OVER (PARTITION BY user_id, course_id ORDER BY s) AS gap
        FROM (
            SELECT user_id, course_id, occurred_at, component, action, event_name,
                floor(extract(epoch FROM occurred_at))::bigint AS s
            FROM {source}
            WHERE user_id NOT IN ('0', '1') AND user_id NOT LIKE '-%'
                AND anonymous IS NOT TRUE AND real_user_id IS NULL AND origin IN ('web', 'ws')
                AND course_id NOT IN ('0', '1')
                AND component NOT IN ('mod_quiz', 'mod_assign')
                AND event_name NOT LIKE '%submitted%'
        ) AS counted
    ) AS gaps GROUP BY user_id, course_id, week_start"""
