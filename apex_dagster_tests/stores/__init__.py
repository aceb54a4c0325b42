"""The four adapters, each on its real server, against one suite: conformance.py."""

import pytest

# Its asserts explain themselves only if rewritten, which pytest does unasked for test_*.py alone.
pytest.register_assert_rewrite("apex_dagster_tests.stores.conformance")
