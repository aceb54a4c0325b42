-- Every read and write of the ledger.
--
-- A move (advance) is one conditional UPDATE on (status, epoch) that also appends one event to the
-- audit log, for a batch of sagas at once; what it does not return was refused. Statements lock saga
-- rows in the order of saga_id, then document rows in the order of document_id, so none deadlock;
-- FOR NO KEY UPDATE, as a submission that joins a saga locks its key while it holds the document.
-- A move that may be lost commits without a wait for the disk; those after it, which wait, bring it there.
-- Leases are set and compared by clock_timestamp() of this database, never by a host's clock.
-- Where every batch pays for it, arrays are sent in binary (%b): as text each string in them is searched
-- for what has to be escaped, which took half of the client's time.

-- advance --
WITH move AS (
    SELECT * FROM unnest(%(saga_ids)b::text[], %(epochs)s::integer[], %(details)b::jsonb[])
                  AS m (saga_id, epoch, detail)
), locked AS MATERIALIZED (
    SELECT s.saga_id FROM apex.saga_state s JOIN move m USING (saga_id)
    ORDER BY s.saga_id FOR NO KEY UPDATE OF s
), clock AS MATERIALIZED (
    SELECT clock_timestamp() AS at,
           CASE WHEN %(may_be_lost)s THEN set_config('synchronous_commit', 'off', true) END AS late
), moved AS (
    UPDATE apex.saga_state s SET
        status = coalesce(%(target)s, s.status),
        epoch = s.epoch + %(epoch_step)s::integer,
        takeovers = s.takeovers + %(takeover)s::integer,
        -- How far the saga came, for people; an undo must not move it.
        current_step = CASE WHEN %(records)s = 'undone_step' THEN s.current_step
            ELSE coalesce(%(step)s, s.current_step) END,
        -- What an undo goes by.
        started_steps = CASE WHEN %(event)s = 'step_started' AND NOT %(step)s = ANY (s.started_steps)
            THEN s.started_steps || %(step)s::text ELSE s.started_steps END,
        completed_steps = CASE WHEN %(records)s = 'completed_step'
            THEN s.completed_steps || jsonb_build_object(%(step)s::text, m.detail) ELSE s.completed_steps END,
        undone_steps = CASE WHEN %(records)s = 'undone_step'
            THEN s.undone_steps || jsonb_build_object(%(step)s::text, m.detail) ELSE s.undone_steps END,
        error = CASE WHEN %(records)s = 'error' THEN m.detail
            WHEN %(forgets_error)s THEN NULL ELSE s.error END,
        replaces_saga_id = coalesce(m.detail ->> 'replaces_saga_id', s.replaces_saga_id),
        run_id = coalesce(%(run_id)s, s.run_id),
        lease_owner = coalesce(%(owner)s, s.lease_owner),
        lease_expires_at = CASE WHEN %(owner)s::text IS NULL THEN s.lease_expires_at
            ELSE c.at + %(lease_s)s::double precision * interval '1 second' END,
        ended_at = CASE WHEN %(target)s IN ('completed', 'compensated', 'failed') THEN c.at
            WHEN %(target)s::text IS NOT NULL THEN NULL ELSE s.ended_at END,
        published_at = CASE WHEN %(event)s = 'saga_published' THEN c.at ELSE s.published_at END,
        updated_at = c.at,
        event_seq = s.event_seq + 1,
        event_hash = apex.event_hash(
            s.event_hash, s.saga_id, s.event_seq + 1, %(event)s, %(step)s, coalesce(%(target)s, s.status),
            s.epoch + %(epoch_step)s::integer, %(duration_ms)s::double precision, m.detail, c.at)
    FROM move m JOIN locked USING (saga_id), clock c
    WHERE s.saga_id = m.saga_id AND s.epoch = m.epoch AND s.status = ANY (%(source)s)
    RETURNING s.*, m.detail, c.at
), logged AS (
    INSERT INTO apex.saga_event (saga_id, seq, event, step, status, epoch, duration_ms, detail, at, hash)
    SELECT saga_id, event_seq, %(event)s::text, %(step)s::text, status, epoch,
           %(duration_ms)s::double precision, detail, at, event_hash
    FROM moved
)
SELECT * FROM moved ORDER BY saga_id

-- record_steps --
-- What `advance` does for step_started and step_completed, for several steps of each saga in one
-- UPDATE: each event carries on the hash of the one before it. What the chain is continued from is
-- read under the lock, or a move that was in flight would be passed over.
WITH RECURSIVE move AS (
    SELECT * FROM unnest(%(saga_ids)b::text[], %(epochs)s::integer[], %(completed)b::jsonb[])
                  AS m (saga_id, epoch, completed)
), record AS (
    SELECT * FROM unnest(%(record_sagas)b::text[], %(numbers)s::integer[], %(steps)b::text[],
                         %(durations_ms)s::double precision[], %(details)b::jsonb[])
                  AS r (saga_id, number, step, duration_ms, detail)
), locked AS MATERIALIZED (
    SELECT s.saga_id, s.epoch, s.status, s.event_seq, s.event_hash, m.completed
    FROM apex.saga_state s JOIN move m USING (saga_id)
    WHERE s.epoch = m.epoch AND s.status = 'in_progress'
    ORDER BY s.saga_id FOR NO KEY UPDATE OF s
), clock AS MATERIALIZED (
    SELECT clock_timestamp() AS at,
           CASE WHEN %(may_be_lost)s THEN set_config('synchronous_commit', 'off', true) END AS late
), chain AS (
    SELECT saga_id, 0 AS number, NULL::text AS step, NULL::double precision AS duration_ms,
           NULL::jsonb AS detail, epoch, status, event_seq, event_hash
    FROM locked
    UNION ALL
    SELECT c.saga_id, r.number, r.step, r.duration_ms, r.detail, c.epoch, c.status, c.event_seq + 1,
           apex.event_hash(c.event_hash, c.saga_id, c.event_seq + 1, %(event)s, r.step, c.status,
                           c.epoch, r.duration_ms, r.detail, clock.at)
    FROM chain c JOIN record r ON r.saga_id = c.saga_id AND r.number = c.number + 1, clock
), last AS (
    SELECT DISTINCT ON (saga_id) saga_id, step, event_seq, event_hash
    FROM chain WHERE number > 0 ORDER BY saga_id, number DESC
), started AS (
    SELECT saga_id, array_agg(step ORDER BY number) AS steps FROM record GROUP BY saga_id
), moved AS (
    UPDATE apex.saga_state s SET
        current_step = last.step,
        started_steps = s.started_steps || ARRAY(
            SELECT step FROM unnest(started.steps) WITH ORDINALITY AS u (step, place)
            WHERE %(event)s = 'step_started' AND NOT step = ANY (s.started_steps) ORDER BY place),
        completed_steps = s.completed_steps || l.completed,
        updated_at = clock.at, event_seq = last.event_seq, event_hash = last.event_hash
    FROM locked l JOIN last USING (saga_id) JOIN started USING (saga_id), clock
    WHERE s.saga_id = l.saga_id
    RETURNING s.*
), logged AS (
    INSERT INTO apex.saga_event (saga_id, seq, event, step, status, epoch, duration_ms, detail, at, hash)
    SELECT saga_id, event_seq, %(event)s::text, step, status, epoch, duration_ms, detail, clock.at, event_hash
    FROM chain, clock WHERE number > 0
)
SELECT * FROM moved ORDER BY saga_id

-- lock_documents --
-- head: what was decided last, a live version or the deletion that took one away. Which one it is comes
-- from the row that is locked: after a wait for another pivot that is read anew, what is joined is not.
SELECT d.document_id, d.live_version, d.live_saga_id,
       coalesce(d.live_version, d.tombstone_version) AS head_version,
       coalesce(d.live_saga_id, d.tombstone_saga_id) AS head_saga_id, head.arrival AS head_arrival,
       head.version IS NOT NULL AND head.published_at IS NULL AS head_is_unpublished
FROM apex.documents d
LEFT JOIN apex.saga_state head ON head.saga_id = coalesce(d.live_saga_id, d.tombstone_saga_id)
WHERE d.document_id = ANY (%(document_ids)s)
ORDER BY d.document_id FOR NO KEY UPDATE OF d

-- sagas_of_owner --
SELECT * FROM apex.saga_state WHERE saga_id = ANY (%(saga_ids)s) AND lease_owner = %(owner)s ORDER BY saga_id

-- held_sagas --
-- Those of the given sagas that the owner still holds, their leases renewed.
WITH locked AS MATERIALIZED (
    SELECT saga_id FROM apex.saga_state WHERE saga_id = ANY (%(saga_ids)s) ORDER BY saga_id FOR NO KEY UPDATE
)
UPDATE apex.saga_state s
SET lease_expires_at = clock_timestamp() + %(lease_s)s * interval '1 second'
FROM locked WHERE s.saga_id = locked.saga_id AND s.lease_owner = %(owner)s
RETURNING s.*

-- renew_leases --
-- One statement for all that an owner holds.
UPDATE apex.saga_state
SET lease_expires_at = clock_timestamp() + %(lease_s)s * interval '1 second'
WHERE saga_id IN (
    SELECT saga_id FROM apex.saga_state
    WHERE lease_owner = %(owner)s
      AND (status IN ('in_progress', 'compensating') OR (status = 'completed' AND published_at IS NULL))
    ORDER BY saga_id FOR NO KEY UPDATE)
RETURNING saga_id

-- expired_sagas --
-- SKIP LOCKED lets several recoveries run side by side without queueing behind each other.
-- What waits for a store that is down stays where it is. The longest left come first, or some would
-- be passed over for as long as others keep coming.
SELECT * FROM apex.saga_state s
WHERE lease_expires_at < clock_timestamp() AND status = ANY (%(statuses)s::text[])
  AND (status IN ('pending', 'in_progress', 'compensating')
       OR (status = 'completed' AND published_at IS NULL))
  AND NOT EXISTS (SELECT FROM apex.breaker b WHERE b.store = ANY (s.waits_for) AND b.closed_at IS NULL)
ORDER BY lease_expires_at, saga_id LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED

-- expired_among --
SELECT * FROM apex.saga_state
WHERE saga_id = ANY (%(saga_ids)s)
  AND (lease_expires_at < clock_timestamp() OR lease_owner = %(dead_owner)s)
ORDER BY saga_id FOR NO KEY UPDATE SKIP LOCKED

-- lock_sagas --
SELECT * FROM apex.saga_state WHERE saga_id = ANY (%(saga_ids)s) ORDER BY saga_id FOR NO KEY UPDATE

-- point_documents --
-- The pivot itself: from this row on readers see the new version.
UPDATE apex.documents d
SET live_version = o.version, live_saga_id = o.saga_id, content_hash = o.content_hash,
    ingestion_status = 'committed', deleted_at = NULL, tombstone_version = NULL,
    tombstone_saga_id = NULL, updated_at = clock_timestamp()
FROM unnest(%(document_ids)s::text[], %(versions)s::integer[], %(saga_ids)s::text[],
            %(content_hashes)s::text[]) AS o (document_id, version, saga_id, content_hash)
WHERE d.document_id = o.document_id

-- bury_documents --
-- The pivot of a deletion: from this row on readers find no version. The row stays, as its counter must
-- not begin again, and the deletion's name in it keeps out whatever was submitted before.
UPDATE apex.documents d
SET live_version = NULL, live_saga_id = NULL, content_hash = NULL, ingestion_status = 'deleted',
    deleted_at = clock_timestamp(), tombstone_version = o.version, tombstone_saga_id = o.saga_id,
    updated_at = clock_timestamp()
FROM unnest(%(document_ids)s::text[], %(versions)s::integer[], %(saga_ids)s::text[])
     AS o (document_id, version, saga_id)
WHERE d.document_id = o.document_id

-- publications --
SELECT s.saga_id, s.kind, s.document_id, s.version,
       old.saga_id AS replaced_saga_id, old.version AS replaced_version
FROM apex.saga_state s
JOIN apex.documents d USING (document_id)
LEFT JOIN apex.saga_state old ON old.saga_id = s.replaces_saga_id AND old.kind = 'ingest'
WHERE s.saga_id = ANY (%(saga_ids)s) AND s.saga_id IN (d.live_saga_id, d.tombstone_saga_id)
ORDER BY s.saga_id

-- schedule_sweeps --
INSERT INTO apex.sweep (saga_id, due_at, reason)
SELECT saga_id, clock_timestamp() + delay_s * interval '1 second', %(reason)s
FROM unnest(%(saga_ids)s::text[]) AS saga_id, unnest(%(delays_s)s::double precision[]) AS delay_s
ON CONFLICT DO NOTHING

-- quarantine --
-- Attempts are sagas of the same submission that did not just lose to another version, and every owner
-- that took one of them over.
INSERT INTO apex.quarantine (saga_id, document_id, error_class, step, reason, attempts, source_uri)
SELECT s.saga_id, s.document_id, coalesce(s.error ->> 'class', 'unexpected'), s.error ->> 'step',
       coalesce(s.error ->> 'message', 'no reason was recorded'),
       greatest(1, (SELECT sum(o.takeovers + 1) FROM apex.saga_state o
                    WHERE o.document_id = s.document_id AND o.arrival = s.arrival
                      AND coalesce(o.error ->> 'class', '') <> 'version_conflict')),
       x.source_uri
FROM apex.saga_state s LEFT JOIN apex.extraction x USING (saga_id)
WHERE s.saga_id = ANY (%(saga_ids)s)
  -- What was submitted before its document was deleted is not kept for anybody. Nor is there anything to
  -- keep of a deletion that came to nothing: it is asked for again.
  AND (s.status = 'failed' OR s.kind = 'ingest' AND NOT EXISTS (
      SELECT FROM apex.saga_state deletion
      WHERE deletion.document_id = s.document_id AND deletion.arrival > s.arrival
        AND deletion.kind = 'delete' AND deletion.status = 'completed'))
ON CONFLICT (saga_id) DO UPDATE SET reason = excluded.reason, error_class = excluded.error_class,
    step = excluded.step, attempts = excluded.attempts, released_at = NULL

-- leave_quarantine --
UPDATE apex.quarantine SET released_at = clock_timestamp()
WHERE saga_id = ANY (%(saga_ids)s) AND released_at IS NULL AND dropped_at IS NULL

-- list_quarantine --
SELECT saga_id, document_id, error_class, step, reason, attempts, source_uri, created_at
FROM apex.quarantine WHERE released_at IS NULL AND dropped_at IS NULL
ORDER BY created_at LIMIT %(limit)s

-- sagas_by_id --
SELECT * FROM apex.saga_state WHERE saga_id = ANY (%(saga_ids)s) ORDER BY saga_id

-- sagas_of_run --
SELECT * FROM apex.saga_state WHERE run_id = %(run_id)s ORDER BY arrival

-- overdue_sagas --
-- Those that nobody drives although their lease ran out longer ago than recovery may take. For one that
-- waits for a store the time runs from when that is back; for all, from when this database is.
SELECT * FROM apex.saga_state s
WHERE lease_expires_at < clock_timestamp() - %(bound_s)s::double precision * interval '1 second'
  AND (status IN ('pending', 'in_progress', 'compensating')
       OR (status = 'completed' AND published_at IS NULL))
  AND NOT EXISTS (
      SELECT FROM apex.breaker b
      WHERE (b.store = ANY (s.waits_for) OR b.store = 'postgres')
        AND (b.closed_at IS NULL
             OR b.closed_at > clock_timestamp() - %(bound_s)s::double precision * interval '1 second'))
ORDER BY lease_expires_at LIMIT %(limit)s

-- waiting_sagas --
SELECT * FROM apex.saga_state
WHERE waits_for IS NOT NULL AND lease_owner IS NULL
  AND (status = 'compensating' OR (status = 'completed' AND published_at IS NULL))
ORDER BY lease_expires_at LIMIT %(limit)s

-- list_sagas --
-- The order is total, so a page begins exactly where the one before it ended. Filters by document and by
-- run have indexes of their own; one by status costs the sagas that it passes over.
SELECT * FROM apex.saga_state
WHERE (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s))
  AND (%(document_id)s::text IS NULL OR document_id = %(document_id)s)
  AND (%(run_id)s::text IS NULL OR run_id = %(run_id)s)
  AND (%(last_saga_id)s::text IS NULL OR (created_at, arrival, saga_id)
       < (%(last_created_at)s::timestamptz, %(last_arrival)s::bigint, %(last_saga_id)s))
ORDER BY created_at DESC, arrival DESC, saga_id DESC LIMIT %(limit)s

-- newest_sagas --
-- The last saga of each document; of more than the limit, those that arrived last. By arrival.
SELECT * FROM (
    SELECT * FROM (
        SELECT DISTINCT ON (document_id) * FROM apex.saga_state
        WHERE %(document_ids)s::text[] IS NULL OR document_id = ANY (%(document_ids)s)
        ORDER BY document_id, arrival DESC, version DESC
    ) newest ORDER BY arrival DESC LIMIT %(limit)s
) page ORDER BY arrival

-- pointers --
SELECT document_id, live_version, live_saga_id, content_hash, tombstone_saga_id FROM apex.documents
WHERE document_id = ANY (%(document_ids)s)

-- events --
SELECT seq, event, step, status, epoch, duration_ms, detail, at FROM apex.saga_event
WHERE saga_id = %(saga_id)s ORDER BY seq

-- unsettled_sources --
-- Of each of the file's documents the last submission counts, settled or not: a document that is tried
-- once more, or released from quarantine, must not decide alone over a file that holds several.
WITH unsettled AS (
    SELECT DISTINCT source_uri, body_hash FROM apex.submission
    WHERE source_uri IS NOT NULL AND settled_at IS NULL
), newest AS (
    SELECT DISTINCT ON (u.source_uri, u.body_hash, u.document_id)
           u.source_uri, u.body_hash, u.document_id, u.saga_id
    FROM apex.submission u JOIN unsettled USING (source_uri, body_hash)
    ORDER BY u.source_uri, u.body_hash, u.document_id, u.submission_id DESC
)
SELECT n.source_uri, n.body_hash, bool_and(s.status IN ('completed', 'compensated', 'failed')) AS ended,
       bool_or(r.saga_id IS NOT NULL) AS waits,
       jsonb_agg(jsonb_build_object(
           'document_id', s.document_id, 'saga_id', s.saga_id, 'status', s.status, 'error', s.error,
           'quarantined', q.saga_id IS NOT NULL AND q.released_at IS NULL AND q.dropped_at IS NULL,
           'attempts', q.attempts, 'dropped', q.dropped_at IS NOT NULL,
           'deleted', EXISTS (
               SELECT FROM apex.saga_state deletion
               WHERE deletion.document_id = s.document_id AND deletion.arrival > s.arrival
                 AND deletion.kind = 'delete' AND deletion.status = 'completed'))
           ORDER BY s.arrival) AS sagas
FROM newest n JOIN apex.saga_state s USING (saga_id)
LEFT JOIN apex.retry r USING (saga_id) LEFT JOIN apex.quarantine q USING (saga_id)
GROUP BY n.source_uri, n.body_hash

-- settle_source --
UPDATE apex.submission SET settled_at = clock_timestamp()
WHERE source_uri = %(source_uri)s AND body_hash = %(body_hash)s AND settled_at IS NULL
