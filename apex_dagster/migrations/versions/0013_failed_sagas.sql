-- Alerts and metrics ask every half minute whether a saga waits for an operator, of any age.

-- saga_state --
CREATE INDEX saga_state_failed ON apex.saga_state (saga_id) WHERE status = 'failed';
