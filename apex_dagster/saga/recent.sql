-- How sagas have gone of late: what was opened within a window, by the index on created_at.

-- recent --
-- A saga that gave way to a later submission did not fail; one that is still open counts as neither.
-- `took_s` of a completed saga lasts until its version was published.
WITH recent AS (
    SELECT status, error, published_at,
           extract(epoch FROM published_at - created_at)::float8 AS took_s,
           status = 'compensated' AND error ->> 'class' IN ('superseded', 'version_conflict') AS gave_way
    FROM apex.saga_state
    WHERE created_at > clock_timestamp() - %(window_s)s::float8 * interval '1 second'
)
SELECT count(*) FILTER (WHERE published_at IS NOT NULL) AS completed,
       count(*) FILTER (WHERE status = 'compensated' AND NOT gave_way) AS compensated,
       count(*) FILTER (WHERE status = 'failed') AS failed,
       count(*) FILTER (WHERE gave_way) AS gave_way,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY took_s) AS p50_s,
       percentile_cont(0.9) WITHIN GROUP (ORDER BY took_s) AS p90_s,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY took_s) AS p99_s
FROM recent

-- recent_failures --
SELECT coalesce(error ->> 'step', 'extract') AS step, coalesce(error ->> 'class', '') AS error_class,
       count(*) AS sagas
FROM apex.saga_state
WHERE created_at > clock_timestamp() - %(window_s)s::float8 * interval '1 second'
  AND error IS NOT NULL AND status IN ('compensating', 'compensated', 'failed')
  AND error ->> 'class' NOT IN ('superseded', 'version_conflict')
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2

-- failed_sagas --
-- Not of late: one that waits for an operator waits however long.
SELECT count(*) AS sagas FROM apex.saga_state WHERE status = 'failed'
