"""The run launcher: hands runs to warm workers, or starts a process for each where there are none.

In dagster.yaml:

    run_launcher:
      module: apex_dagster.defs.instance.launcher
      class: WarmRunLauncher
"""

from collections.abc import Mapping
from typing import Any

import structlog
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.dagster_run import DagsterRun
from dagster._serdes import ConfigurableClassData

from apex_dagster.defs.instance.pool_protocol import (
    POOL_TAG,
    NoAnswer,
    PoolIsDown,
    ask,
    socket_path,
)
from apex_dagster.settings import Settings

log = structlog.get_logger(__name__)

# On a run that is to have a process of its own.
ISOLATED_TAG = "apex/isolated"


class WarmRunLauncher(DefaultRunLauncher):
    """Gives a run to the pool of warm workers: 0.1 s instead of the seconds that an interpreter
    and its imports take.

    Where no pool is up, or it takes no more, runs are launched as without it. So are all runs with
    APEX_ISOLATE_RUNS=true, and those tagged `apex/isolated: true`.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        settings = Settings()
        self._socket, self._isolate = socket_path(settings), settings.isolate_runs

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "WarmRunLauncher":
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        if self._isolate or run.tags.get(ISOLATED_TAG, "").lower() == "true":
            self._launch_isolated(context)
            return
        try:
            answer = ask(self._socket, "launch", run_id=run.run_id)
        except PoolIsDown:
            answer = {"ok": False, "reason": "no pool is up"}
        # NoAnswer is the caller's: the pool may have the run, and a second launch would be worse.
        if not answer["ok"]:
            log.info("run_isolated", run_id=run.run_id, reason=answer["reason"])
            self._launch_isolated(context)

    def _launch_isolated(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        if run.tags.get(POOL_TAG):
            # Inherited from the run that this one repeats: that pool does not have this one.
            self._instance.add_run_tags(run.run_id, {POOL_TAG: ""})
        super().launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """Interrupt the worker that has the run; the run's own process undoes its sagas."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        if not run.tags.get(POOL_TAG):
            return bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        self._instance.report_run_canceling(run)
        try:
            answer = ask(self._socket, "terminate", run_id=run_id)
        except (PoolIsDown, NoAnswer) as error:
            answer = {"ok": False, "reason": f"the pool of workers gives no answer: {error}"}
        if not answer["ok"]:
            self._instance.report_engine_event(answer["reason"], run, cls=type(self))
        return bool(answer["ok"])

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether some process has the run. Run monitoring marks it as failed when none has."""
        if not run.tags.get(POOL_TAG):
            # In a process of its own, which its code server watches: nobody else can.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            answer = ask(self._socket, "find", run_id=run.run_id)
        except PoolIsDown:
            return CheckRunHealthResult(WorkerStatus.FAILED, "the pool and its workers have ended")
        except NoAnswer as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"not known: {error}")
        if answer["ok"]:
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=answer.get("pid"))
        return CheckRunHealthResult(WorkerStatus.FAILED, "no worker has it")
