"""docker-compose.yml and what its image runs, checked as far as that goes without Docker."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import yaml

from apex_dagster.defs.instance.pool_protocol import socket_path
from apex_dagster.embedded.redis import find_program
from apex_dagster.embedded.stack import ALL, outside_names
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.conftest import run_sql

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")  # ${NAME:?what to do}: no value, no start
SECRET_NAME = re.compile(r"PASSWORD|API_KEY|AUTH")

Service = Mapping[str, Any]


def load() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return content


SERVICES: dict[str, Service] = load()["services"]
each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def test_the_services_are_four_real_servers_and_five_processes_of_ours() -> None:
    assert set(SERVICES) == {*ALL, "code", "pool", "webserver", "daemon", "api"}


@each_service
def test_every_service_says_whether_it_is_healthy(service: Service) -> None:
    check = service["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries", "start_period"} <= check.keys()


@each_service
def test_images_are_pinned(service: Service) -> None:
    name, _, tag = service["image"].partition(":")
    if "build" in service:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert (name, tag) == (project["name"], project["version"])
    else:
        assert re.match(r"v?\d+\.\d+\.\d+", tag), f"{name} is not pinned to one release"


@each_service
def test_ports_are_published_on_loopback_only(service: Service) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@each_service
def test_no_password_is_written_down_or_has_a_default(service: Service) -> None:
    for name, value in service.get("environment", {}).items():
        credentials = re.search(r"://[^:/@]*:([^/@]+)@", value)
        if SECRET_NAME.search(name) or credentials:
            secret = credentials[1] if credentials else value.removeprefix("neo4j/")
            assert REQUIRED.fullmatch(secret), f"{name} can be set without anybody choosing it"


@each_service
def test_no_password_reaches_a_command_line(service: Service) -> None:
    """Compose fills in ${NAME} before it starts the container: all its processes would show it."""
    commands = yaml.safe_dump([service.get("command"), service["healthcheck"]["test"]])
    assert not re.search(r"(?<!\$)\$\{?\w", commands.replace("$$", ""))


def test_generated_passwords_are_all_that_compose_asks_for(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    script = shutil.copy(ROOT / "docker" / "make-env", tmp_path / "docker")
    first = run_for_text([script])
    written = (tmp_path / ".env").read_text(encoding="utf-8")
    values = dict(line.split("=", 1) for line in written.splitlines())
    assert set(values) == set(REQUIRED.findall(COMPOSE.read_text(encoding="utf-8")))
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in values.values())
    assert len(set(values.values())) == len(values)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert not any(value in first for value in values.values())

    run_for_text([script])
    assert (tmp_path / ".env").read_text(encoding="utf-8") == written


def test_volumes_are_declared_and_every_store_has_one() -> None:
    used = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
    }
    named = {volume for volume in used if not volume.startswith(".")}
    assert named == set(load()["volumes"])
    assert set(ALL) | {"inbox"} <= named
    assert all((ROOT / volume).exists() for volume in used - named)


@pytest.mark.parametrize("service", ["code", "pool"])
def test_in_a_container_no_store_is_embedded(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of(service).items():
        monkeypatch.setenv(name, value)
    assert outside_names(Settings()) == set(ALL)
    fields = {f"APEX_{field.upper()}" for field in Settings.model_fields}
    assert {name for name in environment_of(service) if name.startswith("APEX_")} <= fields


@pytest.mark.parametrize("service", ["code", "pool", "webserver", "daemon"])
def test_processes_of_ours_share_one_dagster_storage(service: str) -> None:
    url = environment_of(service)["DAGSTER_POSTGRES_URL"]
    assert url.endswith("@postgres:5432/dagster")
    created = (ROOT / "docker" / "postgres" / "dagster.sql").read_text(encoding="utf-8")
    assert "CREATE DATABASE dagster " in created


@pytest.mark.parametrize("service", ["pool", "webserver", "daemon"])
def test_runs_are_handed_over_on_a_volume_that_they_share(service: str) -> None:
    """Where the settings, left alone, have the socket in each container."""
    assert "APEX_POOL_SOCKET" not in environment_of(service)
    home = re.findall(r"APEX_HOME=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))[0]
    folder = socket_path(Settings(home=Path(home), pool_socket=None)).parent
    assert f"pool:{folder}" in SERVICES[service]["volumes"]
    assert str(folder) in "".join(SERVICES["pool"]["healthcheck"]["test"])


def test_webserver_and_daemon_look_for_the_code_server_where_it_is() -> None:
    workspace = yaml.safe_load((ROOT / "docker" / "workspace.yaml").read_text(encoding="utf-8"))
    (location,) = workspace["load_from"]
    assert location["grpc_server"]["host"] in SERVICES
    port = environment_of(location["grpc_server"]["host"])["DAGSTER_GRPC_PORT"]
    assert location["grpc_server"]["port"] == int(port)


def test_redis_reads_its_password_from_standard_input(tmp_path: Path) -> None:
    """The command of docker-compose.yml, with another Redis and port than in the container."""
    port = free_port()
    server = tmp_path / "redis-server"
    server.write_text(f'#!/bin/sh\nexec {find_program()} "$@" --bind 127.0.0.1 --port {port}\n')
    server.chmod(0o755)
    command = [part.replace("$$", "$") for part in SERVICES["redis"]["command"]]
    command[-1] = command[-1].replace("dir /data", f"dir {tmp_path}")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDISCLI_AUTH": "loud-secret"}

    with running(command, environment, tmp_path / "redis.log") as process:
        wait_for_port(process, port, tmp_path / "redis.log")
        assert redis.Redis(port=port, password="loud-secret").ping()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        assert "loud-secret" not in " ".join(process.cmdline())


@pytest.fixture
def dagster_database(stack: Endpoints, unique: str) -> Iterator[str]:
    """The address of an empty database, as docker/postgres/dagster.sql makes it."""
    name = f"dagster_{unique}"
    run_sql(stack, f"CREATE DATABASE {name}")
    yield stack.postgres_database(name).get_secret_value()
    run_sql(stack, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.timeout(240)
def test_the_image_s_entry_point_serves_the_jobs(
    endpoints: Endpoints, dagster_database: str, tmp_path: Path
) -> None:
    """docker/entrypoint code, as the container runs it, and Dagster asking it what it holds."""
    home = dagster_home(tmp_path)
    port = free_port()
    environment = {
        **environment_of("code"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "APEX_HOME": str(tmp_path / "apex"),
        "APEX_NEO4J_URI": endpoints.neo4j_uri,
        "APEX_NEO4J_PASSWORD": endpoints.neo4j_password.get_secret_value(),
        "APEX_POSTGRES_URL": endpoints.postgres_url.get_secret_value(),
        "APEX_QDRANT_URL": endpoints.qdrant_url,
        "APEX_REDIS_URL": endpoints.redis_url.get_secret_value(),
        "DAGSTER_HOME": str(home),
        "DAGSTER_POSTGRES_URL": dagster_database,
        "DAGSTER_GRPC_HOST": "127.0.0.1",
        "DAGSTER_GRPC_PORT": str(port),
    }
    log = tmp_path / "code.log"
    command = [str(ROOT / "docker" / "entrypoint"), *SERVICES["code"]["command"]]
    with running(command, environment, log) as process:
        wait_for_port(process, port, log)
        asked = ["dagster", "job", "list", "--grpc-host", "127.0.0.1", "--grpc-port", str(port)]
        listed = run_for_text(asked, environment)
    assert {"Job: ingest_documents", "Job: compensate_documents"} <= set(listed.splitlines())
    assert not (tmp_path / "apex").exists(), "an embedded server was started beside the real ones"


@pytest.mark.skipif(
    subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0
    if shutil.which("docker")
    else True,
    reason="docker compose is not installed",
)
def test_docker_compose_accepts_the_file() -> None:
    command = ["docker", "compose", "-f", str(COMPOSE), "--env-file", "/dev/null", "config", "-q"]
    names = REQUIRED.findall(COMPOSE.read_text(encoding="utf-8"))
    bare = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    subprocess.run(command, env=bare | dict.fromkeys(names, "0f"), check=True)
    assert subprocess.run(command, env=bare, capture_output=True).returncode != 0


def environment_of(service: str) -> dict[str, str]:
    """A service's environment with every password filled in."""
    return {
        name: REQUIRED.sub("0123456789abcdef", value)
        for name, value in SERVICES[service]["environment"].items()
    }


def dagster_home(directory: Path) -> Path:
    """DAGSTER_HOME with what the Dockerfile puts there."""
    home = directory / "home"
    home.mkdir()
    (copied,) = re.findall(r"^COPY (.*) /opt/apex/$", (ROOT / "Dockerfile").read_text(), re.M)
    for source in copied.split():
        shutil.copy(ROOT / source, home)
    return home


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[psutil.Popen]:
    """The command as a process of its own; it and its children are gone afterwards."""
    with log.open("wb") as output:
        process = psutil.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent
        )
    try:
        yield process
    finally:
        family = [*process.children(recursive=True), process] if process.is_running() else []
        for member in family:
            member.terminate()
        _, alive = psutil.wait_procs(family, timeout=20)
        for member in alive:
            member.kill()
        process.wait(timeout=10)


def wait_for_port(process: psutil.Popen, port: int, log: Path, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"nothing listens on port {port}:\n{log.read_text(errors='replace')[-4000:]}")


def run_for_text(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
