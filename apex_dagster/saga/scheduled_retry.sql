-- Submissions that are tried again later. Locks in the ledger's order: saga rows, document rows, then
-- rows of apex.retry, which therefore need no lock of their own.

-- tries --
-- How often the submission that a saga stands for was tried, this time included; what lost to another
-- version and started again was no failure. Whether it came as a file, so that nobody waits for it; and
-- whether its undo had failed before, so that somebody has looked at it.
SELECT s.saga_id,
       (SELECT count(*) FROM apex.saga_state o
        WHERE o.document_id = s.document_id AND o.arrival = s.arrival
          AND coalesce(o.error ->> 'class', '') <> 'version_conflict') AS tries,
       EXISTS (SELECT FROM apex.submission u
               WHERE u.saga_id = s.saga_id AND u.source_uri IS NOT NULL) AS is_file,
       EXISTS (SELECT FROM apex.quarantine q WHERE q.saga_id = s.saga_id) AS was_failed
FROM apex.saga_state s WHERE s.saga_id = ANY (%(saga_ids)s) ORDER BY s.saga_id

-- schedule_retries --
INSERT INTO apex.retry (saga_id, due_at)
SELECT saga_id, clock_timestamp() + delay_s * interval '1 second'
FROM unnest(%(saga_ids)s::text[], %(delays_s)s::double precision[]) AS o (saga_id, delay_s)
ON CONFLICT DO NOTHING

-- count_due_retries --
SELECT count(*) AS due FROM (
    SELECT FROM apex.retry WHERE due_at < clock_timestamp() LIMIT %(limit)s) due

-- due_retries --
-- The longest overdue. SKIP LOCKED lets several recoveries share them without waiting.
SELECT s.* FROM apex.retry r JOIN apex.saga_state s USING (saga_id)
WHERE r.due_at < clock_timestamp()
ORDER BY r.due_at, s.saga_id LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED

-- waiting_retries --
-- Run after the locks: what another has taken in hand since it was found due is not among them.
SELECT saga_id, due_at FROM apex.retry WHERE saga_id = ANY (%(saga_ids)s) ORDER BY saga_id

-- postpone_retries --
UPDATE apex.retry SET due_at = clock_timestamp() + %(delay_s)s * interval '1 second'
WHERE saga_id = ANY (%(saga_ids)s)

-- drop_retries --
-- Those that were overruled.
DELETE FROM apex.retry r WHERE r.saga_id = ANY (%(saga_ids)s)

-- live_sagas --
-- Or the deletion, where that was the last.
SELECT s.* FROM apex.documents d
JOIN apex.saga_state s ON s.saga_id = coalesce(d.live_saga_id, d.tombstone_saga_id)
WHERE d.document_id = ANY (%(document_ids)s) ORDER BY s.saga_id

-- asked_again --
-- Those of the sagas whose document shows what somebody has sent once more since they arrived. As it
-- was live already no saga was opened for that, so no arrival tells of it.
SELECT s.saga_id FROM apex.saga_state s JOIN apex.documents d USING (document_id)
WHERE s.saga_id = ANY (%(saga_ids)s)
  AND (SELECT max(u.created_at) FROM apex.submission u WHERE u.saga_id = d.live_saga_id)
    > (SELECT min(o.created_at) FROM apex.saga_state o
       WHERE o.document_id = s.document_id AND o.arrival = s.arrival)

-- unsettled_sagas --
-- Of which nobody can say yet whether their content becomes live.
SELECT s.* FROM apex.saga_state s LEFT JOIN apex.retry r USING (saga_id)
WHERE s.document_id = ANY (%(document_ids)s)
  AND (s.status IN ('pending', 'in_progress', 'compensating') OR r.saga_id IS NOT NULL)
ORDER BY s.saga_id
