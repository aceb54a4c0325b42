"""The API's process and its driver, as its own tests have them."""

from apex_dagster_tests.api.conftest import api, driver, idle_driver, start_api  # noqa: F401
