-- Keys of the HTTP side. A key itself is nowhere: only what it is recognised by.

-- api_key --
-- `name` is whom the key was made for; it may have several, so that a new one can take over from an
-- old one. Rows stay when keys are revoked: they say who could do what, and until when.
CREATE TABLE apex.api_key (
    key_id     text PRIMARY KEY,           -- public: the part of the key that finds its row
    name       text NOT NULL,
    scopes     text[] NOT NULL CHECK (cardinality(scopes) > 0),
    digest     bytea NOT NULL CHECK (octet_length(digest) = 32),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by text NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    revoked_by text
);
