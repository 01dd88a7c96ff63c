-- One row per grade item and learner that has been graded.
SELECT
    campus_id,
    user_id,
    course_id,
    item_id,
    (array_agg(state ORDER BY place DESC))[1] AS state,
    (array_agg(score ORDER BY place DESC) FILTER (WHERE score IS NOT NULL))[1] AS score,
    (array_agg(max_score ORDER BY place DESC) FILTER (WHERE max_score IS NOT NULL))[1] AS max_score,
    max(local_at) AS since
FROM facts
WHERE kind = 'grade'
GROUP BY campus_id, user_id, course_id, item_id
