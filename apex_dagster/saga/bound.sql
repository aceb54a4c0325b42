-- How long sagas take to end after their owner left them, from the audit log.
--
-- Whoever takes a saga over notes in that event when it had been left: when the lease ran out, or when
-- the run had ended where a sensor saw that. Of several take-overs the last one counts, as each starts
-- a lease of its own. An index holds just these events.

-- recovery_times --
WITH left_behind AS (
    SELECT DISTINCT ON (saga_id) saga_id, (detail ->> 'left_at')::timestamptz AS left_at
    FROM apex.saga_event WHERE detail ? 'left_at' ORDER BY saga_id, seq DESC
), ended AS (
    SELECT greatest(0, extract(epoch FROM CASE s.status WHEN 'completed' THEN s.published_at
                                          ELSE s.ended_at END - l.left_at))::float8 AS took_s
    FROM left_behind l JOIN apex.saga_state s USING (saga_id)
    WHERE s.status IN ('compensated', 'failed') OR (s.status = 'completed' AND s.published_at IS NOT NULL)
)
SELECT count(*) AS recoveries, coalesce(sum(took_s), 0) AS total_s,
       count(*) FILTER (WHERE took_s > %(bound_s)s) AS over_bound,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY took_s) AS p50_s,
       percentile_disc(0.9) WITHIN GROUP (ORDER BY took_s) AS p90_s,
       max(took_s) AS max_s,
       ARRAY(SELECT count(e.took_s) FROM unnest(%(edges_s)s::float8[]) AS edge
             LEFT JOIN ended e ON e.took_s <= edge GROUP BY edge ORDER BY edge) AS within
FROM ended

-- open_work --
-- By status; a completed saga counts until its version is published.
SELECT status, count(*) AS sagas,
       extract(epoch FROM clock_timestamp() - min(created_at))::float8 AS oldest_s
FROM apex.saga_state
WHERE status IN ('pending', 'in_progress', 'compensating')
   OR (status = 'completed' AND published_at IS NULL)
GROUP BY status

-- overdue_count --
-- As overdue_sagas counts.
SELECT count(*) AS overdue FROM apex.saga_state s
WHERE lease_expires_at < clock_timestamp() - %(bound_s)s::double precision * interval '1 second'
  AND (status IN ('pending', 'in_progress', 'compensating')
       OR (status = 'completed' AND published_at IS NULL))
  AND NOT EXISTS (
      SELECT FROM apex.breaker b
      WHERE (b.store = ANY (s.waits_for) OR b.store = 'postgres')
        AND (b.closed_at IS NULL
             OR b.closed_at > clock_timestamp() - %(bound_s)s::double precision * interval '1 second'))
