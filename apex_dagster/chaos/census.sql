-- Everything that PostgreSQL holds, and what the ledger says about it.

-- versions --
SELECT saga_id, 'versions' AS kind, ingestion_status AS status, count(*) AS items
FROM apex.document_versions GROUP BY 1, 3

-- chunks --
SELECT saga_id, 'chunks' AS kind, ingestion_status AS status, count(*) AS items
FROM apex.chunks GROUP BY 1, 3

-- live --
-- Each live version with what it was staged from.
SELECT d.document_id, d.live_saga_id AS saga_id, d.live_version AS version, d.content_hash,
       s.arrival, s.status, s.published_at, x.body
FROM apex.documents d
LEFT JOIN apex.saga_state s ON s.saga_id = d.live_saga_id
LEFT JOIN apex.extraction x ON x.saga_id = d.live_saga_id
WHERE d.live_saga_id IS NOT NULL
ORDER BY d.document_id

-- open_sagas --
SELECT saga_id, document_id, status, lease_owner, lease_expires_at, error
FROM apex.saga_state
WHERE status IN ('pending', 'in_progress', 'compensating')
   OR (status = 'completed' AND published_at IS NULL)
ORDER BY lease_expires_at

-- failed_sagas --
SELECT saga_id, document_id, undone_steps FROM apex.saga_state WHERE status = 'failed'

-- saga_counts --
SELECT status, coalesce(error ->> 'class', '') AS error_class, count(*) AS sagas
FROM apex.saga_state GROUP BY 1, 2 ORDER BY 1, 2

-- sagas --
SELECT saga_id, document_id, status, arrival, content_hash FROM apex.saga_state

-- recovery_times --
-- Of each saga that was taken over: from the last thing its first owner recorded until it ended.
SELECT extract(epoch FROM
           CASE WHEN s.status = 'completed' THEN s.published_at ELSE s.ended_at END - last.at)::float8
       AS seconds
FROM apex.saga_state s
CROSS JOIN LATERAL (
    SELECT min(e.seq) AS seq FROM apex.saga_event e
    WHERE e.saga_id = s.saga_id
      AND e.event IN ('saga_resumed', 'saga_retried', 'publish_resumed', 'compensation_resumed')
) taken
JOIN apex.saga_event last ON last.saga_id = s.saga_id AND last.seq = taken.seq - 1
WHERE s.takeovers > 0

-- bring_sweeps_forward --
-- As if a day had passed: late writes of dead sagas are looked for once more, now.
UPDATE apex.sweep SET due_at = clock_timestamp() - random() * interval '1 second'
WHERE due_at > clock_timestamp()
