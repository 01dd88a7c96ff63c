-- One row per course: how many of its activities can be completed, and which where the source says it.
SELECT
    campus_id,
    course_id,
    (array_agg(score ORDER BY place DESC))[1] AS completable,
    (array_agg(items ORDER BY place DESC))[1] AS items
FROM facts
WHERE kind = 'structure'
GROUP BY campus_id, course_id
