-- One row per enrolment: 'active', 'suspended' or 'ended' now.
SELECT
    campus_id,
    user_id,
    course_id,
    item_id,
    (array_agg(state ORDER BY place DESC))[1] AS state,
    max(local_at) AS since
FROM facts
WHERE kind = 'enrolment'
GROUP BY campus_id, user_id, course_id, item_id
