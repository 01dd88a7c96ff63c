/*
question = "What did each learner do each day, over all courses?"
owner = "learning-analytics"
grain = ["campus", "user_id", "day"]
version = 1
requirements = ["A1", "X1"]

[columns]
campus = { type = "text", description = "Slug of the campus." }
user_id = { type = "text", description = "The learner, by the source's own id." }
day = { type = "date", description = "Local day of the campus." }
courses = { type = "integer", unit = "courses", description = "Distinct courses with activity, exact." }
total_actions = { type = "integer", unit = "actions", description = "All activity." }
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
    user_id,
    day,
    count(DISTINCT course_id) AS courses,
    sum(total_actions)::BIGINT AS total_actions,
    sum(time_spent_s)::BIGINT AS time_spent_s,
    sum(resources_viewed)::BIGINT AS resources_viewed,
    sum(pages_viewed)::BIGINT AS pages_viewed,
    sum(forum_views)::BIGINT AS forum_views,
    sum(forum_posts)::BIGINT AS forum_posts,
    min(first_access) AS first_access,
    max(last_access) AS last_access
FROM days
GROUP BY campus, user_id, day
