"""`apex delete` and `apex receipt`, on real servers."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from apex_dagster.composition import Application
from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.pending import claim_pending
from apex_dagster_tests.applications import assert_whole
from apex_dagster_tests.cli.conftest import Shell
from apex_dagster_tests.documents import submission


def ingest(app: Application, document_id: str) -> None:
    app.ingestion.ingest([submission(document_id)], owner="test")


def test_a_document_is_deleted_here_where_nobody_else_does_it(
    app: Application, shell: Shell, unique: str
) -> None:
    ingest(app, unique)
    told = shell.json("delete", unique, "--yes")
    assert (told["document_id"], told["status"]) == (unique, "completed")
    assert told["receipt"]["read_back"]["redis"] == {"cache": 0}
    assert_whole(app, unique)
    again = shell.json("delete", unique, "--yes")
    assert again["saga_id"] == told["saga_id"]
    result = shell("delete", unique, "--yes", "--here")
    assert result.exit_code == 0
    assert told["saga_id"] in result.output


def test_a_worker_that_is_there_does_it(app: Application, shell: Shell, unique: str) -> None:
    ingest(app, unique)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            sagas = claim_pending(
                app.ledger, owner="worker", run_id="run-1", limit=10, bytes_max=10**6
            )
            app.ingestion.commit(sagas, owner="worker")
            time.sleep(0.05)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        told = shell.json("delete", unique, "--yes")
    finally:
        stop.set()
        worker.join()
    [saga] = app.ledger.sagas([told["saga_id"]])
    assert saga.run_id == "run-1"
    assert_whole(app, unique)


def test_it_asks_first_and_no_is_no(app: Application, shell: Shell, unique: str) -> None:
    ingest(app, unique)
    result = shell("delete", unique)
    assert result.exit_code == 2
    assert "--yes" in result.output
    assert len(app.ledger.list_sagas(document_id=unique)) == 1
    assert_whole(app, unique)


def test_what_was_never_submitted_is_wrong_use(shell: Shell, unique: str) -> None:
    result = shell("delete", unique, "--yes")
    assert result.exit_code == 2
    assert "nothing was ever submitted" in result.output


def test_a_deletion_that_comes_to_nothing_needs_attention(
    app: Application, shell: Shell, unique: str
) -> None:
    ingest(app, unique)
    with armed("started:neo4j_write=reject"):
        told = shell.json("delete", unique, "--yes", "--here", exit_code=1)
    assert (told["status"], told["receipt"]) == ("compensated", None)
    assert told["error"]["step"] == "neo4j_write"
    assert_whole(app, unique)


def test_a_receipt_is_shown_written_and_verified(
    app: Application, shell: Shell, unique: str, tmp_path: Path
) -> None:
    ingest(app, unique)
    assert shell("receipt", "show", unique).exit_code == 2
    told = shell.json("delete", unique, "--yes", "--here")
    target = tmp_path / "receipt.json"
    shown = shell("receipt", "show", unique, "--out", str(target))
    assert shown.exit_code == 0
    assert told["saga_id"] in shown.output
    assert shell.json("receipt", "show", told["saga_id"]) == json.loads(target.read_bytes())
    result = shell.json("receipt", "verify", str(target))
    assert result["right_key"] is True
    assert result["receipt"] == told["receipt"]
    other = shell("receipt", "verify", str(target), "--fingerprint", "SHA256:0")
    assert other.exit_code == 1
    file = json.loads(target.read_bytes())
    file["receipt"]["document_id"] = "another"
    target.write_text(json.dumps(file))
    forged = shell("receipt", "verify", str(target))
    assert forged.exit_code == 2
    assert "was changed" in forged.output
