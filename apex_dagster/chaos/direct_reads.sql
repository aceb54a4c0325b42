-- What a reader sees who goes to PostgreSQL directly and filters on ingestion_status alone.

-- committed --
-- Every version of which anything is committed, its row or some chunk, with its committed chunks.
SELECT v.saga_id, v.version, v.ingestion_status, v.title, v.content_hash, v.chunk_count,
       c.ordinal, c.text, c.char_start, c.char_end
FROM apex.document_versions v
LEFT JOIN apex.chunks c ON c.saga_id = v.saga_id AND c.ingestion_status = 'committed'
WHERE v.document_id = %(document_id)s
  AND (v.ingestion_status = 'committed' OR c.chunk_id IS NOT NULL)
ORDER BY v.version, c.ordinal
