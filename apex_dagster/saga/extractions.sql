-- What documents were submitted as, and what was extracted from them, by saga.

-- submitted_documents --
SELECT saga_id, s.document_id, x.name, x.media_type, x.collection, x.metadata, x.source_uri, x.source
FROM apex.extraction x JOIN apex.saga_state s USING (saga_id)
WHERE saga_id = ANY (%(saga_ids)s) AND x.body IS NULL

-- store_extractions --
-- Only the owner may: a zombie's extraction must not replace what a later owner staged from.
UPDATE apex.extraction x SET body = o.body, source = NULL
FROM unnest(%(saga_ids)s::text[], %(epochs)s::integer[], %(bodies)b::bytea[]) AS o (saga_id, epoch, body)
JOIN apex.saga_state s ON s.saga_id = o.saga_id AND s.epoch = o.epoch AND s.status = 'in_progress'
WHERE x.saga_id = o.saga_id
RETURNING x.saga_id

-- extraction_bodies --
SELECT saga_id, body FROM apex.extraction WHERE saga_id = ANY (%(saga_ids)s) AND body IS NOT NULL
