"""The runbook, followed from top to bottom where everything is wrong that it speaks of."""

from __future__ import annotations

import re
import shlex
from datetime import timedelta
from pathlib import Path

import pytest

from apex_dagster.cli import exit_codes
from apex_dagster.composition import Application
from apex_dagster.ingestion.audit import verify
from apex_dagster.saga.states import Status
from apex_dagster_tests.cli.conftest import Shell
from apex_dagster_tests.cli.test_saga import fail_to_undo
from apex_dagster_tests.documents import submission
from apex_dagster_tests.saga.test_bound import leave, let_pass

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"
# Not against the test's own outside servers, which it says it does not manage.
ELSEWHERE = {"apex up"}
# The stores are shared with other tests, whose documents this test's ledger does not know.
OWN_ONLY = {"apex reconcile", "apex audit verify"}


def sections() -> dict[str, list[str]]:
    """The commands of each section."""
    text = RUNBOOK.read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return {
        title: [
            line
            for block in re.findall(r"```console\n(.*?)```", body, re.DOTALL)
            for line in block.splitlines()
        ]
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.mark.timeout(600)
def test_every_command_works_and_all_is_well_at_the_end(
    app: Application, shell: Shell, unique: str
) -> None:
    failed = fail_to_undo(app, f"{unique}-failed")
    let_pass(app, leave(app, f"{unique}-left"), timedelta(hours=1))
    bad = [submission(f"{unique}-{name}", dim=7) for name in ("bad", "mistake")]
    app.ingestion.ingest(bad, owner="test")
    [drifted] = app.ingestion.ingest([submission(f"{unique}-drifted")], owner="test")
    app.stores["qdrant"].discard([drifted.ref])
    app.alerts.evaluate([])
    names = {alert.name.partition(":")[0] for alert in app.alerts.firing()}
    assert {"compensation_failed", "sagas_overdue", "step_failed"} <= names

    written = sections()
    assert all(any(name in title for title in written) for name in names)
    for title, commands in written.items():
        assert commands, title
        for command in commands:
            run(shell, command, saga_id=failed.saga_id, unique=unique)

    assert app.ledger.sagas([failed.saga_id])[0].status is Status.COMPENSATED
    [left] = app.ledger.list_sagas(document_id=f"{unique}-left")
    assert left.status is Status.COMPLETED
    assert app.ledger.quarantined() == []
    assert verify(app.ledger, app.stores).differences == []
    app.alerts.evaluate([])
    now = {alert.name.partition(":")[0] for alert in app.alerts.firing()}
    assert now <= {"step_failed", "compensation_rate", "success_rate", "latency_p90"}  # of late


def run(shell: Shell, command: str, *, saga_id: str, unique: str) -> None:
    words = shlex.split(command)
    assert words[0] == "apex"
    name = " ".join(words[:3] if words[1] == "audit" else words[:2])
    if name in ELSEWHERE:
        return
    document_id = f"{unique}-mistake" if "drop" in words else f"{unique}-bad"
    words = [{"SAGA_ID": saga_id, "DOCUMENT_ID": document_id}.get(w, w) for w in words]
    if name in OWN_ONLY:
        words += ["--document", f"{unique}-drifted"]
    done = shell(*words[1:])
    assert done.exit_code in (0, exit_codes.ATTENTION), f"{command}\n{done.output}"
    assert done.stdout.strip()
