"""Where our jobs come from, as Dagster keeps it in each run that we make ourselves."""

import sys

from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin

# The code location's name in workspace.yaml, and in docker/workspace.yaml.
LOCATION = "apex_dagster"
MODULE = "apex_dagster.definitions"


def reconstructable_job(name: str) -> ReconstructableJob:
    """One of our jobs, loaded from its module in whatever process asks."""
    repository = ReconstructableRepository.for_module(MODULE, "defs")
    return repository.get_reconstructable_job(name)


def remote_job_origin(name: str) -> RemoteJobOrigin:
    """Without it sensors do not see a run, and the UI cannot re-execute it. Both go by the names of
    location and repository, however the location is reached."""
    location = ManagedGrpcPythonEnvCodeLocationOrigin(
        LoadableTargetOrigin(executable_path=sys.executable, module_name=MODULE), LOCATION
    )
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
