-- Sweeps that are due, and those that are done. What ends a saga schedules them: see ledger.sql.

-- due_sweeps --
-- Only what can never be live again: a row here is a claim about the past, so it is checked once
-- more. Without a lock: two sweepers that meet remove the same things twice, which is harmless.
SELECT w.saga_id, w.due_at, s.document_id, s.version
FROM apex.sweep w
JOIN apex.saga_state s USING (saga_id)
JOIN apex.documents d USING (document_id)
WHERE w.due_at < clock_timestamp()
  AND coalesce(d.live_saga_id, d.tombstone_saga_id) IS DISTINCT FROM s.saga_id
  AND (s.status = 'compensated' OR (s.status = 'completed' AND s.published_at IS NOT NULL))
ORDER BY w.due_at LIMIT %(limit)s

-- finish_sweeps --
DELETE FROM apex.sweep w
USING unnest(%(saga_ids)s::text[], %(due_ats)s::timestamptz[]) AS o (saga_id, due_at)
WHERE w.saga_id = o.saga_id AND w.due_at = o.due_at

-- drop_extractions --
-- A superseded version is never repaired, so what it was staged from can go with it; what was under way
-- when its document was deleted lost to that, and nothing of it is kept either.
DELETE FROM apex.extraction x USING apex.saga_state s
WHERE x.saga_id = ANY (%(saga_ids)s) AND s.saga_id = x.saga_id
  AND (s.status = 'completed' OR EXISTS (
      SELECT FROM apex.saga_state deletion
      WHERE deletion.document_id = s.document_id AND deletion.arrival > s.arrival
        AND deletion.kind = 'delete' AND deletion.status = 'completed'))
  AND NOT EXISTS (SELECT FROM apex.quarantine q WHERE q.saga_id = x.saga_id
                  AND q.released_at IS NULL AND q.dropped_at IS NULL)
