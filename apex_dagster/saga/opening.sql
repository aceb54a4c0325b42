-- How sagas come into being. Locks document rows in the order of document_id; the saga rows are new,
-- except that a saga which lost its pivot is closed, and so locked, in the transaction of its restart.

-- ensure_documents --
INSERT INTO apex.documents (document_id)
SELECT unnest(%(document_ids)s::text[]) ORDER BY 1
ON CONFLICT DO NOTHING

-- lock_documents --
SELECT document_id, last_version, live_version, live_saga_id, content_hash AS live_content_hash,
       tombstone_version, tombstone_saga_id
FROM apex.documents WHERE document_id = ANY (%(document_ids)s)
ORDER BY document_id FOR NO KEY UPDATE

-- open_sagas_of_documents --
-- Compensating ones too: what lost its pivot starts again when it is undone. is_last: no saga of the
-- document, ended ones included, has arrived after it.
SELECT s.*, NOT EXISTS (SELECT FROM apex.saga_state later
                        WHERE later.document_id = s.document_id AND later.arrival > s.arrival) AS is_last
FROM apex.saga_state s
WHERE document_id = ANY (%(document_ids)s) AND status IN ('pending', 'in_progress', 'compensating')

-- insert_sagas --
-- Without an owner, but with a lease: if whoever opened them dies before the claim, recovery finds them.
INSERT INTO apex.saga_state (saga_id, kind, document_id, version, expected_version, content_hash,
                             predecessor_saga_id, pinned, run_id, arrival, lease_expires_at)
SELECT o.saga_id, o.kind, o.document_id, o.version, o.expected_version, o.content_hash,
       o.predecessor_saga_id, o.pinned, %(run_id)s, coalesce(o.arrival, nextval('apex.arrival')),
       clock_timestamp() + %(lease_s)s * interval '1 second'
FROM unnest(%(saga_ids)s::text[], %(document_ids)s::text[], %(versions)s::integer[],
            %(expected_versions)s::integer[], %(content_hashes)s::text[], %(predecessors)s::text[],
            %(arrivals)s::bigint[], %(pinned)s::boolean[], %(kinds)s::text[])
     WITH ORDINALITY AS o (saga_id, document_id, version, expected_version, content_hash,
                           predecessor_saga_id, arrival, pinned, kind, position)
ORDER BY o.position
RETURNING *

-- count_versions --
UPDATE apex.documents d SET last_version = o.version, updated_at = clock_timestamp()
FROM unnest(%(document_ids)s::text[], %(versions)s::integer[]) AS o (document_id, version)
WHERE d.document_id = o.document_id

-- insert_extractions --
INSERT INTO apex.extraction (saga_id, name, media_type, collection, metadata, source_uri, source, body)
SELECT * FROM unnest(%(saga_ids)s::text[], %(names)s::text[], %(media_types)s::text[],
                     %(collections)s::text[], %(metadata)s::jsonb[], %(source_uris)s::text[],
                     %(sources)b::bytea[], %(bodies)b::bytea[])

-- copy_extraction --
INSERT INTO apex.extraction (saga_id, name, media_type, collection, metadata, source_uri, source, body)
SELECT %(saga_id)s, name, media_type, collection, metadata, source_uri, source, body
FROM apex.extraction WHERE saga_id = %(predecessor_saga_id)s

-- insert_submissions --
INSERT INTO apex.submission (client, idempotency_key, body_hash, document_id, saga_id, source_uri, run_id)
SELECT o.*, %(run_id)s
FROM unnest(%(clients)s::text[], %(idempotency_keys)s::text[], %(body_hashes)s::text[],
            %(document_ids)s::text[], %(saga_ids)s::text[], %(source_uris)s::text[]) AS o

-- copy_submissions --
-- With the time at which it was asked for.
INSERT INTO apex.submission (client, body_hash, document_id, saga_id, source_uri, run_id, created_at)
SELECT client, body_hash, document_id, %(saga_id)s, source_uri, %(run_id)s, created_at
FROM apex.submission WHERE saga_id = %(predecessor_saga_id)s

-- with_payload --
-- What was submitted is erased when somebody drops it from quarantine.
SELECT saga_id FROM apex.extraction WHERE saga_id = ANY (%(saga_ids)s)

-- forget_retries --
DELETE FROM apex.retry WHERE saga_id = ANY (%(saga_ids)s)

-- successors --
SELECT * FROM apex.saga_state
WHERE predecessor_saga_id = ANY (%(saga_ids)s) AND run_id = %(run_id)s

-- count_starts --
-- Sagas that stand for one submission share its arrival: the first, and each restart.
SELECT document_id, arrival, count(*) AS starts FROM apex.saga_state
WHERE document_id = ANY (%(document_ids)s) AND arrival = ANY (%(arrivals)s)
GROUP BY document_id, arrival

-- waiting_restarts --
SELECT * FROM apex.saga_state
WHERE predecessor_saga_id = ANY (%(saga_ids)s) AND status = 'pending' ORDER BY arrival

-- saga_by_id --
SELECT * FROM apex.saga_state WHERE saga_id = %(saga_id)s
