"""Tests of apex_dagster, on real servers."""
