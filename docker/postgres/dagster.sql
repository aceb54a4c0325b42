-- Dagster's runs and events, apart from the ledger and the documents. Runs once, on an empty volume.
CREATE DATABASE dagster OWNER apex;
