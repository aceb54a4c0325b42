-- Breakers: which stores are down, for all processes to see.

-- breaker --
-- One row for each store that was ever down; open while closed_at is null.
CREATE TABLE apex.breaker (
    store            text PRIMARY KEY,
    reason           text NOT NULL,
    opened_at        timestamptz NOT NULL,
    closed_at        timestamptz,
    failed_probes    integer NOT NULL DEFAULT 0,  -- in a row; the delay doubles with each
    next_probe_at    timestamptz NOT NULL,
    probe_owner      text,                        -- who probes now; one at a time
    probe_expires_at timestamptz,
    admitted         integer NOT NULL DEFAULT 0   -- sagas since it closed, while admission restarts
);

-- saga_state.waits_for --
-- The stores that an undo or a publish needs and that were down. Recovery leaves the saga alone until
-- their breakers have closed.
ALTER TABLE apex.saga_state ADD COLUMN waits_for text[];
