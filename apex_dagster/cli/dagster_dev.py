"""`dagster dev`, the pool of warm workers and the HTTP API as children: started, watched until our
code location has loaded, stopped."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError

from apex_dagster.embedded import ports
from apex_dagster.embedded.dagster_home import dagster_home, environment
from apex_dagster.embedded.process import LOG_BYTES_MAX, tail
from apex_dagster.errors import InvalidInput, ServerNotStarted
from apex_dagster.settings import Settings

PORT = 3000
READY_TIMEOUT_S = 120.0  # 10 s on an idle machine with two cores
STOP_TIMEOUT_S = 60.0
LOCK_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 10.0
POOL_COMMAND = (sys.executable, "-m", "apex_dagster.defs.instance.pool")

# Never by way of a proxy that the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

LOCATIONS = """
{ workspaceOrError { __typename
    ... on PythonError { message }
    ... on Workspace { locationEntries { name loadStatus
        locationOrLoadError { __typename ... on PythonError { message } } } } } }
"""


class DagsterDev:
    """Webserver, daemon and code server of one APEX_HOME, all in one process group; beside them
    the API, at `api_url`."""

    def __init__(self, settings: Settings, port: int, process: subprocess.Popen[bytes]) -> None:
        self.url = f"http://{ports.LOOPBACK}:{port}"
        self.api_url = ""  # set when the API has been started beside it
        self.log = log_path(settings)
        self._process = process

    def is_running(self) -> bool:
        return self._process.poll() is None

    def last_lines(self) -> str:
        """The end of its log."""
        return tail(self.log)

    def wait_ready(self, on_wait: Callable[[str], None]) -> None:
        """Return when the UI answers and the code location has loaded.

        Raises ServerNotStarted, with the end of the log.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.is_running():
                raise self._not_started("it ended during its start")
            state = self._load_state()
            if state is None:
                return
            on_wait(state)
            time.sleep(0.25)
        raise self._not_started(f"not ready within {READY_TIMEOUT_S:g} s")

    def stop(self) -> None:
        """End it and all that it started; also when it has ended by itself."""
        release(self._process)

    def _load_state(self) -> str | None:
        """What it is doing, None when it is ready. Raises ServerNotStarted for broken code."""
        try:
            workspace = self._ask(LOCATIONS)["workspaceOrError"]
        except (URLError, OSError, ValueError):
            return "starting"
        if workspace["__typename"] != "Workspace":
            raise self._not_started(workspace.get("message", "its workspace is broken"))
        entries = workspace["locationEntries"]
        for entry in entries:
            loaded = entry["locationOrLoadError"]
            if loaded and loaded["__typename"] == "PythonError":
                raise self._not_started(f"{entry['name']} does not load: {loaded['message']}")
        if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
            return None
        return "loading the code location"

    def _ask(self, query: str) -> Any:
        request = urllib.request.Request(  # noqa: S310  our own loopback address
            f"{self.url}/graphql",
            data=json.dumps({"query": query}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with DIRECT.open(request, timeout=REQUEST_TIMEOUT_S) as response:
            return json.load(response)["data"]

    def _not_started(self, reason: str) -> ServerNotStarted:
        return ServerNotStarted("dagster", reason, self.last_lines())


@contextmanager
def dagster_dev(settings: Settings, port: int | None) -> Iterator[DagsterDev]:
    """Start it for the length of the block. Raises InvalidInput when the port is taken, or when
    another one runs for this APEX_HOME already."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with only_one(settings.home) as lock:
        chosen = choose_port(port)
        dagster = start(settings, chosen, lock)
        lock.write(dagster.url)
        lock.flush()
        dagster.api_url, api = start_api(settings, lock)
        pool = start_pool(settings, lock) if settings.workers else None
        try:
            yield dagster
        finally:
            release(api)  # first, so that it takes in nothing that would have to wait
            dagster.stop()
            if pool is not None:
                release(pool)


def start(settings: Settings, port: int, lock: IO[str]) -> DagsterDev:
    command = [sys.executable, "-m", "dagster", "dev", "--workspace", "workspace.yaml"]
    command += ["--host", ports.LOOPBACK, "--port", str(port)]
    return DagsterDev(settings, port, tethered(command, settings, log_path(settings), lock))


def start_pool(settings: Settings, lock: IO[str]) -> subprocess.Popen[bytes]:
    """Warm workers; runs that are launched before they are ready get processes of their own. It
    ends at once when `apex worker` runs already for this APEX_HOME, whose workers serve as well."""
    return tethered(POOL_COMMAND, settings, settings.home / "pool.log", lock)


def start_api(settings: Settings, lock: IO[str]) -> tuple[str, subprocess.Popen[bytes]]:
    """POST /documents/ingest, on APEX_API_PORT or a free port."""
    port = ports.choose(settings.api_port)
    command = [sys.executable, "-m", "apex_dagster.cli.main", "api", "--port", str(port)]
    process = tethered(command, settings, settings.home / "api.log", lock)
    return f"http://{ports.LOOPBACK}:{port}", process


def tethered(
    command: Sequence[str], settings: Settings, log: Path, lock: IO[str]
) -> subprocess.Popen[bytes]:
    """Start a command that ends when we do, with Dagster's home as its working directory."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
    log.touch(mode=0o600)  # it may quote documents
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "apex_dagster.cli.tether", *command],
            cwd=dagster_home(settings),
            env=environment(settings),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who stop it in good order
            pass_fds=(lock.fileno(),),  # held until the last of its processes is gone
        )


def release(process: subprocess.Popen[bytes]) -> None:
    """Let go of a tethered process, and wait until nothing of it is left."""
    assert process.stdin is not None
    process.stdin.close()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            process.wait(1)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue  # impatience does not make it faster: it kills what does not end


def log_path(settings: Settings) -> Path:
    return settings.home / "dagster.log"


def choose_port(port: int | None) -> int:
    """The port asked for; else 3000, or one that is free."""
    if port is None:
        return ports.choose(PORT)
    if not ports.is_free(port):
        raise InvalidInput(f"--port: another program listens on {port}; choose a free one")
    return port


@contextmanager
def only_one(home: Path) -> Iterator[IO[str]]:
    """Two daemons on one Dagster storage would do everything twice."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with (home / "dagster.lock").open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                # The last one may be stopping still.
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise InvalidInput(
                        f"`apex demo` runs already for {home}: see {lock.read()}"
                    ) from error
                time.sleep(0.25)
        lock.truncate(0)
        yield lock
