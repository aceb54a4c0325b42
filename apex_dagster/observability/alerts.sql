-- The book of alerts: one row for each that fires, or has fired.

-- fire --
-- One that had ended begins anew, and has not been told.
INSERT INTO apex.alert (name, severity, summary)
SELECT name, severity, summary
FROM jsonb_to_recordset(%(found)s) AS f (name text, severity text, summary text)
ON CONFLICT (name) DO UPDATE SET
    severity = excluded.severity, summary = excluded.summary,
    since = CASE WHEN alert.resolved_at IS NULL THEN alert.since ELSE excluded.since END,
    told_at = CASE WHEN alert.resolved_at IS NULL THEN alert.told_at END,
    resolved_at = NULL

-- resolve --
-- What nobody was told of is over without a word.
WITH over AS (
    UPDATE apex.alert SET resolved_at = clock_timestamp(), resolution_told_at = NULL
    WHERE resolved_at IS NULL AND name <> ALL (%(names)s::text[]) AND told_at IS NOT NULL
)
DELETE FROM apex.alert
WHERE resolved_at IS NULL AND name <> ALL (%(names)s::text[]) AND told_at IS NULL

-- claim_untold --
WITH claimed AS (
    UPDATE apex.alert SET claimed_until = clock_timestamp() + %(claim_s)s::float8 * interval '1 second'
    WHERE claimed_until < clock_timestamp() AND CASE WHEN resolved_at IS NULL
          THEN told_at IS NULL
               OR told_at < clock_timestamp() - %(repeat_s)s::float8 * interval '1 second'
          ELSE resolution_told_at IS NULL END
    RETURNING *
)
SELECT name, severity, CASE WHEN resolved_at IS NULL THEN 'firing' ELSE 'resolved' END AS status,
       summary, since, resolved_at
FROM claimed ORDER BY array_position(ARRAY['critical', 'high', 'medium', 'low'], severity), name

-- told --
UPDATE apex.alert SET
    claimed_until = '-infinity',
    told_at = CASE WHEN resolved_at IS NULL THEN clock_timestamp() ELSE told_at END,
    resolution_told_at = CASE WHEN resolved_at IS NULL THEN resolution_told_at ELSE clock_timestamp() END
WHERE name = ANY (%(names)s::text[])

-- firing --
SELECT name, severity, 'firing' AS status, summary, since, resolved_at
FROM apex.alert WHERE resolved_at IS NULL
ORDER BY array_position(ARRAY['critical', 'high', 'medium', 'low'], severity), name
