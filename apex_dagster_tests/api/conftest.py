"""A real API process over a ledger of the test's own, and something that drives what it opens.

api             an `apex api` process, with quick settings; `api_process` starts more, or others
refusing        the application in this very process, for what needs no store
driver          a thread that claims pending sagas and drives them, as Dagster's runs do
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from apex_dagster.api.app import create_app
from apex_dagster.composition import Application
from apex_dagster.saga.pending import claim_pending
from apex_dagster.saga.wakeup import PENDING, Listener
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.applications import QUICK

START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 120.0


@dataclass(kw_only=True)
class ApiProcess:
    """A running `apex api`."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=ANSWER_TIMEOUT_S, trust_env=False)

    def async_client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=100)
        return httpx.AsyncClient(
            base_url=self.url, timeout=ANSWER_TIMEOUT_S, trust_env=False, limits=limits
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def refusing(stack, servers_root) -> Iterator[TestClient]:
    """The application in this very process, over a ledger without a table: what it refuses, it
    must refuse without asking."""
    settings = Settings(home=servers_root)
    app = create_app(settings, stack, admit=lambda documents: None)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


StartApi = Callable[..., ApiProcess]


class Driver:
    """Claims what waits and drives it to its end, a batch at a time."""

    def __init__(self, app: Application, postgres_url: str) -> None:
        self._app, self._listener = app, Listener(postgres_url, PENDING)
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run)
        self.batches: list[int] = []
        self.runs = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()

    def drive_once(self) -> int:
        """How many sagas there were to drive."""
        ingestion, owner = self._app.ingestion, f"driver-{self.runs}"
        self.runs += 1
        with ingestion.engine.lease(owner):
            sagas = claim_pending(
                self._app.ledger, owner=owner, run_id=owner, limit=50, bytes_max=50_000_000
            )
            if sagas:
                self.batches.append(len(sagas))
                extracted = ingestion.extract(sagas)
                commit = ingestion.commit(extracted.alive, owner=owner, run_id=owner)
                failed = [saga.saga_id for saga in extracted.failed + commit.failed]
                if failed:
                    ingestion.compensation.compensate(failed, owner=owner)
        return len(sagas)

    def _run(self) -> None:
        while not self._stop.is_set():
            if not self.drive_once():
                self._listener.wait(0.2)


@pytest.fixture
def driver(app: Application, postgres_database: str) -> Iterator[Driver]:
    driver = Driver(app, postgres_database)
    driver.start()
    yield driver
    driver.stop()


@pytest.fixture
def idle_driver(app: Application, postgres_database: str) -> Iterator[Driver]:
    """One that drives only when it is told to, or started."""
    driver = Driver(app, postgres_database)
    yield driver
    driver.stop()


@pytest.fixture
def start_api(
    endpoints: Endpoints, qdrant_collection: str, redis_prefix: str, tmp_path: Path
) -> Iterator[StartApi]:
    started: list[ApiProcess] = []
    names = {"qdrant_collection": qdrant_collection, "redis_prefix": redis_prefix}
    own = {"home": tmp_path, "search_timeout_s": QUICK["search_timeout_s"]}
    own |= names | addresses(endpoints)

    def start(*options: str, **settings: object) -> ApiProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("APEX_")}
        values = own | settings
        environment |= {f"APEX_{name.upper()}": str(value) for name, value in values.items()}
        log = tmp_path / f"api-{len(started)}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "apex_dagster.cli.main", "api", "--port", "0", *options],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=tmp_path,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, log.read_text()
        url = line.split()[1]
        started.append(ApiProcess(process=process, url=url, log=log))
        return started[-1]

    yield start
    for api in started:
        if api.process.poll() is None:
            api.kill()
        assert "Traceback" not in api.log.read_text(), api.log.read_text()


def addresses(servers: Endpoints) -> dict[str, str]:
    """Where the servers are, as settings."""
    values = {each.name: getattr(servers, each.name) for each in fields(servers)}
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in values.items()
        if value is not None
    }


@pytest.fixture
def api(start_api: StartApi) -> ApiProcess:
    return start_api()


@pytest.fixture
def client(api: ApiProcess) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client
