-- A, then B, then A again has to end with A: the second A cannot join the first while B is to come after
-- it. Openings of one document wait for each other's lock on its row, so no index has to tell them apart.

-- saga_state --
DROP INDEX apex.saga_state_one_open_per_content;
CREATE INDEX saga_state_open_of_document ON apex.saga_state (document_id, arrival)
    WHERE status IN ('pending', 'in_progress');
