"""The API and the warm workers as processes of their own, as a user starts them."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from apex_dagster.embedded import ports
from apex_dagster.embedded.dagster_home import dagster_home, environment
from apex_dagster.errors import ServerNotStarted
from apex_dagster.settings import Settings

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
_APEX = (sys.executable, "-m", "apex_dagster.cli.main")
# Never by way of a proxy that the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where it answers, and the processes it is made of."""

    url: str
    api: subprocess.Popen[bytes]
    workers: subprocess.Popen[bytes]

    def worker_processes(self) -> list[psutil.Process]:
        """The warm workers: the youngest generation, whoever stands between us and them."""
        below = psutil.Process(self.workers.pid).children(recursive=True)
        return [process for process in below if "instance.worker" in " ".join(process.cmdline())]

    def memory_mb(self) -> dict[str, float]:
        """Resident memory of API and workers, children included."""
        return {
            name: sum(_resident(p) for p in [root, *root.children(recursive=True)]) / 2**20
            for name, root in (
                ("api", psutil.Process(self.api.pid)),
                ("workers", psutil.Process(self.workers.pid)),
            )
        }


@contextmanager
def service(settings: Settings, log_folder: Path) -> Iterator[Service]:
    """Both, for the length of the block. Raises ServerNotStarted when the API does not come up."""
    port = ports.choose(8000)
    with ExitStack() as stack:
        command = [*_APEX, "worker"]
        workers = stack.enter_context(_process(settings, command, log_folder / "worker.log"))
        command = [*_APEX, "api", "--port", str(port)]
        api = stack.enter_context(_process(settings, command, log_folder / "api.log"))
        running = Service(url=f"http://{ports.LOOPBACK}:{port}", api=api, workers=workers)
        _wait_ready(running, log_folder / "api.log")
        yield running


@contextmanager
def daemon(settings: Settings, log_folder: Path) -> Iterator[Path]:
    """Dagster's daemon, whose sensors take in files and finish what dead owners left; its log."""
    command = [sys.executable, "-m", "dagster._daemon", "run", "--workspace", "workspace.yaml"]
    log = log_folder / "daemon.log"
    with _process(settings, command, log):
        yield log


@contextmanager
def _process(
    settings: Settings, command: list[str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that ends with us, in whatever way we end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex_dagster.cli.tether", *command],
            cwd=dagster_home(settings),
            env=environment(settings),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(STOP_TIMEOUT_S)


def _wait_ready(running: Service, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and running.api.poll() is None:
        try:
            with DIRECT.open(f"{running.url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise ServerNotStarted("api", "it is not ready", log.read_text(errors="replace")[-2000:])


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
