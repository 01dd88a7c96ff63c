-- One row per session and learner: the status that was recorded last.
SELECT
    campus_id,
    user_id,
    course_id,
    item_id,
    (array_agg(state ORDER BY place DESC))[1] AS state,
    max(local_at) AS since
FROM facts
WHERE kind = 'attendance'
GROUP BY campus_id, user_id, course_id, item_id
