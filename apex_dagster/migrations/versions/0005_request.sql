-- Requests that wait for their saga: what they expected, and the answer that a repeat gets again.

-- Their caller named the version to build on: another one being live is a refusal, no restart.
ALTER TABLE apex.saga_state ADD COLUMN pinned boolean NOT NULL DEFAULT false;

ALTER TABLE apex.submission
    ADD COLUMN answer_status integer,
    ADD COLUMN answer        bytea, -- the very bytes: a repeat is told what the first was told
    ADD CHECK ((answer_status IS NULL) = (answer IS NULL));

-- For forgetting keys when their time is over.
CREATE INDEX submission_keyed ON apex.submission (created_at) WHERE idempotency_key IS NOT NULL;
