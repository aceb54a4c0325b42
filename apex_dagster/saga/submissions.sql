-- What became of submissions, for those who wait for an answer or ask a second time.
--
-- A submission whose saga lost a race is restarted in another saga of the same document and arrival,
-- with a higher version: the last of them stands for it.

-- earlier_submissions --
SELECT u.submission_id, u.client, u.idempotency_key, u.body_hash, u.answer_status, u.answer, u.saga_id
FROM apex.submission u
JOIN unnest(%(clients)s::text[], %(keys)s::text[]) AS o (client, idempotency_key)
  USING (client, idempotency_key)

-- standing_sagas --
SELECT DISTINCT ON (asked.saga_id) asked.saga_id AS asked_saga_id, s.*
FROM apex.saga_state asked JOIN apex.saga_state s USING (document_id, arrival)
WHERE asked.saga_id = ANY (%(saga_ids)s)
ORDER BY asked.saga_id, s.version DESC

-- ended_sagas --
-- Of many that are waited for, those that have ended, in one short row each.
SELECT * FROM (
    SELECT DISTINCT ON (asked.saga_id) asked.saga_id AS asked_saga_id, s.saga_id, s.document_id,
           s.version, s.status, s.error, s.pinned, s.published_at IS NOT NULL AS published
    FROM apex.saga_state asked JOIN apex.saga_state s USING (document_id, arrival)
    WHERE asked.saga_id = ANY (%(saga_ids)s)
    ORDER BY asked.saga_id, s.version DESC
) standing WHERE status IN ('completed', 'compensated', 'failed')

-- hand_on_key --
UPDATE apex.submission SET saga_id = %(saga_id)s WHERE submission_id = %(submission_id)s

-- keep_answers --
-- The first answer stays: of two processes that answer one key, both send it.
UPDATE apex.submission u
SET answer_status = coalesce(u.answer_status, o.status), answer = coalesce(u.answer, o.body)
FROM unnest(%(clients)s::text[], %(keys)s::text[], %(statuses)s::integer[], %(bodies)s::bytea[])
     AS o (client, idempotency_key, status, body)
WHERE u.client = o.client AND u.idempotency_key = o.idempotency_key
RETURNING u.client, u.idempotency_key, u.answer_status, u.answer

-- forget_keys --
UPDATE apex.submission SET idempotency_key = NULL, answer_status = NULL, answer = NULL
WHERE submission_id IN (
    SELECT submission_id FROM apex.submission
    WHERE idempotency_key IS NOT NULL
      AND created_at < clock_timestamp() - %(after_s)s::double precision * interval '1 second'
    ORDER BY created_at LIMIT %(limit)s)
