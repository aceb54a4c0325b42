-- Take-overs of sagas whose owner had left them: few among all events, and read at every scrape.
CREATE INDEX saga_event_left ON apex.saga_event (saga_id, seq) WHERE detail ? 'left_at';
