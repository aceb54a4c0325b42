-- Anchors tie the hash chains of all sagas together, so that a chain which vanishes, or loses its end,
-- is missed. Whoever may rewrite everything can rewrite anchors, too: their hashes also go to the logs.

-- saga_event.written_in --
-- The transaction that wrote the event, for anchors to find what is new. No part of the event's hash.
ALTER TABLE apex.saga_event ADD COLUMN written_in xid8 NOT NULL DEFAULT pg_current_xact_id();
CREATE INDEX saga_event_written_in ON apex.saga_event (written_in);

-- audit_anchor --
CREATE TABLE apex.audit_anchor (
    anchor_seq  bigint PRIMARY KEY,  -- 1 for the first; without gaps
    horizon     xid8 NOT NULL,       -- every transaction below it had ended, and is in this or an earlier anchor
    head_count  integer NOT NULL CHECK (head_count > 0),
    anchored_at timestamptz NOT NULL,
    hash        bytea NOT NULL
);

-- audit_head --
-- Where a saga's chain stood at an anchor. Stays when the chain itself is retired.
CREATE TABLE apex.audit_head (
    saga_id    text NOT NULL,
    event_seq  integer NOT NULL,
    event_hash bytea NOT NULL,
    anchor_seq bigint NOT NULL REFERENCES apex.audit_anchor,
    PRIMARY KEY (saga_id, event_seq)
);
CREATE INDEX audit_head_anchor ON apex.audit_head (anchor_seq);

CREATE FUNCTION apex.head_hash(saga_id text, event_seq integer, event_hash bytea)
RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN sha256(
    convert_to(jsonb_build_array(saga_id, event_seq, encode(event_hash, 'hex'))::text, 'UTF8')
);

-- `heads` is the head_hash of each head, put together in the order of saga_id (COLLATE "C").
CREATE FUNCTION apex.anchor_hash(
    previous bytea, anchor_seq bigint, horizon xid8, anchored_at timestamptz, heads bytea
) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN sha256(
    previous || convert_to(jsonb_build_array(
        anchor_seq, horizon::text, extract(epoch FROM anchored_at))::text, 'UTF8') || sha256(heads)
);

CREATE TRIGGER audit_anchor_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON apex.audit_anchor
    FOR EACH STATEMENT EXECUTE FUNCTION apex.refuse_change();
CREATE TRIGGER audit_head_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON apex.audit_head
    FOR EACH STATEMENT EXECUTE FUNCTION apex.refuse_change();
