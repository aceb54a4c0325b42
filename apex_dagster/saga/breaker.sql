-- Breakers, one row for each store that was ever down. Times are this database's own; a delay is full
-- jitter: `jitter`, drawn by the caller from [0, 1), of what doubles with every probe that failed.

-- read_breakers --
SELECT store, reason, opened_at, closed_at, failed_probes,
       greatest(0, extract(epoch FROM next_probe_at - clock_timestamp()))::double precision AS probe_in_s,
       extract(epoch FROM clock_timestamp() - closed_at)::double precision AS closed_for_s
FROM apex.breaker ORDER BY store

-- open_breaker --
-- Of several that find a store down the first opens it. One that was closed a moment ago goes on with
-- the long delays it had, or a store that comes and goes would be met by a crowd each time.
INSERT INTO apex.breaker AS b (store, reason, opened_at, next_probe_at)
VALUES (%(store)s, %(reason)s, clock_timestamp(),
        clock_timestamp() + %(jitter)s * %(delay_s)s * interval '1 second')
ON CONFLICT (store) DO UPDATE
SET reason = excluded.reason, opened_at = excluded.opened_at, closed_at = NULL, admitted = 0,
    failed_probes = CASE WHEN b.closed_at > clock_timestamp() - %(flap_s)s * interval '1 second'
        THEN b.failed_probes + 1 ELSE 0 END,
    next_probe_at = clock_timestamp() + interval '1 second' * %(jitter)s
        * CASE WHEN b.closed_at > clock_timestamp() - %(flap_s)s * interval '1 second'
          THEN least(%(delay_s_max)s, %(delay_s)s * 2 ^ least(b.failed_probes + 1, 30)) ELSE %(delay_s)s END,
    probe_owner = NULL, probe_expires_at = NULL
WHERE b.closed_at IS NOT NULL
RETURNING store

-- claim_probes --
-- One prober a store: whoever gets here second finds the claim, and a prober that died leaves one that
-- expires. `at_once` is for a person who knows that the store is back.
UPDATE apex.breaker
SET probe_owner = %(owner)s, probe_expires_at = clock_timestamp() + %(claim_s)s * interval '1 second'
WHERE closed_at IS NULL AND store = ANY (%(stores)s)
  AND (next_probe_at <= clock_timestamp() OR %(at_once)s)
  AND (probe_expires_at IS NULL OR probe_expires_at < clock_timestamp())
RETURNING store

-- close_breaker --
-- Whoever waited for the store is left by its owner since now: the bound counts from here.
WITH closed AS (
    UPDATE apex.breaker
    SET closed_at = clock_timestamp(), admitted = 0, probe_owner = NULL, probe_expires_at = NULL
    WHERE store = %(store)s AND probe_owner = %(owner)s AND closed_at IS NULL
    RETURNING store
), woken AS (
    UPDATE apex.saga_state SET lease_expires_at = clock_timestamp()
    WHERE saga_id IN (
        SELECT saga_id FROM apex.saga_state
        WHERE (SELECT store FROM closed) = ANY (waits_for) AND lease_owner IS NULL
          AND (status = 'compensating' OR (status = 'completed' AND published_at IS NULL))
        ORDER BY saga_id FOR NO KEY UPDATE)
)
SELECT store FROM closed

-- delay_probe --
UPDATE apex.breaker
SET reason = %(reason)s, failed_probes = failed_probes + 1, probe_owner = NULL, probe_expires_at = NULL,
    next_probe_at = clock_timestamp() + interval '1 second' * %(jitter)s
        * least(%(delay_s_max)s, %(delay_s)s * 2 ^ least(failed_probes + 1, 30))
WHERE store = %(store)s AND probe_owner = %(owner)s AND closed_at IS NULL
RETURNING store

-- record_outage --
-- This database itself was out of reach: written down once it is back, by the first that notices.
INSERT INTO apex.breaker AS b (store, reason, opened_at, closed_at, next_probe_at)
VALUES (%(store)s, %(reason)s, clock_timestamp() - %(lasted_s)s * interval '1 second', clock_timestamp(),
        clock_timestamp())
ON CONFLICT (store) DO UPDATE
SET reason = excluded.reason, opened_at = excluded.opened_at, closed_at = excluded.closed_at, admitted = 0
WHERE b.closed_at < excluded.opened_at
RETURNING store

-- lock_restarting --
SELECT store, admitted, extract(epoch FROM clock_timestamp() - closed_at)::double precision AS closed_for_s
FROM apex.breaker WHERE closed_at > clock_timestamp() - %(ramp_s)s * interval '1 second'
ORDER BY store FOR UPDATE

-- count_admitted --
UPDATE apex.breaker SET admitted = admitted + %(documents)s WHERE store = ANY (%(stores)s)

-- hand_back --
-- Nobody's until the stores are up: recovery finds it by its lease, which has ended.
UPDATE apex.saga_state s
SET lease_owner = NULL, lease_expires_at = clock_timestamp(), waits_for = %(stores)s
FROM unnest(%(saga_ids)s::text[], %(epochs)s::integer[]) AS o (saga_id, epoch)
WHERE s.saga_id = o.saga_id AND s.epoch = o.epoch
