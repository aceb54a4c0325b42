"""The command line as a whole: quick to start, free of Dagster, plain about errors."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from apex_dagster.cli.main import COMMANDS, main

LIST_MODULES = "import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def modules_after(statements: str) -> set[str]:
    """Packages that a fresh interpreter has imported after these statements."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{LIST_MODULES}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_no_command_imports_dagster():
    imports = {f"import {target.partition(':')[0]}" for target, _ in COMMANDS.values()}
    imports |= {"import apex_dagster.composition", "import apex_dagster.migrations.migrate"}
    imported = modules_after("\n".join(sorted(imports)))
    assert "apex_dagster" in imported
    assert not {name for name in imported if name.startswith("dagster")}


def test_help_imports_nothing_that_takes_time():
    help_ = "from apex_dagster.cli.main import main\nmain(['--help'], standalone_mode=False)"
    slow = {"pydantic", "rich", "psycopg", "neo4j", "redis", "qdrant_client", "numpy", "spacy"}
    assert not modules_after(help_) & slow


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command):
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert COMMANDS[command][1].split()[0] in result.output


def test_nothing_was_ever_started_here(tmp_path):
    for arguments in (["status"], ["saga", "list"], ["saga", "recover"], ["migrate"]):
        result = CliRunner(env={"APEX_HOME": str(tmp_path)}).invoke(main, arguments)
        assert result.exit_code == 3, result.output
        assert "run `apex up`" in result.stderr
        assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_refuses_is_named_at_once_without_its_password(shell):
    url = "postgresql://apex:hunter2@127.0.0.1:1/apex"
    result = shell("status", env={"APEX_POSTGRES_URL": url})
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: postgres is unavailable: ")
    assert len(result.stderr.splitlines()) == 1
    assert "hunter2" not in result.output


def test_an_address_that_is_none_is_not_repeated(shell):
    result = shell("saga", "list", env={"APEX_POSTGRES_URL": "apex:hunter2@nowhere"})
    assert result.exit_code == 2
    assert "APEX_POSTGRES_URL" in result.stderr
    assert "hunter2" not in result.output


def test_a_setting_that_cannot_be_used_is_wrong_use(tmp_path):
    environment = {"APEX_HOME": str(tmp_path), "APEX_LEASE_S": "-1"}
    result = CliRunner(env=environment).invoke(main, ["status"])
    assert result.exit_code == 2
    assert "APEX_LEASE_S" in result.stderr
