"""`apex demo`, as `make run` calls it."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from apex_dagster.cli.dagster_dev import DagsterDev
from apex_dagster.cli.demo import follow
from apex_dagster.embedded import ports
from apex_dagster.embedded.dagster_home import dagster_home
from apex_dagster.embedded.stack import ALL, Stack
from apex_dagster.ingestion.sample_drop import SampleDrop
from apex_dagster.samples import sample_files
from apex_dagster.settings import Settings
from apex_dagster_tests.cli.conftest import clean_environment, environment_of

ROOT = Path(__file__).parents[2]


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path, shell):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = shell("demo", "--port", str(port))
    assert result.exit_code == 2
    assert f"another program listens on {port}" in result.stderr
    assert not (tmp_path / "dagster.log").exists()


def test_dagster_that_does_not_start_says_why(app, shell):
    # A database that refuses: the same as one that is down.
    environment = {"DAGSTER_POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/dagster"}
    started = time.monotonic()
    # Not the usual port, where the Dagster of another test may come up and answer for this one.
    result = shell("demo", "--exit", "--port", str(ports.choose(None)), env=environment)
    assert result.exit_code == 3, result.output
    assert "dagster did not start: it ended during its start" in result.stderr
    assert "end of its log" in result.stderr
    assert "too many retries for DB connection" in result.stderr.partition("end of its log")[2]
    assert time.monotonic() - started < 110
    assert dagster_processes(app.settings.home) == []


def test_a_wheel_brings_dagsters_configuration_along(tmp_path, monkeypatch):
    """Without a checkout around the package, Dagster's home is a folder below APEX_HOME."""
    package = tmp_path / "site-packages" / "apex_dagster"
    package.mkdir(parents=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        (package / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr("apex_dagster.embedded.dagster_home.files", lambda _: package)
    home = dagster_home(Settings(home=tmp_path))
    assert home == tmp_path / "dagster"
    assert (home / "dagster.yaml").read_text() == (ROOT / "dagster.yaml").read_text()
    assert (home / "workspace.yaml").read_text() == (ROOT / "workspace.yaml").read_text()


def test_in_a_checkout_dagsters_home_is_its_root(tmp_path):
    assert dagster_home(Settings(home=tmp_path)) == ROOT


def test_the_wait_ends_when_time_is_up_or_dagster_is_gone(app):
    samples = SampleDrop(app.inbox, app.ledger)
    samples.drop()  # with nothing running that would take them
    process = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE)
    dagster = DagsterDev(app.settings, 3000, process)
    terminal = Console(file=io.StringIO())
    total = len(samples.documents)
    problem = follow(terminal, samples, dagster, 0.1)
    assert f"{total} of {total} documents have not ended within 0.1 s: samples/" in problem
    process.kill()
    process.wait()
    assert follow(terminal, samples, dagster, 300) == "Dagster has ended by itself."
    process.stdin.close()


@pytest.fixture
def home(servers_root: Path) -> Iterator[Path]:
    """An APEX_HOME of the test's own, which the session's watchdog removes in any case."""
    home = servers_root / f"demo-{os.getpid()}-{secrets.token_hex(4)}"
    yield home
    Stack(home).down()


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_sample_corpus_ends_in_all_four_stores_and_nothing_doubles(home):
    first = run_demo(home, "--exit")
    assert first.returncode == 0, first.stdout + first.stderr
    documents = status_of(home)
    assert len(documents) >= len(sample_files()) >= 30
    for document in documents:
        assert document["status"] == "completed", document
        assert document["version"] == 1
        assert document["neo4j"] > 0
        assert document["postgres"] == document["qdrant"] > 0
        assert document["redis"] == f"doc:{document['document_id']}"
        assert document["document_id"] in first.stdout
    for name in ALL:
        assert Stack(home).is_up(name)
        assert str(Stack(home).servers[name].password_path) in first.stdout
        assert Stack(home).servers[name].password() not in first.stdout + first.stderr
    assert dagster_processes(home) == []

    # The second time it stays, until it is killed.
    command, environment = demo(home)
    with subprocess.Popen(
        command, env=environment, cwd=home, stdout=subprocess.PIPE, text=True
    ) as staying:
        address = wait_for_line(staying, r"Dagster UI\s+(http://\S+)")
        with urllib.request.urlopen(f"{address}/server_info", timeout=10) as answer:
            assert json.load(answer)["dagster_version"]
        counts = without_durations(documents)
        assert without_durations(status_of(home)) == counts
        assert not list((home / "inbox" / "samples").iterdir())
        children = dagster_processes(home)
        assert len(children) >= 3  # webserver, daemon, code server
        staying.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive, [process.cmdline() for process in alive]
    assert dagster_processes(home) == []
    assert all(Stack(home).is_up(name) for name in ALL)


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_it_serves_the_api_until_a_signal_stops_it_and_leaves_the_stores(
    app, dagster_database, unique
):
    environment = clean_environment() | environment_of(
        app.endpoints, app.settings, app.settings.home
    )
    environment |= {"DAGSTER_POSTGRES_URL": dagster_database}
    command = [sys.executable, "-m", "apex_dagster.cli.main", "demo"]
    with subprocess.Popen(
        command,
        env=environment,
        cwd=app.settings.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as staying:
        wait_for_line(staying, r"Dagster UI\s+(http://\S+)")
        api = wait_for_line(staying, r"HTTP API\s+(http://\S+)/docs")
        answer = post(f"{api}/documents/ingest", {"document_id": unique, "text": "Ada met Bob."})
        staying.send_signal(signal.SIGTERM)
        _, errors = staying.communicate(timeout=120)
    assert staying.returncode == 0, errors
    assert "apex down" in errors
    assert (answer["status"], answer["version"]) == ("success", 1)
    assert app.ledger.sagas([answer["saga_id"]])[0].run_id  # by a run of Dagster
    assert dagster_processes(app.settings.home) == []
    for store in app.stores.values():
        store.ping()


@pytest.fixture
def dagster_database(stack, unique):
    """The address of an empty database for Dagster's own storage."""
    from apex_dagster_tests.conftest import run_sql

    name = f"dagster_{unique}"
    run_sql(stack, f"CREATE DATABASE {name}")
    yield stack.postgres_database(name).get_secret_value()
    run_sql(stack, f"DROP DATABASE {name} WITH (FORCE)")


def demo(home: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "apex_dagster.cli.main", "demo", *arguments]
    return command, clean_environment() | {"APEX_HOME": str(home)}


def run_demo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, environment = demo(home, *arguments)
    return subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, timeout=420
    )


def status_of(home: Path) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "apex_dagster.cli.main", "status", "--json"],
        env=clean_environment() | {"APEX_HOME": str(home)},
        cwd=home,
        capture_output=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)["documents"]


def without_durations(documents: list[dict]) -> list[dict]:
    return [{k: v for k, v in d.items() if k != "duration_ms"} for d in documents]


def wait_for_line(process: subprocess.Popen, pattern: str) -> str:
    """What the group of the pattern is, in the next line that has it."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError("".join(seen))


def post(url: str, body: dict) -> dict:
    """The answer to a document; raises for any status but 200."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=150) as response:
        return json.load(response)


def dagster_processes(home: Path) -> list[psutil.Process]:
    """What runs with this APEX_HOME, the stores' servers apart, which do not know it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("APEX_HOME") == str(home) and "dagster" in " ".join(
                process.cmdline()
            ):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [process for process in found if "apex_dagster.cli.main" not in process.cmdline()]
