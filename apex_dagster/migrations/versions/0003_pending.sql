-- The sagas that wait for a driver, oldest first: claimed in batches, and counted for every request.
CREATE INDEX saga_state_pending ON apex.saga_state (arrival)
    WHERE status = 'pending' AND run_id IS NULL AND lease_owner IS NULL;
