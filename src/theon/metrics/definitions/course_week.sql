/*
question = "How busy was each course, week by week?"
owner = "learning-analytics"
grain = ["campus", "course_id", "week_start"]
version = 1
requirements = ["A2", "X1"]

[columns]
campus = { type = "text", description = "Slug of the campus." }
course_id = { type = "text", description = "The course, by the source's own id." }
week_start = { type = "date", description = "Monday that begins the week, campus time." }
learners = { type = "integer", unit = "learners", description = "Distinct learners with activity, exact." }
total_actions = { type = "integer", unit = "actions", description = "All activity." }
active_days = { type = "integer", unit = "days", description = "Local days with activity." }
time_spent_s = { type = "integer", unit = "seconds", description = "Sum of the gaps between a learner's consecutive actions in a course that are no longer than the session limit; a gap belongs to the local day in which it ends." }
resources_viewed = { type = "integer", unit = "views", description = "Views of files, links, folders, pages, books, IMS packages, H5P and SCORM." }
pages_viewed = { type = "integer", unit = "views", description = "Views of any kind." }
forum_views = { type = "integer", unit = "views", description = "Views of forums and discussions." }
forum_posts = { type = "integer", unit = "posts", description = "Discussions begun and replies written." }
first_access = { type = "timestamp", description = "First activity in the period." }
last_access = { type = "timestamp", description = "Last activity in the period." }
*/
SELECT
    campus,
    course_id,
    week_start,
    count(DISTINCT user_id) AS learners,
    sum(total_actions)::BIGINT AS total_actions,
    count(DISTINCT day) AS active_days,
    sum(time_spent_s)::BIGINT AS time_spent_s,
    sum(resources_viewed)::BIGINT AS resources_viewed,
    sum(pages_viewed)::BIGINT AS pages_viewed,
    sum(forum_views)::BIGINT AS forum_views,
    sum(forum_posts)::BIGINT AS forum_posts,
    min(first_access) AS first_access,
    max(last_access) AS last_access
FROM days
GROUP BY campus, course_id, week_start
