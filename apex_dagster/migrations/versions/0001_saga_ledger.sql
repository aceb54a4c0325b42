-- The ledger (saga_state, saga_event, submission, extraction, quarantine, sweep) and PostgreSQL's own
-- part of the corpus (documents, document_versions, chunks).
--
-- Lock order, everywhere: saga_state rows by saga_id, then documents rows by document_id, then the rest.

CREATE SEQUENCE apex.arrival;

-- documents --
-- One row for each document ever submitted. live_version is the pointer that decides what readers see;
-- the row outlives a deletion, because version numbers are never used twice.
CREATE TABLE apex.documents (
    document_id      text PRIMARY KEY CHECK (length(document_id) BETWEEN 1 AND 512),
    last_version     integer NOT NULL DEFAULT 0,
    live_version     integer,
    live_saga_id     text,
    ingestion_status text NOT NULL DEFAULT 'staged'
                     CHECK (ingestion_status IN ('staged', 'committed', 'deleted')),
    content_hash     text,  -- of the live version
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at       timestamptz,
    CHECK ((live_version IS NULL) = (live_saga_id IS NULL))
) WITH (fillfactor = 80);

-- saga_state --
-- One row for each saga, written before anything is written anywhere else. Every change is one
-- conditional UPDATE on (status, epoch) and appends one saga_event.
CREATE TABLE apex.saga_state (
    saga_id             text PRIMARY KEY,
    kind                text NOT NULL CHECK (kind IN ('ingest', 'delete')),
    document_id         text NOT NULL REFERENCES apex.documents,
    status              text NOT NULL DEFAULT 'pending' CHECK (status IN
                        ('pending', 'in_progress', 'completed', 'compensating', 'compensated', 'failed')),
    current_step        text,
    completed_steps     jsonb NOT NULL DEFAULT '{}',  -- saga step -> receipt
    undone_steps        jsonb NOT NULL DEFAULT '{}',  -- saga step -> what its undo removed, or its error
    version             integer NOT NULL CHECK (version > 0),
    expected_version    integer,                      -- live when the saga was opened
    content_hash        text NOT NULL,
    arrival             bigint NOT NULL DEFAULT nextval('apex.arrival'),
    epoch               integer NOT NULL DEFAULT 0,   -- fencing token: rises with every change of owner
    takeovers           integer NOT NULL DEFAULT 0,
    lease_owner         text,
    lease_expires_at    timestamptz,
    predecessor_saga_id text REFERENCES apex.saga_state,
    replaces_saga_id    text,
    run_id              text,                         -- the Dagster run that drives it
    error               jsonb,                        -- {"class", "step", "message"}
    event_seq           integer NOT NULL DEFAULT 0,   -- of the last saga_event
    event_hash          bytea NOT NULL DEFAULT '\x',  -- of the last saga_event
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at            timestamptz,
    published_at        timestamptz,
    UNIQUE (document_id, version),
    UNIQUE (predecessor_saga_id, run_id)
) WITH (fillfactor = 60);

CREATE INDEX saga_state_open ON apex.saga_state (lease_expires_at)
    WHERE status IN ('pending', 'in_progress', 'compensating');
CREATE INDEX saga_state_unpublished ON apex.saga_state (lease_expires_at)
    WHERE status = 'completed' AND published_at IS NULL;
CREATE INDEX saga_state_run ON apex.saga_state (run_id);
CREATE INDEX saga_state_document ON apex.saga_state (document_id, arrival DESC);
CREATE INDEX saga_state_created ON apex.saga_state (created_at DESC);
-- A repeat of content that is still under way joins the open saga instead of opening another.
CREATE UNIQUE INDEX saga_state_one_open_per_content ON apex.saga_state (document_id, content_hash)
    WHERE kind = 'ingest' AND status IN ('pending', 'in_progress');

-- saga_event --
-- Append-only audit log; each event carries the hash of the one before it of the same saga.
CREATE TABLE apex.saga_event (
    saga_id     text NOT NULL,
    seq         integer NOT NULL,
    event       text NOT NULL,
    step        text,
    status      text NOT NULL,  -- of the saga, after the event
    epoch       integer NOT NULL,
    duration_ms double precision,
    detail      jsonb NOT NULL,
    at          timestamptz NOT NULL,
    hash        bytea NOT NULL,
    PRIMARY KEY (saga_id, seq)
);

CREATE FUNCTION apex.event_hash(
    previous bytea, saga_id text, seq integer, event text, step text, status text, epoch integer,
    duration_ms double precision, detail jsonb, at timestamptz
) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN sha256(
    previous || convert_to(jsonb_build_array(
        saga_id, seq, event, step, status, epoch, duration_ms, detail, extract(epoch FROM at)
    )::text, 'UTF8')
);

CREATE FUNCTION apex.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on apex.% is refused: the audit log is append-only', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER saga_event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON apex.saga_event
    FOR EACH STATEMENT EXECUTE FUNCTION apex.refuse_change();

-- submission --
-- What somebody asked for, and the saga that answers it.
CREATE TABLE apex.submission (
    submission_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client          text NOT NULL,  -- "inbox", "shell", an API key's name
    idempotency_key text,
    body_hash       text NOT NULL,
    document_id     text NOT NULL,
    saga_id         text NOT NULL REFERENCES apex.saga_state,
    source_uri      text,           -- the dropped file
    run_id          text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at      timestamptz,    -- when the dropped file was moved out of the inbox
    UNIQUE (client, idempotency_key)
);
CREATE INDEX submission_saga ON apex.submission (saga_id);
CREATE INDEX submission_source ON apex.submission (source_uri, body_hash) WHERE source_uri IS NOT NULL;

-- extraction --
-- The raw input until it has been extracted, then what was extracted from it.
CREATE TABLE apex.extraction (
    saga_id    text PRIMARY KEY REFERENCES apex.saga_state,
    name       text NOT NULL,
    media_type text,
    collection text NOT NULL,
    metadata   jsonb NOT NULL,
    source_uri text,
    source     bytea,  -- null once body is there
    body       bytea   -- packed and compressed extraction
);
ALTER TABLE apex.extraction ALTER COLUMN body SET STORAGE EXTERNAL;  -- it is compressed already

-- quarantine --
CREATE TABLE apex.quarantine (
    saga_id     text PRIMARY KEY REFERENCES apex.saga_state,
    document_id text NOT NULL,
    error_class text NOT NULL,
    step        text,
    reason      text NOT NULL,
    attempts    integer NOT NULL,
    source_uri  text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_at timestamptz
);
CREATE INDEX quarantine_open ON apex.quarantine (created_at) WHERE released_at IS NULL;

-- sweep --
-- Sagas of which nothing may stay in any store, and when to look. A dead saga is swept at once, after
-- an hour and after a day, because a late write of it may land at any time.
CREATE TABLE apex.sweep (
    saga_id text NOT NULL REFERENCES apex.saga_state,
    due_at  timestamptz NOT NULL,
    reason  text NOT NULL CHECK (reason IN ('compensated', 'superseded')),
    PRIMARY KEY (saga_id, due_at)
);
CREATE INDEX sweep_due ON apex.sweep (due_at);

-- document_versions --
CREATE TABLE apex.document_versions (
    saga_id          text PRIMARY KEY,
    document_id      text NOT NULL,
    version          integer NOT NULL,
    ingestion_status text NOT NULL CHECK (ingestion_status IN ('staged', 'committed', 'superseded')),
    title            text NOT NULL,
    collection       text NOT NULL,
    metadata         jsonb NOT NULL,
    content_hash     text NOT NULL,
    embedding_model  text NOT NULL,
    embedding        halfvec NOT NULL,  -- mean of the chunks; indexed by the store for its dimension
    chunk_count      integer NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);  -- room for the status to change in place (HOT), so no index is touched
CREATE INDEX document_versions_document ON apex.document_versions (document_id, version);

-- chunks --
-- No approximate index on the embeddings: that is Qdrant's part, and would cost more than all else here.
CREATE TABLE apex.chunks (
    chunk_id         uuid PRIMARY KEY,
    saga_id          text NOT NULL,
    document_id      text NOT NULL,
    version          integer NOT NULL,
    ingestion_status text NOT NULL CHECK (ingestion_status IN ('staged', 'committed', 'superseded')),
    ordinal          integer NOT NULL,
    char_start       integer NOT NULL,
    char_end         integer NOT NULL,
    text             text NOT NULL,
    embedding        halfvec NOT NULL,
    text_search      tsvector GENERATED ALWAYS AS (to_tsvector('english', text)) STORED
) WITH (fillfactor = 50);  -- as above: publish updates every chunk once, superseding it once more
CREATE INDEX chunks_saga ON apex.chunks (saga_id, ordinal);
CREATE INDEX chunks_text_search ON apex.chunks USING gin (text_search);
