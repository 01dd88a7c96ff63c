-- One row per reward of a learner: 'granted' or 'revoked' now. The course may be ''.
SELECT
    campus_id,
    user_id,
    course_id,
    item_id,
    (array_agg(state ORDER BY place DESC))[1] AS state,
    (array_agg(score ORDER BY place DESC) FILTER (WHERE score IS NOT NULL))[1] AS points,
    max(local_at) AS since
FROM facts
WHERE kind = 'reward'
GROUP BY campus_id, user_id, course_id, item_id
