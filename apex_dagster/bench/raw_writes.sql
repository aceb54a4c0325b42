-- What PostgreSQL has to do for the same content without a saga. {name} is a schema of the run's own.

-- create --
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA {name};
CREATE TABLE {name}.documents (
    document_id     text PRIMARY KEY,
    title           text NOT NULL,
    collection      text NOT NULL,
    metadata        jsonb NOT NULL,
    content_hash    text NOT NULL,
    embedding_model text NOT NULL,
    embedding       halfvec NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON {name}.documents
    USING hnsw ((embedding::halfvec({dim})) halfvec_cosine_ops) WITH (m = 8, ef_construction = 32);
CREATE TABLE {name}.chunks (
    chunk_id    uuid PRIMARY KEY,
    document_id text NOT NULL,
    ordinal     integer NOT NULL,
    char_start  integer NOT NULL,
    char_end    integer NOT NULL,
    text        text NOT NULL,
    embedding   halfvec NOT NULL,
    text_search tsvector GENERATED ALWAYS AS (to_tsvector('english', text)) STORED
);
CREATE INDEX ON {name}.chunks (document_id, ordinal);
CREATE INDEX ON {name}.chunks USING gin (text_search)

-- copy_documents --
COPY {name}.documents (document_id, title, collection, metadata, content_hash, embedding_model, embedding)
FROM STDIN (FORMAT BINARY)

-- copy_chunks --
COPY {name}.chunks (chunk_id, document_id, ordinal, char_start, char_end, text, embedding)
FROM STDIN (FORMAT BINARY)
