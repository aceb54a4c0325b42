"""A real `dagster dev`: webserver, daemon and code server, asked by GraphQL as its UI does."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import dagster as dg
import psutil
import pytest

from apex_dagster.cli.dagster_dev import DIRECT, DagsterDev, dagster_dev
from apex_dagster.embedded import ports
from apex_dagster.embedded.dagster_home import dagster_home
from apex_dagster.settings import Settings

WAIT_S = 600.0  # seconds on an idle machine; on a busy one starting a run alone takes half a minute

LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message } } }
"""
TERMINATE = """
mutation ($run_id: String!, $policy: TerminateRunPolicy) {
    terminateRun(runId: $run_id, terminatePolicy: $policy) { __typename
        ... on TerminateRunFailure { message } ... on PythonError { message } } }
"""
RUN = """
query ($run_id: ID!) { runOrError(runId: $run_id) { ... on Run { status parentRunId
    tags { key value }
    eventConnection { events { __typename ... on MessageEvent { message } } } } } }
"""


class Dagster:
    """Started by `start`, ended by `stop`, and started again on the same storage."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        self._settings, self._environment = settings, environment
        self._stack, self._dev = ExitStack(), None

    def start(self) -> None:
        """Return when the code location has loaded."""
        with self._its_environment():
            self._dev = self._stack.enter_context(dagster_dev(self._settings, ports.choose(None)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("apex_dagster.cli.dagster_dev.READY_TIMEOUT_S", WAIT_S)
            self.dev.wait_ready(lambda state: None)

    def stop(self) -> None:
        """Also when it has ended by itself."""
        self._stack.close()
        self._dev = None

    @property
    def dev(self) -> DagsterDev:
        assert self._dev is not None, "it is not started"
        return self._dev

    def launch(self, job: str, run_config: Any, tags: Mapping[str, str] | None = None) -> str:
        """The new run's id; it is queued."""
        params = {
            "selector": {
                "repositoryLocationName": "apex_dagster",
                "repositoryName": "__repository__",
                "jobName": job,
            },
            "runConfigData": run_config,
            "executionMetadata": {
                "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]
            },
        }
        answer = self.ask(LAUNCH, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def terminate(self, run_id: str, *, immediately: bool = False) -> None:
        """The UI's button; with `immediately` its box "force termination" is ticked."""
        policy = "MARK_AS_CANCELED_IMMEDIATELY" if immediately else "SAFE_TERMINATE"
        answer = self.ask(TERMINATE, run_id=run_id, policy=policy)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def mark_as_cancelled(self, run_id: str) -> None:
        """What that box does when the run's process is out of reach, and all that it does then."""
        with self._its_environment():
            instance = dg.DagsterInstance.from_config(str(dagster_home(self._settings)))
        with instance:
            instance.report_run_canceled(instance.get_run_by_id(run_id))

    def run(self, run_id: str) -> tuple[str, dict[str, str], list[str]]:
        """A run's status, its tags and the messages of its events."""
        run = self.ask(RUN, run_id=run_id)["runOrError"]
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        events = run["eventConnection"]["events"]
        return run["status"], tags, [event.get("message") or "" for event in events]

    def parent_of(self, run_id: str) -> str | None:
        """The run that it was made by, where that is more than a tag."""
        parent: str | None = self.ask(RUN, run_id=run_id)["runOrError"]["parentRunId"]
        return parent

    def process_of(self, run_id: str) -> psutil.Process:
        """The process that executes the run's steps, whatever launcher started it."""
        found: list[str] = []

        def named() -> bool:  # a moment later, as a worker writes minor events in batches
            messages = "\n".join(self.run(run_id)[2])
            found[:] = re.findall(r"Executing steps in process \(pid: (\d+)\)", messages)
            return bool(found)

        wait_until(f"run {run_id} names its process", named)
        return psutil.Process(int(found[0]))

    def daemon(self) -> psutil.Process:
        """The daemon of this `dagster dev`."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # or a killed one that nobody has waited for yet
                if process.cmdline()[1:4] == ["-m", "dagster._daemon", "run"]:
                    return process
        raise AssertionError("it has no daemon")

    @contextmanager
    def _its_environment(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            yield

    def ask(self, query: str, **variables: Any) -> Any:
        """The answer's data. Raises AssertionError for a query that the server does not take."""
        request = urllib.request.Request(
            f"{self.dev.url}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with DIRECT.open(request, timeout=120) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


def wait_until(what: str, holds: Callable[[], bool], *, timeout_s: float = WAIT_S) -> None:
    """Return once `holds()`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
