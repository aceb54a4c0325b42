-- What waits in quarantine, and how it leaves. Locks in the ledger's order: saga rows, document rows, then
-- the rest; an entry is only changed under the lock of its saga.

-- entries --
-- By saga or document, the newest last.
SELECT * FROM apex.quarantine
WHERE saga_id = ANY (%(names)s) OR document_id = ANY (%(names)s) ORDER BY created_at, saga_id

-- open_entries --
SELECT * FROM apex.quarantine
WHERE released_at IS NULL AND dropped_at IS NULL
  AND (%(error_class)s::text IS NULL OR error_class = %(error_class)s)
  AND (%(step)s::text IS NULL OR step = %(step)s)
ORDER BY created_at, saga_id LIMIT %(limit)s

-- waiting_counts --
-- Documents that wait for somebody, by the class of their error, and files that wait for their next try.
SELECT 'quarantine' AS place, error_class, count(*) AS documents FROM apex.quarantine
WHERE released_at IS NULL AND dropped_at IS NULL GROUP BY error_class
UNION ALL
SELECT 'retry', s.error ->> 'class', count(*) FROM apex.retry r JOIN apex.saga_state s USING (saga_id)
GROUP BY s.error ->> 'class'

-- attempts --
-- The sagas of one submission, by version.
SELECT o.* FROM apex.saga_state s JOIN apex.saga_state o USING (document_id, arrival)
WHERE s.saga_id = %(saga_id)s ORDER BY o.version

-- original --
-- What is kept of what was submitted: the bytes until they are extracted, then what was extracted.
SELECT s.document_id, u.client, u.body_hash, coalesce(x.source_uri, u.source_uri) AS source_uri,
       x.name, x.media_type, x.collection,
       octet_length(x.source) AS source_bytes, octet_length(x.body) AS extraction_bytes
FROM apex.saga_state s
LEFT JOIN apex.extraction x USING (saga_id)
LEFT JOIN LATERAL (
    SELECT client, body_hash, source_uri FROM apex.submission u WHERE u.saga_id = s.saga_id
    ORDER BY u.source_uri IS NULL, u.submission_id LIMIT 1) u ON true
WHERE s.saga_id = %(saga_id)s

-- payload --
SELECT source, body FROM apex.extraction WHERE saga_id = %(saga_id)s

-- release_entry --
UPDATE apex.quarantine
SET released_at = clock_timestamp(), closed_by = %(by)s, closed_because = %(because)s
WHERE saga_id = %(saga_id)s

-- drop_entry --
UPDATE apex.quarantine
SET dropped_at = clock_timestamp(), closed_by = %(by)s, closed_because = %(because)s
WHERE saga_id = %(saga_id)s

-- erase_payloads --
-- Of the saga and of those that it followed, which had copies of the same.
WITH RECURSIVE chain AS (
    SELECT saga_id, predecessor_saga_id FROM apex.saga_state WHERE saga_id = %(saga_id)s
    UNION
    SELECT s.saga_id, s.predecessor_saga_id
    FROM chain c JOIN apex.saga_state s ON s.saga_id = c.predecessor_saga_id
)
DELETE FROM apex.extraction x USING chain JOIN apex.saga_state s USING (saga_id)
WHERE x.saga_id = chain.saga_id AND s.status = 'compensated'
RETURNING x.saga_id, coalesce(octet_length(x.source), 0) + coalesce(octet_length(x.body), 0) AS bytes

-- unsettle_sources --
-- Its file has to be looked after once more, on the machine that has the inbox.
UPDATE apex.submission SET settled_at = NULL
WHERE saga_id = %(saga_id)s AND source_uri IS NOT NULL
