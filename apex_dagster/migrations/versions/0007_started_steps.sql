-- Steps of one batch are written at the same time, so "how far it came" is a set, not a place in a row.

-- saga_state.started_steps --
ALTER TABLE apex.saga_state ADD COLUMN started_steps text[] NOT NULL DEFAULT '{}';
UPDATE apex.saga_state SET started_steps = ARRAY(
    SELECT jsonb_object_keys(completed_steps) UNION SELECT current_step WHERE current_step IS NOT NULL)
WHERE current_step IS NOT NULL;

-- document_versions --
-- Publishing updates every row once and superseding it once more. Where a page has no room for that,
-- the row moves, and every index is written again, the one on embeddings too: it was every second row.
ALTER TABLE apex.document_versions SET (fillfactor = 40);
