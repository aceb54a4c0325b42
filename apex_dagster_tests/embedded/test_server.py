"""One server's life: started once, found again, restarted after a crash, never confused with
another process. Shown on Redis, the quickest to start; what depends on the engine is in
test_crash.py."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis

from apex_dagster.embedded import ports, process
from apex_dagster.embedded.process import ServerState
from apex_dagster.embedded.redis import Redis
from apex_dagster.embedded.stack import Stack, ignore
from apex_dagster.errors import ServerNotStarted

ENSURE = """
import sys
from pathlib import Path
from apex_dagster.embedded.redis import Redis
print(Redis(Path(sys.argv[1])).ensure(lambda progress: None).pid)
"""


@pytest.fixture
def server(home):
    server = Redis(home)
    yield server
    server.stop()


def marked(directory: Path) -> list[int]:
    return [found.pid for found in process.find_strays(directory)]


def test_processes_that_start_a_server_at_once_get_one(server, home):
    commands = [
        subprocess.Popen([sys.executable, "-c", ENSURE, str(home)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    pids = {int(command.communicate(timeout=60)[0]) for command in commands}
    assert len(pids) == 1
    assert marked(server.directory) == list(pids)


def test_threads_that_start_a_server_at_once_get_one(server):
    pids = []
    threads = [
        threading.Thread(target=lambda: pids.append(server.ensure(ignore).pid)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pids) == 4
    assert len(set(pids)) == 1


def test_server_survives_the_command_that_started_it(server, home):
    command = subprocess.run(
        [sys.executable, "-c", ENSURE, str(home)], capture_output=True, check=True, timeout=60
    )
    assert server.ensure(ignore).pid == int(command.stdout)


def test_stopped_server_comes_back_on_its_port(server):
    first = server.ensure(ignore)
    assert server.stop()
    assert server.running() is None
    assert not psutil.pid_exists(first.pid)
    second = server.ensure(ignore)
    assert second.port == first.port
    assert second.pid != first.pid


def test_stopping_twice_or_before_the_first_start_does_nothing(server):
    assert not server.stop()
    server.ensure(ignore)
    assert server.stop()
    assert not server.stop()


def test_port_that_is_taken_meanwhile_is_given_up(server):
    first = server.ensure(ignore)
    server.stop()
    with socket.socket() as other:
        other.bind((ports.LOOPBACK, first.port))
        other.listen()
        second = server.ensure(ignore)
    assert second.port != first.port
    assert server.probe(second)


def test_port_taken_between_look_and_bind_is_tried_again(server, monkeypatch):
    choose = ports.choose
    with socket.socket() as other:
        other.bind((ports.LOOPBACK, 0))
        other.listen()
        answers = iter([other.getsockname()[1]])
        monkeypatch.setattr(ports, "choose", lambda known: next(answers, None) or choose(None))
        state = server.ensure(ignore)
        assert state.port != other.getsockname()[1]
    assert server.probe(state)


def test_state_file_that_speaks_of_a_foreign_process_harms_nobody(server):
    """The server died, and its pid went to some other program."""
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        server.make_directory()
        stale = ServerState(
            port=ports.choose(None), identity="x", pid=bystander.pid, created_at=1.0, ready=True
        )
        process.write_state(server.state_path, stale)
        assert server.running() is None
        assert server.ensure(ignore).pid != bystander.pid
        assert server.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_changed_clock_does_not_hide_a_running_server(server):
    """Creation times come from the wall clock; a step of it must not start a second server."""
    state = server.ensure(ignore)
    process.write_state(server.state_path, replace(state, created_at=state.created_at - 3600))
    assert server.ensure(ignore).pid == state.pid


def test_server_whose_starter_was_killed_is_replaced(server):
    """Killed before the state file was written: the server runs and nobody knows of it."""
    state = server.ensure(ignore)
    server.state_path.unlink()
    second = server.ensure(ignore)
    assert second.pid != state.pid
    assert marked(server.directory) == [second.pid]


def test_server_that_was_not_ready_when_its_starter_died_is_replaced(server):
    state = server.ensure(ignore)
    process.write_state(server.state_path, replace(state, ready=False))
    second = server.ensure(ignore)
    assert marked(server.directory) == [second.pid]


def test_server_that_was_killed_leaves_no_zombie_with_its_starter(server):
    """A PostgreSQL that is started anew would take it for a running one, and not start."""
    state = server.ensure(ignore)
    os.kill(state.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(state.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not psutil.pid_exists(state.pid)
    assert server.ensure(ignore).pid != state.pid


@pytest.mark.parametrize("text", ["", "{", "[]", '{"port": 1, "colour": "red"}'])
def test_broken_state_file_is_as_good_as_none(server, text):
    server.make_directory()
    server.state_path.write_text(text)
    assert server.ensure(ignore).ready


def test_server_that_cannot_start_says_why(server):
    server.make_directory()
    (server.data / "appendonlydir").mkdir(parents=True)
    (server.data / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(ServerNotStarted, match="it ended during its start") as caught:
        server.ensure(ignore)
    assert "manifest" in str(caught.value)


def test_frozen_server_is_reported_and_can_be_stopped(server, home):
    state = server.ensure(ignore)
    os.kill(state.pid, signal.SIGSTOP)
    status = {status.name: status for status in Stack(home).status()}["redis"]
    assert not status.up
    assert status.pid == state.pid
    assert "does not answer" in status.problem
    assert server.stop()
    assert not psutil.pid_exists(state.pid)


def test_password_is_in_private_files_only(server):
    state = server.ensure(ignore)
    password = server.password()
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=state.port) as client:
        client.ping()
    assert password not in repr(state) + " ".join(psutil.Process(state.pid).cmdline())
    assert password not in server.log.read_text()
    holding = [
        path
        for path in server.directory.rglob("*")
        if path.is_file() and password.encode() in path.read_bytes()
    ]
    assert {path.name for path in holding} == {"password", "valkey.conf"}
    assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}


def test_environment_with_secrets_does_not_reach_the_server(server, monkeypatch):
    monkeypatch.setenv("APEX_NEO4J_PASSWORD", "of another server")
    environment = psutil.Process(server.ensure(ignore).pid).environ()
    assert "APEX_NEO4J_PASSWORD" not in environment


def test_long_log_is_put_aside(server, monkeypatch):
    server.make_directory()
    server.log.write_text("old\n" * 1000)
    monkeypatch.setattr(process, "LOG_BYTES_MAX", 1000)
    server.ensure(ignore)
    assert "old" not in server.log.read_text()
    assert server.log.with_suffix(".log.1").read_text().startswith("old")
