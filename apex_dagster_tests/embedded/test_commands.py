"""`apex up`, `apex down` and `apex doctor` as users run them: two stores embedded, two outside."""

import json
import os
import pty
import subprocess
import sys
import time

import psutil
import pytest
from pydantic import SecretStr

from apex_dagster.cli.main import COMMANDS, main
from apex_dagster.embedded import process
from apex_dagster.embedded.diagnosis import diagnose, without_password
from apex_dagster.embedded.stack import Stack, endpoints
from apex_dagster.errors import InvalidInput
from apex_dagster.settings import Settings

APEX = (sys.executable, "-m", "apex_dagster.cli.main")


@pytest.fixture
def settings(stack, home, monkeypatch):
    """The shared servers play the outside Neo4j and PostgreSQL."""
    outside = {
        "APEX_HOME": str(home),
        "APEX_NEO4J_URI": stack.neo4j_uri,
        "APEX_NEO4J_PASSWORD": stack.neo4j_password.get_secret_value(),
        "APEX_POSTGRES_URL": stack.postgres_url.get_secret_value(),
    }
    for name, value in outside.items():
        monkeypatch.setenv(name, value)
    for name in ("APEX_QDRANT_URL", "APEX_QDRANT_API_KEY", "APEX_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    yield Settings()
    Stack(home).down()


def apex(*arguments):
    done = subprocess.run([*APEX, *arguments], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def doctor():
    done = apex("doctor", "--json")
    return done.returncode, {store["store"]: store for store in json.loads(done.stdout)["stores"]}


def test_up_doctor_down(settings, stack):
    first = apex("up")
    assert first.returncode == 0
    assert "redis     ready after" in first.stdout
    assert "neo4j     outside" in first.stdout
    own = [Stack(settings.home).servers[name] for name in ("qdrant", "redis")]
    running = {server.name: psutil.Process(server.known().pid) for server in own}

    second = apex("up")
    assert "redis     already up" in second.stdout
    assert "ready" not in second.stdout.replace("already", "")
    code, stores = doctor()
    assert code == 0
    assert {name: stores[name]["pid"] for name in running} == {
        name: server.pid for name, server in running.items()
    }
    assert stores["redis"]["version"].startswith("Valkey 9.")
    assert stores["redis"]["kind"] == stores["qdrant"]["kind"] == "embedded"
    assert stores["neo4j"]["kind"] == stores["postgres"]["kind"] == "outside"
    assert stores["neo4j"]["version"].startswith("5.26.")
    assert stores["postgres"]["version"].startswith("18.")
    assert stores["neo4j"]["address"] == stack.neo4j_uri

    assert "redis     stopped" in apex("down").stdout
    assert all(process.has_ended(server) for server in running.values())
    assert "redis     was not up" in apex("down").stdout


def test_doctor_tells_a_crash_from_a_stop_and_how_to_go_on(settings):
    code, stores = doctor()
    assert code == 1
    assert stores["redis"]["problem"] == "it has never been started"
    Stack(settings.home).ensure(["redis"])
    victim = psutil.Process(Stack(settings.home).redis.known().pid)
    victim.kill()
    victim.wait(10)
    code, stores = doctor()
    assert code == 1
    assert "ended by itself" in stores["redis"]["problem"]
    assert stores["redis"]["fix"] == "apex up"
    Stack(settings.home).down()
    assert doctor()[1]["redis"]["problem"] == "it is stopped"
    assert "apex up" in apex("doctor").stdout


def test_no_output_holds_a_password(settings, stack):
    output = "".join(
        done.stdout + done.stderr for done in (apex("up"), apex("doctor"), apex("doctor", "--json"))
    )
    own = Stack(settings.home)
    secrets = [
        stack.neo4j_password.get_secret_value(),
        stack.postgres_url.get_secret_value().split("@")[0],
        own.redis.password(),
        own.qdrant.password(),
    ]
    assert not [secret for secret in secrets if secret in output]


def test_start_that_fails_ends_with_the_log_and_no_traceback(settings):
    redis = Stack(settings.home).redis
    (redis.data / "appendonlydir").mkdir(parents=True)
    (redis.data / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    done = apex("up")
    assert done.returncode != 0
    assert "redis did not start" in done.stderr
    assert "manifest" in done.stderr
    assert Stack(settings.home).is_up("qdrant")  # one that fails does not keep the others down


def test_bars_on_a_terminal(settings):
    primary, secondary = pty.openpty()
    command = subprocess.Popen([*APEX, "up"], stdout=secondary, stderr=secondary)
    os.close(secondary)
    screen = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            screen += os.read(primary, 65536)
        except OSError:  # the other end is closed: the command has ended
            break
    os.close(primary)
    assert command.wait(10) == 0
    assert b"\x1b[" in screen
    assert b"starting" in screen
    assert b"ready" in screen


def test_setting_that_cannot_be_read_is_named(settings, monkeypatch):
    monkeypatch.setenv("APEX_LEASE_S", "soon")
    done = apex("up")
    assert done.returncode != 0
    assert "APEX_LEASE_S" in done.stderr


def test_endpoints_mix_outside_and_embedded(settings, stack):
    found = endpoints(settings)
    assert found.neo4j_uri == stack.neo4j_uri
    assert found.postgres_url == stack.postgres_url
    assert found.redis_url != stack.redis_url
    assert found.qdrant_url != stack.qdrant_url
    assert not (settings.home / "neo4j").exists()
    assert not (settings.home / "postgres").exists()
    assert "SecretStr('**********')" in repr(found)
    assert stack.neo4j_password.get_secret_value() not in repr(found)


def test_outside_neo4j_needs_a_password(settings):
    without = settings.model_copy(update={"neo4j_password": None})
    with pytest.raises(InvalidInput, match="APEX_NEO4J_PASSWORD"):
        endpoints(without)


def test_doctor_on_outside_servers_that_do_not_serve(settings):
    wrong = settings.model_copy(
        update={
            "neo4j_password": SecretStr("wrong"),
            "postgres_url": SecretStr("postgresql://apex:secret@127.0.0.1:1/apex"),
            "qdrant_url": "http://127.0.0.1:1",
            "redis_url": SecretStr("redis://:secret@127.0.0.1:1/0"),
        }
    )
    found = diagnose(wrong)
    assert not any(one.up for one in found)
    assert all(one.problem and one.fix for one in found)
    assert "secret" not in repr(found)


def test_unknown_server_is_named(home):
    with pytest.raises(InvalidInput, match="mongodb"):
        Stack(home).ensure(["mongodb"])


def test_ensure_is_cheap_when_all_is_up(stack, stack_home):
    """A few milliseconds, which a busy machine grants once in a while."""
    took_s = []
    for _ in range(20):
        started = time.perf_counter()
        assert Stack(stack_home).ensure() == stack
        took_s.append(time.perf_counter() - started)
    assert min(took_s) < 0.05


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://apex:p%40ss@db:5432/apex?sslmode=require", "postgresql://db:5432/apex"),
        ("redis://:secret@cache:6379/0", "redis://cache:6379/0"),
        ("bolt://graph:7687", "bolt://graph:7687"),
    ],
)
def test_address_without_password(address, shown):
    assert without_password(address) == shown


def test_help_imports_no_command():
    code = (
        "import sys; from apex_dagster.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'dagster', 'neo4j', 'psycopg', 'redis', 'spacy', 'pydantic', 'rich'}\n"
        "print('IMPORTED', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED []"
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", ["up", "down", "doctor"])
def test_help_line_is_the_command_s_own(name):
    command = main.get_command(None, name)
    assert command is not None
    assert command.help.split("\n")[0] == COMMANDS[name][1]
