"""The documents name what exists: settings, commands, files, make targets."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from apex_dagster.cli.main import main
from apex_dagster.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "apex_dagster").rglob("README.md"),
    ]
)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def test_the_documents_a_reader_expects_are_there() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS}
    assert {"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "docs/settings.md"} <= names


def test_the_table_of_settings_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "document_settings.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    table = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [name for name in Settings.model_fields if f"| `APEX_{name.upper()}` |" not in table]
    assert not missing


@each_document
def test_settings_that_are_named_exist(document: Path) -> None:
    known = {f"APEX_{name.upper()}" for name in Settings.model_fields} | {"APEX_DEMO_EXIT"}
    named = set(re.findall(r"\bAPEX_[A-Z0-9_]*[A-Z0-9]\b", document.read_text(encoding="utf-8")))
    assert named <= known


@each_document
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    relative = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in relative if not (document.parent / link).exists()] == []


@each_document
def test_python_files_that_are_named_exist(document: Path) -> None:
    named = set(re.findall(r"\b(?:[\w]+/)*\w+\.py\b", code(document)))
    places = (ROOT, ROOT / "apex_dagster", ROOT / "apex_dagster_tests")
    # In the drawing of the flow a file may stand for its neighbour in the same room.
    assert {
        name
        for name in named
        if not any((place / name).exists() or list(place.glob(f"*/{name}")) for place in places)
    } == set()


@each_document
def test_commands_that_are_named_exist(document: Path) -> None:
    unknown = [words for words in apex_commands(document) if not exists(words)]
    assert unknown == []


@each_document
def test_make_targets_that_are_named_exist(document: Path) -> None:
    assert set(re.findall(r"\bmake ([a-z]+)\b", code(document))) <= TARGETS


def test_the_readme_names_commands_that_this_test_can_see() -> None:
    commands = apex_commands(ROOT / "README.md")
    assert ["saga", "compensate"] in commands
    assert not exists(["saga", "rollback"])
    assert not exists(["ingset"])


def test_every_make_target_says_what_it_does() -> None:
    described = set(re.findall(r"^([a-z]+):[^#\n]*## \S", MAKEFILE, re.MULTILINE))
    assert described == TARGETS
    assert {"setup", "run", "test", "check", "fmt", "bench"} <= TARGETS


def test_the_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## .*\b{re.escape(project['version'])}\b", changelog, re.MULTILINE)


def code(document: Path) -> str:
    """What stands in code blocks and between backticks."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose)])


def apex_commands(document: Path) -> list[list[str]]:
    """The words after each `apex` that is called."""
    calls = re.findall(r"(?:^|[\s/])apex((?: [a-z][a-z-]*)+)", code(document), re.MULTILINE)
    return [call.split() for call in calls]


def exists(words: list[str]) -> bool:
    command: click.Command | None = main
    for word in words:
        if not isinstance(command, click.Group):
            return True  # the words that follow are arguments
        command = command.get_command(click.Context(command), word)
        if command is None:
            return False
    return True
