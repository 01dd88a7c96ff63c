-- One row per activity that a learner has completed, or had until it was undone; `since` when it is so.
SELECT
    campus_id,
    user_id,
    course_id,
    item_id,
    min(now_) = 'complete' AS completed,
    min(local_at) FILTER (WHERE place > changed) AS since
FROM (
    SELECT
        *,
        coalesce(max(CASE WHEN state <> now_ THEN place END) OVER (
            PARTITION BY campus_id, user_id, course_id, item_id), 0) AS changed
    FROM (
        SELECT
            *,
            first_value(state) OVER (
                PARTITION BY campus_id, user_id, course_id, item_id ORDER BY place DESC) AS now_
        FROM facts
        WHERE kind = 'completion'
    ) AS latest
) AS runs
GROUP BY campus_id, user_id, course_id, item_id
HAVING count(*) FILTER (WHERE state = 'complete') > 0
