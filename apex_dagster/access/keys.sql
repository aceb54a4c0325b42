-- Keys of the HTTP side: made, listed and revoked by operators, asked for by the processes that check
-- them. Which of them can be used is said by the database's clock alone.

-- insert_key --
INSERT INTO apex.api_key (key_id, name, scopes, digest, created_by, expires_at)
VALUES (%(key_id)s, %(name)s, %(scopes)s, %(digest)s, %(created_by)s,
        clock_timestamp() + %(expires_after)s)
RETURNING *, true AS usable

-- keys --
-- All that were ever made, the newest first.
SELECT *, revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), true) AS usable
FROM apex.api_key ORDER BY created_at DESC, key_id

-- usable_keys --
-- With the seconds that are left, as the clock of whoever asks may be another one.
SELECT key_id, name, scopes, digest,
       extract(epoch FROM expires_at - clock_timestamp())::double precision AS expires_in_s
FROM apex.api_key
WHERE revoked_at IS NULL AND coalesce(expires_at > clock_timestamp(), true)

-- revoke_key --
-- Of two who revoke it, the first stands in the row.
UPDATE apex.api_key SET revoked_at = clock_timestamp(), revoked_by = %(revoked_by)s
WHERE key_id = %(key_id)s AND revoked_at IS NULL
