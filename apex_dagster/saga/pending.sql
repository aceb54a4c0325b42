-- Sagas that were opened for somebody else to drive: pending, of no run, with no owner.

-- claimable --
-- The oldest, whoever else is claiming: SKIP LOCKED waits for nobody, so it cannot deadlock although
-- the rows are locked by arrival. An estimate of their weight comes along, to keep a batch in memory.
SELECT s.*, coalesce(octet_length(x.body), octet_length(x.source), 0) AS bytes
FROM apex.saga_state s LEFT JOIN apex.extraction x USING (saga_id)
WHERE s.status = 'pending' AND s.run_id IS NULL AND s.lease_owner IS NULL
ORDER BY s.arrival LIMIT %(limit)s FOR NO KEY UPDATE OF s SKIP LOCKED

-- pending_count --
SELECT count(*) AS pending FROM apex.saga_state
WHERE status = 'pending' AND run_id IS NULL AND lease_owner IS NULL
