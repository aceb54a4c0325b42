"""Runs `ingest_documents` on one file, to be cancelled on the way: `python -m ... RUN_ID FILE`.

DAGSTER_HOME, settings and failpoints come from the environment.
"""

from __future__ import annotations

import sys

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run
from dagster._utils.interrupts import capture_interrupts


def main() -> None:
    run_id, path = sys.argv[1:]
    repository = ReconstructableRepository.for_module("apex_dagster.definitions", "defs")
    job = repository.get_reconstructable_job("ingest_documents")
    with capture_interrupts(), dg.DagsterInstance.get() as instance:  # as a run worker does
        run = instance.create_run_for_job(
            job.get_definition(),
            run_id=run_id,
            run_config={"ops": {"extract": {"config": {"paths": [path]}}}},
            job_code_origin=job.get_python_origin(),
        )
        execute_run(job, run, instance)


if __name__ == "__main__":
    main()
