-- One row per attempt at a quiz that is there: not a preview, not removed.
SELECT
    campus_id,
    user_id,
    course_id,
    item_id,
    attempt,
    CASE WHEN length(attempt) <= 18 AND regexp_replace(attempt, '[0-9]+', '') = '' AND attempt <> ''
        THEN cast(attempt AS bigint) END AS number,
    coalesce(min(local_at) FILTER (WHERE state = 'started'), min(local_at)) AS began,
    max(local_at) FILTER (WHERE state = 'finished') AS finished,
    (array_agg(score ORDER BY place DESC) FILTER (WHERE score IS NOT NULL))[1] AS score,
    (array_agg(max_score ORDER BY place DESC) FILTER (WHERE max_score IS NOT NULL))[1] AS max_score
FROM facts
WHERE kind = 'attempt'
GROUP BY campus_id, user_id, course_id, item_id, attempt
HAVING count(*) FILTER (WHERE state = 'preview') = 0
