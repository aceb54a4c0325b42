-- What became live, and when.

-- pivots --
-- Between its event, written just before the commit, and the event after it, which only follows one.
SELECT s.document_id, s.version, s.saga_id, s.content_hash,
       extract(epoch FROM e.at)::float8 AS began,
       coalesce(extract(epoch FROM next.at)::float8, 'infinity') AS ended
FROM apex.saga_event e JOIN apex.saga_state s USING (saga_id)
LEFT JOIN apex.saga_event next ON next.saga_id = e.saga_id AND next.seq = e.seq + 1
WHERE e.event = 'saga_completed'
