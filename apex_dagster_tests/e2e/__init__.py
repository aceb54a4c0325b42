"""Tests of the whole: a real `dagster dev`, driven as its UI does."""
