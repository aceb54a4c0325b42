-- What the ledger's events say of the sagas that were opened since a moment.

-- parts --
-- Medians in milliseconds over completed sagas. A run of many documents has its times counted for
-- each of them. Parts follow each other but for the stores', which `at_once` lie within each other.
WITH saga AS (
    SELECT saga_id FROM apex.saga_state
    WHERE created_at >= %(since)s AND status = 'completed' AND published_at IS NOT NULL
), times AS (
    SELECT e.saga_id,
        min(e.at) FILTER (WHERE e.event = 'saga_opened') AS opened,
        min(e.at) FILTER (WHERE e.event = 'saga_claimed') AS claimed,
        min(e.at) FILTER (WHERE e.event = 'step_started') AS staging,
        max(e.at) FILTER (WHERE e.event = 'step_completed') AS staged,
        max(e.at) FILTER (WHERE e.event = 'saga_completed') AS pivoted,
        max(e.at) FILTER (WHERE e.event = 'saga_published') AS published,
        sum(e.duration_ms) FILTER (WHERE e.step = 'neo4j_write') AS neo4j,
        sum(e.duration_ms) FILTER (WHERE e.step = 'postgres_write') AS postgres,
        sum(e.duration_ms) FILTER (WHERE e.step = 'qdrant_write') AS qdrant,
        sum(e.duration_ms) FILTER (WHERE e.step = 'redis_write') AS redis
    FROM apex.saga_event e JOIN saga USING (saga_id) GROUP BY e.saga_id
), part AS (
    SELECT p.name, p.place, p.ms FROM times t, LATERAL (VALUES
        (1, 'queue', extract(epoch FROM t.claimed - t.opened) * 1000),
        (2, 'run begins, extract', extract(epoch FROM t.staging - t.claimed) * 1000),
        (3, 'stage neo4j', t.neo4j),
        (4, 'stage postgres', t.postgres),
        (5, 'stage qdrant', t.qdrant),
        (6, 'stage redis', t.redis),
        (7, 'ledger and Dagster between ops', greatest(0,
            extract(epoch FROM t.staged - t.staging) * 1000 - t.neo4j - t.postgres - t.qdrant - t.redis)),
        (8, 'pivot', extract(epoch FROM t.pivoted - t.staged) * 1000),
        (9, 'publish', extract(epoch FROM t.published - t.pivoted) * 1000)
    ) AS p (place, name, ms)
)
SELECT name, percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::double precision AS ms
FROM part GROUP BY place, name ORDER BY place

-- now --
SELECT clock_timestamp() AS now

-- completed --
SELECT count(*) FROM apex.saga_state
WHERE created_at >= %(since)s AND status = 'completed' AND published_at IS NOT NULL

-- open --
SELECT count(*) FROM apex.saga_state
WHERE created_at < %(before)s
    AND (status IN ('pending', 'in_progress', 'compensating')
        OR status = 'completed' AND published_at IS NULL)

-- last_ended --
SELECT greatest(0, extract(epoch FROM max(updated_at) - %(before)s::timestamptz))::double precision
FROM apex.saga_state WHERE created_at < %(before)s
