-- Documents that failed for a passing cause are tried again by themselves; those that are not, or were
-- often enough, leave the quarantine by somebody's decision, which is kept with its reason.

-- retry --
-- Compensated sagas whose submission is to be tried again, and when. The row goes in the transaction
-- that opens the successor, so there is exactly one.
CREATE TABLE apex.retry (
    saga_id text PRIMARY KEY REFERENCES apex.saga_state,
    due_at  timestamptz NOT NULL
);
CREATE INDEX retry_due ON apex.retry (due_at);

-- quarantine --
-- An entry is open until it is released or dropped.
ALTER TABLE apex.quarantine
    ADD COLUMN dropped_at     timestamptz,
    ADD COLUMN closed_by      text,
    ADD COLUMN closed_because text;
DROP INDEX apex.quarantine_open;
CREATE INDEX quarantine_open ON apex.quarantine (created_at)
    WHERE released_at IS NULL AND dropped_at IS NULL;
CREATE INDEX quarantine_document ON apex.quarantine (document_id);

-- submission --
-- Files that have not found their place yet: few, and looked for at every tick of two sensors.
CREATE INDEX submission_unsettled ON apex.submission (source_uri, body_hash)
    WHERE source_uri IS NOT NULL AND settled_at IS NULL;
