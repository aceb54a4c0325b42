-- Every statement of PostgresStore.
--
-- Lock order, everywhere: saga_state rows by saga_id, then documents rows by document_id, then
-- document_versions rows by saga_id, then their chunks. The ledger moves a saga and its document's
-- pointer under FOR UPDATE, so what is decided here under FOR SHARE holds until this transaction ends.

-- insert_versions --
-- Stages only for sagas that may still stage: a write that comes after the saga was claimed for
-- compensation inserts nothing, and one in flight makes that claim wait. A completed saga may stage
-- again while the pointer names it, to repair what was lost. Of two writers of one version the second
-- waits for the first and then inserts nothing; only the first goes on to the chunks.
WITH saga AS MATERIALIZED (
    SELECT saga_id, document_id, status FROM apex.saga_state
    WHERE saga_id = ANY (%(saga_ids)s::text[]) AND status IN ('pending', 'in_progress', 'completed')
    ORDER BY saga_id FOR SHARE
), live AS MATERIALIZED (
    SELECT d.live_saga_id FROM apex.documents d
    JOIN saga s ON s.document_id = d.document_id AND s.saga_id = d.live_saga_id
    WHERE s.status = 'completed' ORDER BY d.document_id FOR SHARE OF d
), admitted AS (
    SELECT saga_id FROM saga WHERE status <> 'completed' UNION ALL SELECT live_saga_id FROM live
)
INSERT INTO apex.document_versions (
    saga_id, document_id, version, ingestion_status, title, collection, metadata, content_hash,
    embedding_model, embedding, chunk_count
)
SELECT v.saga_id, v.document_id, v.version, 'staged', v.title, v.collection, v.metadata,
       v.content_hash, v.embedding_model, v.embedding, v.chunk_count
FROM admitted
JOIN unnest(
    %(saga_ids)s::text[], %(document_ids)s::text[], %(versions)s::integer[], %(titles)s::text[],
    %(collections)s::text[], %(metadata)s::jsonb[], %(content_hashes)s::text[],
    %(embedding_models)s::text[], %(embeddings)b::halfvec[], %(chunk_counts)s::integer[]
) AS v (saga_id, document_id, version, title, collection, metadata, content_hash,
        embedding_model, embedding, chunk_count) USING (saga_id)
ORDER BY saga_id
ON CONFLICT (saga_id) DO NOTHING
RETURNING saga_id

-- copy_chunks --
COPY apex.chunks (
    chunk_id, saga_id, document_id, version, ingestion_status, ordinal, char_start, char_end, text,
    embedding
) FROM STDIN (FORMAT BINARY)

-- staged_counts --
SELECT saga_id, chunk_count FROM apex.document_versions WHERE saga_id = ANY (%(saga_ids)s::text[])

-- lock_pointers --
-- With the version that was decided last, be it a deletion.
SELECT document_id, live_saga_id, coalesce(live_version, tombstone_version) FROM apex.documents
WHERE document_id = ANY (%(document_ids)s::text[]) ORDER BY document_id FOR SHARE

-- lock_versions --
SELECT saga_id FROM apex.document_versions
WHERE saga_id = ANY (%(saga_ids)s::text[]) ORDER BY saga_id FOR UPDATE

-- mark_versions --
UPDATE apex.document_versions SET ingestion_status = %(target)s
WHERE saga_id = ANY (%(saga_ids)s::text[]) AND ingestion_status = %(source)s

-- mark_chunks --
UPDATE apex.chunks SET ingestion_status = %(target)s
WHERE saga_id = ANY (%(saga_ids)s::text[]) AND ingestion_status = %(source)s

-- delete_chunks --
WITH removed AS (
    DELETE FROM apex.chunks
    WHERE saga_id = ANY (%(saga_ids)s::text[]) AND ingestion_status = ANY (%(statuses)s::text[])
    RETURNING saga_id
)
SELECT saga_id, count(*) FROM removed GROUP BY saga_id

-- delete_copies --
-- Whatever is there under these sagas, and under the ids that their chunks have.
DELETE FROM apex.chunks
WHERE saga_id = ANY (%(saga_ids)s::text[]) OR chunk_id = ANY (%(chunk_ids)s::uuid[])

-- delete_versions --
DELETE FROM apex.document_versions
WHERE saga_id = ANY (%(saga_ids)s::text[]) AND ingestion_status = ANY (%(statuses)s::text[])

-- older_sagas --
-- Every saga of these documents that is older than the deletion. None can ever be live again.
SELECT s.saga_id, o.deletion
FROM unnest(%(deletions)s::text[], %(document_ids)s::text[], %(versions)s::integer[])
     AS o (deletion, document_id, version)
JOIN apex.saga_state s ON s.document_id = o.document_id AND s.version < o.version

-- count_older --
-- What a direct reader finds of them, by table and by the full-text index.
SELECT o.deletion,
       (SELECT count(*) FROM apex.document_versions v
        WHERE v.document_id = o.document_id AND v.version < o.version AND v.ingestion_status <> 'staged'),
       coalesce(sum(c.chunks), 0)::integer, coalesce(sum(c.searchable), 0)::integer
FROM unnest(%(deletions)s::text[], %(document_ids)s::text[], %(versions)s::integer[])
     AS o (deletion, document_id, version)
JOIN apex.saga_state s ON s.document_id = o.document_id AND s.version < o.version
CROSS JOIN LATERAL (
    SELECT count(*) AS chunks, count(*) FILTER (WHERE length(c.text_search) > 0) AS searchable
    FROM apex.chunks c WHERE c.saga_id = s.saga_id AND c.ingestion_status <> 'staged') c
GROUP BY o.deletion, o.document_id, o.version

-- digest --
-- Each row becomes 32 bytes, so that rows cannot run into each other, then all of them one digest.
-- created_at stays out: it says when a copy was made. text_search follows from text.
WITH version AS (
    SELECT * FROM apex.document_versions
    WHERE document_id = %(document_id)s AND version = %(version)s
), item (place, saga_id, ordinal, hash) AS (
    SELECT 0, saga_id, 0, sha256(convert_to(jsonb_build_array(
               saga_id, document_id, version, ingestion_status, title, collection, metadata,
               content_hash, embedding_model, chunk_count)::text, 'UTF8') || halfvec_send(embedding))
    FROM version
    UNION ALL
    SELECT 1, c.saga_id, c.ordinal, sha256(convert_to(jsonb_build_array(
               c.chunk_id, c.saga_id, c.document_id, c.version, c.ingestion_status, c.ordinal,
               c.char_start, c.char_end, c.text)::text, 'UTF8') || halfvec_send(c.embedding))
    FROM apex.chunks c JOIN version USING (saga_id)
)
SELECT encode(sha256(string_agg(hash, ''::bytea ORDER BY place, saga_id, ordinal, hash)), 'hex')
FROM item

-- holdings --
SELECT saga_id, count(*) FROM apex.chunks WHERE saga_id = ANY (%(saga_ids)s::text[]) GROUP BY saga_id

-- version_contents --
SELECT saga_id, document_id, version, ingestion_status, title, collection, metadata, content_hash,
       embedding_model, chunk_count, embedding
FROM apex.document_versions WHERE document_id = ANY (%(document_ids)s::text[])

-- chunk_contents --
-- By saga, as the index has it: rows of a saga that has no version row are found while the ledger
-- knows the saga.
SELECT chunk_id::text, saga_id, document_id, version, ingestion_status, ordinal, char_start AS start,
       char_end AS "end", text, embedding
FROM apex.chunks
WHERE saga_id IN (
    SELECT saga_id FROM apex.saga_state WHERE document_id = ANY (%(document_ids)s::text[])
    UNION SELECT saga_id FROM apex.document_versions WHERE document_id = ANY (%(document_ids)s::text[]))

-- inventory --
-- Chunks without their version row count, too: one by one along the index, as they are many.
WITH RECURSIVE chunk (saga_id, document_id, version) AS (
    (SELECT saga_id, document_id, version FROM apex.chunks
     WHERE saga_id > %(after)s ORDER BY saga_id LIMIT 1)
    UNION ALL
    (SELECT n.saga_id, n.document_id, n.version FROM chunk, LATERAL (
         SELECT saga_id, document_id, version FROM apex.chunks
         WHERE saga_id > chunk.saga_id ORDER BY saga_id LIMIT 1) AS n)
), held AS (
    (SELECT saga_id, document_id, version FROM chunk LIMIT %(limit)s)
    UNION
    (SELECT saga_id, document_id, version FROM apex.document_versions
     WHERE saga_id > %(after)s ORDER BY saga_id LIMIT %(limit)s)
)
SELECT saga_id, document_id, version FROM held ORDER BY saga_id LIMIT %(limit)s

-- read_snapshot --
-- Before anything else in its transaction: what follows sees one moment of all tables.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- read_pointer --
SELECT d.live_saga_id, d.live_version, coalesce(v.title, ''), coalesce(v.collection, ''),
       coalesce(v.metadata, '{}'), d.content_hash, s.completed_steps
FROM apex.documents d
JOIN apex.saga_state s ON s.saga_id = d.live_saga_id
LEFT JOIN apex.document_versions v ON v.saga_id = d.live_saga_id
WHERE d.document_id = %(document_id)s

-- read_chunks --
SELECT ordinal, text, char_start, char_end FROM apex.chunks
WHERE saga_id = %(saga_id)s ORDER BY ordinal

-- list_live --
-- A page of pointers with what they point at. The primary key of documents gives the order and the
-- place to begin, so a page costs its rows and the documents without a live version among them.
-- With a collection it also costs every document of others that it passes over, at worst all that
-- there are: an index for it would have to be written by every staging.
SELECT d.document_id, d.live_version, d.live_saga_id, coalesce(v.title, ''),
       coalesce(v.collection, ''), s.ended_at
FROM apex.documents d
JOIN apex.saga_state s ON s.saga_id = d.live_saga_id
LEFT JOIN apex.document_versions v ON v.saga_id = d.live_saga_id
WHERE d.document_id > %(after)s AND d.live_version IS NOT NULL
  AND (%(collection)s::text IS NULL OR v.collection = %(collection)s)
ORDER BY d.document_id LIMIT %(limit)s

-- lock_index --
SELECT pg_advisory_xact_lock(hashtext('apex_dagster.stores.postgres_store'))

-- index_exists --
-- IF NOT EXISTS looks only after it has locked the table against writers.
SELECT to_regclass(%(index)s) IS NOT NULL

-- create_index --
-- Few links: one row a document, and every insert pays for them. The predicate lets rows of another
-- dimension stand beside; a query needs the same predicate and cast, and the operator <=>. Rows of
-- norm 0 (documents without text) are not indexed.
CREATE INDEX {index} ON apex.document_versions
USING hnsw ((embedding::halfvec({dim})) halfvec_cosine_ops) WITH (m = 8, ef_construction = 32)
WHERE vector_dims(embedding) = {dim}
