"""The HTTP side: requests in, answers out. Knows no Dagster, and starts without it."""
