-- Alerts that fire, and what was told of them.

-- alert --
-- One row a rule, and what it is about. It stays when the alert is over, for its next time.
CREATE TABLE apex.alert (
    name               text PRIMARY KEY,
    severity           text NOT NULL CHECK (severity IN ('critical', 'high', 'medium', 'low')),
    summary            text NOT NULL,
    since              timestamptz NOT NULL DEFAULT clock_timestamp(),
    told_at            timestamptz,  -- the last time; NULL: nobody knows yet
    resolved_at        timestamptz,  -- NULL: it fires
    resolution_told_at timestamptz,
    claimed_until      timestamptz NOT NULL DEFAULT '-infinity'  -- somebody is telling it
);
