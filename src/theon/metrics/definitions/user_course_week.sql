/*
question = "How active was each learner in each course, week by week?"
owner = "learning-analytics"
grain = ["campus", "user_id", "course_id", "week_start"]
version = 1
requirements = ["D1", "D2", "D3", "X1"]

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
quizzes_attempted = { type = "integer", unit = "quizzes", family = "outcome", description = "Quizzes attempted." }
quizzes_avg_score = { type = "number", unit = "percent", family = "outcome", description = "Mean score of the last graded attempt per quiz." }
assignments_submitted = { type = "integer", unit = "submissions", family = "outcome", description = "Assignments submitted." }
course_progress = { type = "number", unit = "percent", family = "outcome", description = "Activities completed of those that can be." }
activities_completed = { type = "integer", unit = "activities", family = "outcome", description = "Activities completed." }
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
GROUP BY campus, user_id, course_id, week_start
