-- Every statement of a search, all in one REPEATABLE READ, READ ONLY transaction: the pointers in
-- apex.documents decide what is live, never ingestion_status, which lags behind them.
--
-- A filter is a collection, or null, and an object of scalars: `@>` holds if each stands under its key
-- exactly, as an array never contains a scalar one level down.

-- take_snapshot --
-- SET TRANSACTION takes none; the other stores are asked after this, so that what it names is there.
SELECT pg_current_snapshot()

-- count_terms --
-- The query's lexemes, as to_tsvector made them of the chunks, with how many chunks have them, of
-- whatever version, counted up to a bound. Quoted by hand: a lexeme is no query, and to_tsquery would
-- parse it once more.
SELECT term.query, (
    SELECT count(*) FROM (
        SELECT FROM apex.chunks WHERE text_search @@ term.query::tsquery LIMIT %(count_max)s
    ) AS chunk
)
FROM (
    SELECT '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''' AS query
    FROM unnest(to_tsvector('english', %(query)s))
) AS term

-- count_chunks --
-- The planner's estimate, which a small table has none of.
SELECT greatest(reltuples::bigint, (SELECT count(*) FROM (SELECT FROM apex.chunks LIMIT 1000) AS few))
FROM pg_class WHERE oid = 'apex.chunks'::regclass

-- rank_text --
-- Each term counts by how rare it is, and within a chunk by ts_rank, which rises with its occurrences
-- from 0.06 to 0.1. ts_rank of the whole query knows no rareness: "the mayor of Port Alder" would be
-- ranked by "port". Any of the words will do: of the judged questions about the sample corpus,
-- websearch_to_tsquery, which wants all of them, answers few (nDCG@10 0.44; 0.80 with any). The
-- configuration is that of the column; 'simple', with any of the words, had 0.75. `strict` is null unless the query has operators, which have to hold.
SELECT c.document_id, c.version, c.saga_id, c.ordinal, (
    SELECT sum(term.weight * ts_rank(c.text_search, term.query::tsquery)) / %(whole)s
    FROM unnest(%(terms)s::text[], %(weights)s::float8[]) AS term (query, weight)
) AS score
FROM apex.chunks c
JOIN apex.documents d ON d.document_id = c.document_id AND d.live_version = c.version
                     AND d.live_saga_id = c.saga_id
JOIN apex.document_versions v ON v.saga_id = c.saga_id
WHERE c.text_search @@ %(any_of)s::tsquery
  AND (%(strict)s::text IS NULL OR c.text_search @@ websearch_to_tsquery('english', %(strict)s))
  AND (%(collection)s::text IS NULL OR v.collection = %(collection)s)
  AND v.metadata @> %(metadata)s::jsonb
ORDER BY score DESC, c.document_id, c.ordinal LIMIT %(limit)s

-- live --
SELECT d.document_id, d.live_version, d.live_saga_id, v.embedding_model,
       (%(collection)s::text IS NULL OR v.collection = %(collection)s)
       AND v.metadata @> %(metadata)s::jsonb
FROM unnest(%(document_ids)s::text[], %(versions)s::integer[], %(saga_ids)s::text[])
     AS found (document_id, version, saga_id)
JOIN apex.documents d ON d.document_id = found.document_id AND d.live_version = found.version
                     AND d.live_saga_id = found.saga_id
JOIN apex.document_versions v ON v.saga_id = d.live_saga_id

-- passing --
SELECT d.live_saga_id
FROM apex.documents d
JOIN apex.document_versions v ON v.saga_id = d.live_saga_id
WHERE (%(collection)s::text IS NULL OR v.collection = %(collection)s)
  AND v.metadata @> %(metadata)s::jsonb
LIMIT %(limit)s

-- chunks --
SELECT c.saga_id, c.ordinal, c.text, c.char_start, c.char_end, v.title, v.collection, v.metadata
FROM unnest(%(saga_ids)s::text[], %(ordinals)s::integer[]) AS wanted (saga_id, ordinal)
JOIN apex.chunks c USING (saga_id, ordinal)
JOIN apex.document_versions v USING (saga_id)
