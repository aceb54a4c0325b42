-- What proves the audit log: anchors, and checks that recompute everything from the events.
--
-- Each check returns (document_id, saga_id, expected, found), one row a difference. Checks run in one
-- REPEATABLE READ transaction, so sagas that move meanwhile differ in nothing. Events are read in the
-- order of their primary key, so that memory does not grow with them.

-- lock_anchors --
SELECT pg_advisory_xact_lock(hashtext('apex.audit_anchor'))

-- last_anchor --
-- Of a database that was restored into another cluster the transactions count from the start again:
-- then nothing is known about what is new, and everything is looked at.
SELECT coalesce(anchor_seq, 0) AS anchor_seq,
       coalesce(anchored_at > clock_timestamp() - %(every_s)s::double precision * interval '1 second', false)
           AS is_recent,
       now.horizon::text AS horizon,
       CASE WHEN last.horizon <= now.horizon THEN last.horizon ELSE '0'::xid8 END::text AS since
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS horizon) now
LEFT JOIN (SELECT * FROM apex.audit_anchor ORDER BY anchor_seq DESC LIMIT 1) last ON true

-- insert_anchor --
-- What a transaction in flight writes is in the next anchor, as the horizon stays below it.
WITH changed AS (
    SELECT saga_id, max(seq) AS seq FROM apex.saga_event
    WHERE written_in >= %(since)s::xid8 GROUP BY saga_id
), head AS MATERIALIZED (
    SELECT saga_id, e.seq, e.hash FROM changed JOIN apex.saga_event e USING (saga_id, seq)
    WHERE NOT EXISTS (
        SELECT FROM apex.audit_head h WHERE h.saga_id = e.saga_id AND h.event_seq >= e.seq)
), kept AS (
    INSERT INTO apex.audit_head (saga_id, event_seq, event_hash, anchor_seq)
    SELECT saga_id, seq, hash, %(anchor_seq)s + 1 FROM head
), digest AS (
    SELECT count(*) AS heads,
           string_agg(apex.head_hash(saga_id, seq, hash), ''::bytea ORDER BY saga_id COLLATE "C") AS hashes
    FROM head
), clock AS MATERIALIZED (
    SELECT clock_timestamp() AS at
)
INSERT INTO apex.audit_anchor (anchor_seq, horizon, head_count, anchored_at, hash)
SELECT %(anchor_seq)s + 1, %(horizon)s::xid8, heads, at, apex.anchor_hash(
    coalesce((SELECT hash FROM apex.audit_anchor WHERE anchor_seq = %(anchor_seq)s), ''::bytea),
    %(anchor_seq)s + 1, %(horizon)s::xid8, at, hashes)
FROM digest, clock WHERE heads > 0
RETURNING anchor_seq, head_count, anchored_at, encode(hash, 'hex') AS hash

-- begin_verification --
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- allow_long_reads --
SELECT set_config('statement_timeout', '0', true),
       set_config('idle_in_transaction_session_timeout', '0', true)

-- count_all --
SELECT (SELECT count(*) FROM apex.saga_state) AS sagas,
       (SELECT count(*) FROM apex.saga_event) AS events,
       (SELECT count(*) FROM apex.audit_anchor) AS anchors

-- broken_events --
-- Each event follows the one before it, carries its hash on, and is a move that the table allows.
WITH move AS (
    SELECT * FROM unnest(%(events)s::text[], %(sources)s::text[], %(targets)s::text[],
                         %(epoch_steps)s::integer[]) AS m (event, source, target, epoch_step)
), chained AS (
    SELECT *, lag(seq, 1, 0) OVER chain AS previous_seq,
           lag(hash, 1, ''::bytea) OVER chain AS previous_hash,
           lag(status, 1, 'pending') OVER chain AS previous_status,
           lag(epoch, 1, 0) OVER chain AS previous_epoch
    FROM apex.saga_event WINDOW chain AS (PARTITION BY saga_id ORDER BY seq)
), judged AS (
    SELECT c.*, CASE
        WHEN c.seq <> c.previous_seq + 1 THEN 'gap'
        WHEN c.hash <> apex.event_hash(c.previous_hash, c.saga_id, c.seq, c.event, c.step, c.status, c.epoch,
                                       c.duration_ms, c.detail, c.at) THEN 'hash'
        WHEN m.event IS NULL OR c.status <> m.target OR c.epoch <> c.previous_epoch + m.epoch_step
             OR (c.event = 'saga_opened') <> (c.seq = 1) THEN 'move'
        END AS fault
    FROM chained c LEFT JOIN move m ON m.event = c.event AND m.source = c.previous_status
)
SELECT s.document_id, j.saga_id,
       CASE fault
           WHEN 'gap' THEN format('event %%s after event %%s', previous_seq + 1, previous_seq)
           WHEN 'hash' THEN format('event %%s, %%s, as it was written', seq, event)
           ELSE format('a move that is allowed from %%s, epoch %%s', previous_status, previous_epoch)
       END AS expected,
       CASE fault
           WHEN 'gap' THEN format('event %%s', seq)
           WHEN 'hash' THEN 'other content than its hash was made from'
           ELSE format('event %%s, %%s, to %%s, epoch %%s', seq, event, j.status, j.epoch)
       END AS found
FROM judged j LEFT JOIN apex.saga_state s USING (saga_id)
WHERE fault IS NOT NULL LIMIT %(limit)s

-- broken_heads --
-- Each saga's row is where its last event says it is.
WITH tail AS (
    SELECT saga_id, max(seq) AS seq, bool_or(event = 'saga_published') AS published
    FROM apex.saga_event GROUP BY saga_id
), last AS (
    SELECT t.saga_id, t.seq, t.published, e.hash, e.status, e.epoch
    FROM tail t JOIN apex.saga_event e USING (saga_id, seq)
), judged AS (
    SELECT s.document_id, coalesce(s.saga_id, e.saga_id) AS saga_id, s.event_seq, e.seq,
           s.status AS row_status, e.status, s.epoch AS row_epoch, e.epoch, e.published, CASE
        WHEN s.saga_id IS NULL THEN 'row'
        WHEN s.event_seq IS DISTINCT FROM e.seq THEN 'count'
        WHEN s.event_hash <> e.hash THEN 'hash'
        WHEN s.status <> e.status OR s.epoch <> e.epoch THEN 'status'
        WHEN (s.published_at IS NOT NULL) <> e.published THEN 'published'
        END AS fault
    FROM apex.saga_state s FULL JOIN last e ON e.saga_id = s.saga_id
)
SELECT document_id, saga_id,
       CASE fault
           WHEN 'row' THEN format('a saga with %%s events', seq)
           WHEN 'count' THEN format('%%s events', event_seq)
           WHEN 'hash' THEN format('the hash of event %%s at the saga', seq)
           WHEN 'status' THEN format('%%s, epoch %%s, by its last event', status, epoch)
           ELSE CASE WHEN published THEN 'published' ELSE 'not published' END || ', by its events'
       END AS expected,
       CASE fault
           WHEN 'row' THEN 'no saga of that id'
           WHEN 'count' THEN format('%%s', coalesce(seq, 0))
           WHEN 'hash' THEN 'another'
           WHEN 'status' THEN format('%%s, epoch %%s', row_status, row_epoch)
           ELSE 'the contrary at the saga'
       END AS found
FROM judged WHERE fault IS NOT NULL LIMIT %(limit)s

-- broken_anchors --
-- Each anchor follows the one before it and hashes the heads that are kept of it.
WITH digest AS (
    SELECT anchor_seq, count(*) AS heads, string_agg(
        apex.head_hash(saga_id, event_seq, event_hash), ''::bytea ORDER BY saga_id COLLATE "C") AS hashes
    FROM apex.audit_head GROUP BY anchor_seq
), chained AS (
    SELECT *, lag(anchor_seq, 1, 0::bigint) OVER (ORDER BY anchor_seq) AS previous_seq,
           lag(hash, 1, ''::bytea) OVER (ORDER BY anchor_seq) AS previous_hash
    FROM apex.audit_anchor
)
SELECT NULL AS document_id, NULL AS saga_id,
       format('anchor %%s after anchor %%s, with the hash of its %%s heads', previous_seq + 1, previous_seq,
              head_count) AS expected,
       format('anchor %%s with %%s heads and another hash', anchor_seq, coalesce(heads, 0)) AS found
FROM chained LEFT JOIN digest USING (anchor_seq)
WHERE anchor_seq <> previous_seq + 1 OR heads IS DISTINCT FROM head_count
   OR hash IS DISTINCT FROM apex.anchor_hash(previous_hash, anchor_seq, horizon, anchored_at, hashes)
ORDER BY anchor_seq LIMIT %(limit)s

-- lost_heads --
-- What was anchored is there still. Of a chain that has lost several anchored heads the first is named.
SELECT s.document_id, h.saga_id,
       format('event %%s as anchor %%s has it', min(h.event_seq), min(h.anchor_seq)) AS expected,
       CASE WHEN (SELECT max(seq) FROM apex.saga_event e WHERE e.saga_id = h.saga_id) IS NULL
            THEN 'no events at all' ELSE 'no such event, or another hash' END AS found
FROM apex.audit_head h
LEFT JOIN apex.saga_event e ON e.saga_id = h.saga_id AND e.seq = h.event_seq AND e.hash = h.event_hash
LEFT JOIN apex.saga_state s ON s.saga_id = h.saga_id
WHERE e.saga_id IS NULL GROUP BY s.document_id, h.saga_id LIMIT %(limit)s

-- missing_anchor --
-- An anchor whose hash somebody noted elsewhere.
SELECT NULL AS document_id, NULL AS saga_id, format('an anchor with hash %%s', %(hash)s::text) AS expected,
       format('%%s anchors, none of them with it', (SELECT count(*) FROM apex.audit_anchor)) AS found
WHERE %(hash)s::text IS NOT NULL
  AND NOT EXISTS (SELECT FROM apex.audit_anchor WHERE encode(hash, 'hex') = lower(%(hash)s::text))

-- renamed_sagas --
-- A saga stands for the document and version that it was opened for.
SELECT s.document_id, s.saga_id,
       format('%%s, version %%s, as it was opened for', e.detail ->> 'document_id', e.detail ->> 'version') AS expected,
       format('%%s, version %%s', s.document_id, s.version) AS found
FROM apex.saga_event e JOIN apex.saga_state s USING (saga_id)
WHERE e.event = 'saga_opened'
  AND (e.detail ->> 'document_id' <> s.document_id OR (e.detail ->> 'version')::integer <> s.version
       OR coalesce(e.detail ->> 'kind', 'ingest') <> s.kind)
LIMIT %(limit)s

-- misplaced_pointers --
-- The pivots alone say what must be live: of each document the one with the highest version, as a
-- saga gets its version after everything it may replace, and each pivot names what it replaced.
WITH pivot AS (
    SELECT coalesce(o.detail ->> 'document_id', s.document_id) AS document_id, e.saga_id, s.content_hash,
           coalesce((o.detail ->> 'version')::integer, s.version) AS version,
           o.detail ->> 'kind' = 'delete' AS deletes, e.detail ->> 'replaces_saga_id' AS replaced
    FROM apex.saga_event e
    LEFT JOIN apex.saga_event o ON o.saga_id = e.saga_id AND o.event = 'saga_opened'
    LEFT JOIN apex.saga_state s ON s.saga_id = e.saga_id
    WHERE e.event = 'saga_completed'
), ordered AS (
    SELECT *, lag(saga_id) OVER versions AS previous, lead(saga_id) OVER versions IS NULL AS is_last
    FROM pivot WINDOW versions AS (PARTITION BY document_id ORDER BY version)
)
SELECT document_id, o.saga_id, format('version %%s live', o.version) AS expected,
       CASE WHEN d.live_version IS NULL THEN 'no live version'
            WHEN d.live_saga_id = o.saga_id AND d.live_version = o.version
            THEN format('version %%s with another content hash, or %%s', o.version, d.ingestion_status)
            ELSE format('version %%s of %%s live', d.live_version, d.live_saga_id) END AS found
FROM (SELECT * FROM ordered WHERE is_last) o LEFT JOIN apex.documents d USING (document_id)
WHERE o.deletes IS NOT TRUE
  AND (d.live_saga_id, d.live_version, d.content_hash, d.ingestion_status)
      IS DISTINCT FROM (o.saga_id, o.version, o.content_hash, 'committed')
UNION ALL
SELECT document_id, o.saga_id, format('no live version, as of deletion %%s', o.version),
       CASE WHEN d.live_saga_id IS NOT NULL
            THEN format('version %%s of %%s live', d.live_version, d.live_saga_id)
            ELSE format('deletion %%s, %%s', coalesce(d.tombstone_saga_id, 'none'), d.ingestion_status) END
FROM (SELECT * FROM ordered WHERE is_last) o LEFT JOIN apex.documents d USING (document_id)
WHERE o.deletes
  AND (d.live_saga_id, d.tombstone_saga_id, d.tombstone_version, d.ingestion_status, d.deleted_at IS NULL)
      IS DISTINCT FROM (NULL::text, o.saga_id, o.version, 'deleted', false)
UNION ALL
SELECT document_id, live_saga_id, 'no live version', format('version %%s live', live_version)
FROM apex.documents d
WHERE live_saga_id IS NOT NULL AND NOT EXISTS (SELECT FROM pivot p WHERE p.document_id = d.document_id)
UNION ALL
SELECT document_id, saga_id, format('a pivot that replaces %%s', coalesce(previous, 'nothing')),
       format('one that replaces %%s', coalesce(replaced, 'nothing'))
FROM ordered WHERE replaced IS DISTINCT FROM previous
LIMIT %(limit)s

-- misplaced_receipts --
-- A deletion whose removal is over has the receipt that its last event names, and no other has one.
SELECT coalesce(s.document_id, r.document_id) AS document_id, coalesce(e.saga_id, r.saga_id) AS saga_id,
       format('the receipt %%s', coalesce(e.detail ->> 'receipt_sha256', 'of a removal that is over')) AS expected,
       coalesce(encode(sha256(r.body), 'hex'), 'nothing') AS found
FROM (SELECT saga_id, detail FROM apex.saga_event
      WHERE event = 'saga_published' AND detail ? 'receipt_sha256') e
FULL JOIN apex.deletion_receipt r USING (saga_id)
LEFT JOIN apex.saga_state s ON s.saga_id = e.saga_id
WHERE encode(sha256(r.body), 'hex') IS DISTINCT FROM e.detail ->> 'receipt_sha256'
LIMIT %(limit)s

-- kept_originals --
-- What a deletion erased of its document is gone. What was under way at its pivot is swept later.
SELECT s.document_id, s.saga_id, format('nothing, as of %%s', deletion.saga_id) AS expected,
       'what was submitted' AS found
FROM apex.saga_state deletion
JOIN apex.saga_state s ON s.document_id = deletion.document_id AND s.arrival < deletion.arrival
JOIN apex.extraction x ON x.saga_id = s.saga_id
WHERE deletion.kind = 'delete' AND deletion.published_at IS NOT NULL
  AND s.status IN ('completed', 'compensated') AND s.ended_at < deletion.ended_at
LIMIT %(limit)s

-- misplaced_originals --
-- What was submitted is kept while a document waits in quarantine, and gone once somebody has dropped
-- it. That it was dropped is known by an event alone, and the entry has to say the same.
WITH dropped AS (
    SELECT saga_id FROM apex.saga_event WHERE event = 'quarantine_dropped'
), judged AS (
    SELECT coalesce(q.saga_id, d.saga_id) AS saga_id, CASE
        WHEN (d.saga_id IS NOT NULL) <> (q.saga_id IS NOT NULL AND q.dropped_at IS NOT NULL) THEN 'mark'
        WHEN d.saga_id IS NOT NULL AND x.saga_id IS NOT NULL THEN 'kept'
        WHEN d.saga_id IS NULL AND q.released_at IS NULL AND x.saga_id IS NULL THEN 'lost'
        END AS fault
    FROM apex.quarantine q FULL JOIN dropped d USING (saga_id)
    LEFT JOIN apex.extraction x ON x.saga_id = coalesce(q.saga_id, d.saga_id)
)
SELECT s.document_id, j.saga_id,
       CASE fault
           WHEN 'mark' THEN 'the quarantine and the audit trail to agree on whether it was dropped'
           WHEN 'kept' THEN 'nothing of a document that was dropped'
           ELSE 'what was submitted, as it waits in quarantine'
       END AS expected,
       CASE fault
           WHEN 'mark' THEN 'dropped in one of the two only'
           WHEN 'kept' THEN 'what was submitted'
           ELSE 'nothing, and no event that it was dropped'
       END AS found
FROM judged j LEFT JOIN apex.saga_state s USING (saga_id)
WHERE fault IS NOT NULL LIMIT %(limit)s

-- live_versions --
-- What must be live and is published, by the events.
WITH pivot AS (
    SELECT DISTINCT ON (s.document_id) s.document_id, s.version, s.saga_id, s.event_seq
    FROM apex.saga_event e JOIN apex.saga_state s USING (saga_id)
    WHERE e.event = 'saga_completed' ORDER BY s.document_id, s.version DESC
)
SELECT p.document_id, p.version, p.saga_id, p.event_seq, d.live_saga_id
FROM pivot p
JOIN apex.documents d USING (document_id)
WHERE NOT EXISTS (SELECT FROM apex.saga_event e
                  WHERE e.saga_id = p.saga_id AND e.event = 'saga_opened' AND e.detail ->> 'kind' = 'delete')
  AND EXISTS (SELECT FROM apex.saga_event e
              WHERE e.saga_id = p.saga_id AND e.event = 'saga_published')
  AND (%(document_ids)s::text[] IS NULL OR p.document_id = ANY (%(document_ids)s))

-- dead_versions --
-- What no store may hold any more: compensated sagas, and superseded ones that have been swept once
-- (each has %(sweeps)s sweeps ahead when its successor is published), or deleted. The newest first. The
-- last deletion of a document is not among them: it has left its name where an older version would show.
WITH live AS (
    SELECT DISTINCT ON (s.document_id) s.saga_id
    FROM apex.saga_event e JOIN apex.saga_state s USING (saga_id)
    WHERE e.event = 'saga_completed' ORDER BY s.document_id, s.version DESC
)
SELECT s.document_id, s.version, s.saga_id, s.event_seq, d.live_saga_id, s.status
FROM apex.saga_state s
JOIN apex.documents d USING (document_id)
WHERE NOT EXISTS (SELECT FROM live WHERE live.saga_id = s.saga_id)
  AND (%(document_ids)s::text[] IS NULL OR s.document_id = ANY (%(document_ids)s))
  AND (s.status = 'compensated'
       OR (s.status = 'completed'
           AND EXISTS (SELECT FROM apex.saga_state n
                       WHERE n.replaces_saga_id = s.saga_id AND n.published_at IS NOT NULL
                         AND (n.kind = 'delete' OR (SELECT count(*) FROM apex.sweep w
                                                    WHERE w.saga_id = s.saga_id) < %(sweeps)s))))
ORDER BY s.arrival DESC LIMIT %(limit)s

-- count_versions --
-- For a progress bar, without looking at events: those in flight are among them.
SELECT (SELECT count(*) FROM apex.documents
        WHERE live_saga_id IS NOT NULL
          AND (%(document_ids)s::text[] IS NULL OR document_id = ANY (%(document_ids)s)))
     + least(%(limit)s::bigint, (
           SELECT count(*) FROM apex.saga_state s
           WHERE (%(document_ids)s::text[] IS NULL OR s.document_id = ANY (%(document_ids)s))
             AND (s.status = 'compensated'
                  OR EXISTS (SELECT FROM apex.documents d WHERE s.status = 'completed'
                             AND d.document_id = s.document_id
                             AND coalesce(d.live_saga_id, d.tombstone_saga_id) <> s.saga_id)))
       ) AS versions

-- places --
SELECT s.saga_id, s.event_seq, d.live_saga_id
FROM apex.saga_state s JOIN apex.documents d USING (document_id)
WHERE s.saga_id = ANY (%(saga_ids)s)

-- busy_documents --
SELECT DISTINCT document_id FROM apex.saga_state
WHERE document_id = ANY (%(document_ids)s)
  AND (status IN ('pending', 'in_progress', 'compensating')
       OR status = 'completed' AND published_at IS NULL)

-- known_sagas --
SELECT saga_id FROM apex.saga_state WHERE saga_id = ANY (%(saga_ids)s)
