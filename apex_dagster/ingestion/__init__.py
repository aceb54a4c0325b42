"""The use cases: the only place where extraction, sagas and stores meet."""
