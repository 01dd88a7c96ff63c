/*
question = "How active was each learner in each course, week by week?"
owner = "learning-analytics"
grain = ["campus", "user_id", "course_id", "week_start"]
version = 2
requirements = ["D1", "D2", "D3", "D4", "X1"]

[columns]
campus = { type = "text", description = "Slug of the campus." }
user_id = { type = "text", description = "The learner, by the source's own id." }
course_id = { type = "text", description = "The course, by the source's own id." }
week_start = { type = "date", description = "Monday that begins the week, campus time." }
total_actions = { type = "integer", unit = "actions", description = "All activity." }
active_days = { type = "integer", unit = "days", description = "Local days with activity." }
time_spent_s = { type = "integer", unit = "seconds", description = "Sum of the gaps between a learner's consecutive actions in a course that are no longer than the session limit; a gap belongs to the local day in which it ends." }
resources_viewed = { type = "integer", unit = "views", description = "Views of files, links, folders, pages, books, IMS packages, H5P and SCORM." }
pages_viewed = { type = "integer", unit = "views", description = "Views of any kind." }
forum_views = { type = "integer", unit = "views", description = "Views of forums and discussions." }
forum_posts = { type = "integer", unit = "posts", description = "Discussions begun and replies written." }
first_access = { type = "timestamp", description = "First activity in the period." }
last_access = { type = "timestamp", description = "Last activity in the period." }
quizzes_attempted = { type = "integer", unit = "quizzes", family = "outcome", description = "Quizzes with an attempt begun in the week that is no preview and was not deleted." }
quizzes_avg_score = { type = "number", unit = "percent", family = "outcome", description = "Mean over these quizzes of the last graded attempt begun in the week, by its grade as it is now; empty while none is graded." }
assignments_submitted = { type = "integer", unit = "assignments", family = "outcome", description = "Assignments submitted that were last handed in in the week; not those taken back to draft or removed." }
course_progress = { type = "number", unit = "percent", family = "outcome", description = "Activities completed up to the end of the week, of those that can be completed; empty where the source does not say how many can." }
activities_completed = { type = "integer", unit = "activities", family = "outcome", description = "Activities completed in the week and not undone since." }
*/
SELECT
    campus,
    user_id,
    course_id,
    week_start,
    sum(total_actions)::BIGINT AS total_actions,
    count(*) AS active_days,
    sum(time_spent_s)::BIGINT AS time_spent_s,
    sum(resources_viewed)::BIGINT AS resources_viewed,
    sum(pages_viewed)::BIGINT AS pages_viewed,
    sum(forum_views)::BIGINT AS forum_views,
    sum(forum_posts)::BIGINT AS forum_posts,
    min(first_access) AS first_access,
    max(last_access) AS last_access
FROM days
GROUP BY campus, user_id, course_id, week_start;

WITH quizzes AS (
    SELECT
        user_id,
        course_id,
        date_trunc('week', began)::date AS week_start,
        item_id,
        (array_agg(100 * score / max_score ORDER BY number DESC NULLS LAST, began DESC, attempt DESC)
            FILTER (WHERE score IS NOT NULL AND max_score > 0))[1] AS percent
    FROM attempts
    GROUP BY 1, 2, 3, 4
),
attempted AS (
    SELECT
        user_id,
        course_id,
        week_start,
        count(*) AS quizzes,
        avg(percent ORDER BY item_id) AS percent
    FROM quizzes
    GROUP BY 1, 2, 3
),
submitted AS (
    SELECT
        user_id,
        course_id,
        date_trunc('week', submitted)::date AS week_start,
        count(DISTINCT item_id) AS assignments
    FROM submissions
    WHERE state = 'submitted'
    GROUP BY 1, 2, 3
),
completed AS (
    SELECT
        user_id,
        course_id,
        date_trunc('week', since)::date AS week_start,
        sum(CASE WHEN completed THEN 1 ELSE 0 END) AS activities,
        sum(CASE WHEN completed AND (items IS NULL OR item_id = ANY (string_to_array(items, chr(31))))
            THEN 1 ELSE 0 END) AS counted
    FROM completions
    LEFT JOIN structures USING (campus_id, course_id)
    GROUP BY 1, 2, 3
),
weeks AS (
    SELECT user_id, course_id, week_start FROM attempted
    UNION
    SELECT user_id, course_id, week_start FROM submitted
    UNION
    SELECT user_id, course_id, week_start FROM completed
)
SELECT
    user_id,
    course_id,
    week_start,
    coalesce(quizzes, 0) AS quizzes_attempted,
    percent AS quizzes_avg_score,
    coalesce(assignments, 0) AS assignments_submitted,
    CASE WHEN completable > 0 THEN least(100, 100 * sum(coalesce(counted, 0)) OVER (
        PARTITION BY user_id, course_id ORDER BY week_start) / completable) END AS course_progress,
    coalesce(activities, 0) AS activities_completed
FROM weeks
LEFT JOIN attempted USING (user_id, course_id, week_start)
LEFT JOIN submitted USING (user_id, course_id, week_start)
LEFT JOIN completed USING (user_id, course_id, week_start)
LEFT JOIN structures USING (course_id)
