-- Who waits for a change of the ledger is woken by NOTIFY, in the transaction that makes the change:
-- a change that is rolled back wakes nobody, and whoever is woken sees it.

-- announce --
-- One notification a saga; PostgreSQL drops those of a transaction that are equal.
SELECT pg_notify(%(channel)s, payload) FROM unnest(%(payloads)s::text[]) AS payload
