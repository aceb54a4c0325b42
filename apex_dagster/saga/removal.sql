-- What a deletion does to the ledger itself, and its receipt. Locks in the ledger's order: saga rows by
-- saga_id, then the rest. "Earlier": submitted before the deletion, so that it can never become live
-- again; what is still under way among that is erased when it has been undone and swept.

-- removable --
-- What each deletion in progress will remove: its document's live version, if there is one.
SELECT s.saga_id, s.document_id, s.version, d.live_saga_id, d.live_version
FROM apex.saga_state s JOIN apex.documents d USING (document_id)
WHERE s.saga_id = ANY (%(saga_ids)s) ORDER BY s.saga_id

-- earlier_in_quarantine --
-- What waits there for somebody: it is dropped, as that one would have dropped it.
SELECT s.*, deletion.saga_id AS deletion_saga_id
FROM apex.saga_state deletion
JOIN apex.saga_state s ON s.document_id = deletion.document_id AND s.arrival < deletion.arrival
JOIN apex.quarantine q ON q.saga_id = s.saga_id AND q.released_at IS NULL AND q.dropped_at IS NULL
WHERE deletion.saga_id = ANY (%(saga_ids)s) AND s.status = 'compensated'
ORDER BY s.saga_id FOR NO KEY UPDATE OF s

-- drop_entries --
UPDATE apex.quarantine q
SET dropped_at = clock_timestamp(), closed_by = 'deletion', closed_because = o.because
FROM unnest(%(saga_ids)s::text[], %(because)s::text[]) AS o (saga_id, because)
WHERE q.saga_id = o.saga_id

-- erase_extractions --
WITH erased AS (
    DELETE FROM apex.extraction x
    USING apex.saga_state s
    JOIN apex.saga_state deletion ON deletion.document_id = s.document_id AND s.arrival < deletion.arrival
    WHERE deletion.saga_id = ANY (%(saga_ids)s) AND x.saga_id = s.saga_id
      AND s.status IN ('completed', 'compensated')
    RETURNING deletion.saga_id
)
SELECT saga_id, count(*) AS erased FROM erased GROUP BY saga_id ORDER BY saga_id

-- erase_answers --
-- Whoever repeats one of those requests is told once more how its saga ended.
WITH erased AS (
    UPDATE apex.submission u SET answer_status = NULL, answer = NULL
    FROM apex.saga_state s
    JOIN apex.saga_state deletion ON deletion.document_id = s.document_id AND s.arrival < deletion.arrival
    WHERE deletion.saga_id = ANY (%(saga_ids)s) AND u.saga_id = s.saga_id AND u.answer IS NOT NULL
    RETURNING deletion.saga_id
)
SELECT saga_id, count(*) AS erased FROM erased GROUP BY saga_id ORDER BY saga_id

-- unsettle_earlier --
-- The files that they came in are to be deleted, on the machine that has the inbox.
UPDATE apex.submission u SET settled_at = NULL
FROM apex.saga_state s
JOIN apex.saga_state deletion ON deletion.document_id = s.document_id AND s.arrival < deletion.arrival
WHERE deletion.saga_id = ANY (%(saga_ids)s) AND u.saga_id = s.saga_id
  AND u.source_uri IS NOT NULL AND u.settled_at IS NOT NULL

-- kept_of_earlier --
-- The read-back: extractions that are kept although a deletion came after them. Not those of sagas that
-- are under way, or whose undo has failed, which an operator has to see to.
SELECT deletion.saga_id, count(*) AS kept
FROM apex.saga_state deletion
JOIN apex.saga_state s ON s.document_id = deletion.document_id AND s.arrival < deletion.arrival
JOIN apex.extraction x ON x.saga_id = s.saga_id
WHERE deletion.saga_id = ANY (%(saga_ids)s) AND s.status IN ('completed', 'compensated')
GROUP BY deletion.saga_id ORDER BY deletion.saga_id

-- insert_receipts --
INSERT INTO apex.deletion_receipt (saga_id, document_id, body, signature, public_key)
SELECT * FROM unnest(%(saga_ids)s::text[], %(document_ids)s::text[], %(bodies)b::bytea[],
                     %(signatures)b::bytea[], %(public_keys)b::bytea[])
ON CONFLICT DO NOTHING

-- receipts --
-- By saga, or the newest of a document.
SELECT saga_id, document_id, body, signature, public_key, created_at FROM apex.deletion_receipt
WHERE saga_id = %(name)s OR document_id = %(name)s
ORDER BY saga_id = %(name)s DESC, created_at DESC LIMIT 1
