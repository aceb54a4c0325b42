"""`GET /metrics`: what `apex metrics` prints, for a Prometheus that scrapes the API."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from apex_dagster_tests.documents import submission, submissions


def test_the_api_is_scraped_for_the_ledgers_figures(client, app, unique):
    app.ingestion.ingest(
        [*submissions(unique, 2), submission(f"{unique}-bad", dim=7)], owner="test"
    )
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["apex_recent_sagas", "completed"] == 2
    assert samples["apex_recent_sagas", "compensated"] == 1
    assert samples["apex_store_up", "neo4j"] == 1
