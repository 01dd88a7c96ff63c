-- One row per submission that is there: 'submitted' or 'draft' now, and when it was last submitted.
SELECT
    campus_id,
    user_id,
    course_id,
    item_id,
    attempt,
    (array_agg(state ORDER BY place DESC))[1] AS state,
    max(local_at) FILTER (WHERE state = 'submitted') AS submitted
FROM facts
WHERE kind = 'submission'
GROUP BY campus_id, user_id, course_id, item_id, attempt
