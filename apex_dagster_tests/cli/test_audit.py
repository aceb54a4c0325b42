"""`apex audit`, on real servers."""

from __future__ import annotations

from dataclasses import replace

from apex_dagster.composition import Application
from apex_dagster_tests.cli.conftest import Shell
from apex_dagster_tests.documents import submission


def test_what_is_in_order_says_so(app: Application, shell: Shell, unique: str) -> None:
    app.ingestion.ingest([submission(unique)], owner="test")
    anchor = shell.json("audit", "anchor")["anchor"]
    assert (anchor["anchor_seq"], anchor["head_count"]) == (1, 1)
    assert "No chain has grown" in shell("audit", "anchor").stdout
    report = shell.json("audit", "verify", "--anchor", anchor["hash"].upper())
    assert report.pop("events") > 10
    assert report == {"sagas": 1, "anchors": 1, "live": 1, "dead": 0, "differences": []}
    result = shell("audit", "verify")
    assert (result.exit_code, result.stdout[:16]) == (0, "0 differences in")


def test_each_difference_is_a_line_that_names_document_store_and_both_sides(
    app: Application, shell: Shell, unique: str
) -> None:
    [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    app.stores["qdrant"].discard([saga.ref])
    result = shell("audit", "verify")
    assert result.exit_code == 1
    line, summary = result.stdout.splitlines()
    assert line == (
        f"{unique} ({saga.saga_id}) in qdrant: "
        "expected 33 items of version 1, which is live; found none"
    )
    assert summary.startswith("1 differences in 1 sagas")
    [difference] = shell.json("audit", "verify", exit_code=1)["differences"]
    assert (difference["place"], difference["found"]) == ("qdrant", "none")
    assert shell("audit", "verify", "--anchor", "00ff").exit_code == 1


def test_a_store_that_is_down_is_no_difference(app: Application, shell: Shell, unique: str) -> None:
    app.ingestion.ingest([submission(unique)], owner="test")
    nowhere = {"APEX_REDIS_URL": "redis://127.0.0.1:1/0", "APEX_STEP_TIMEOUT_S": "2"}
    broken = replace(shell, environment={**shell.environment, **nowhere})
    result = broken("audit", "verify")
    assert result.exit_code == 3
    assert "redis is unavailable" in result.stderr
