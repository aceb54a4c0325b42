-- Deletion is a saga whose pivot takes the pointer away and leaves its own name in its place.

-- documents --
-- The head of a document is what was decided last: a live version, or the deletion that took one away.
-- A pivot builds on the head, so what was opened before a deletion can never become live after it.
ALTER TABLE apex.documents
    ADD COLUMN tombstone_version integer,
    ADD COLUMN tombstone_saga_id text,
    ADD CHECK ((tombstone_version IS NULL) = (tombstone_saga_id IS NULL)),
    ADD CHECK (live_saga_id IS NULL OR tombstone_saga_id IS NULL);

-- deletion_receipt --
-- What a deletion found, removed and read back: canonical JSON, so that its signature can be checked by
-- anybody. No content. Written in the transaction that says that the removal is over.
CREATE TABLE apex.deletion_receipt (
    saga_id     text PRIMARY KEY REFERENCES apex.saga_state,
    document_id text NOT NULL,
    body        bytea NOT NULL,
    signature   bytea,  -- Ed25519 over body
    public_key  bytea,  -- 32 bytes
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((signature IS NULL) = (public_key IS NULL))
);
CREATE INDEX deletion_receipt_document ON apex.deletion_receipt (document_id, created_at);
