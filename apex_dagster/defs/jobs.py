"""The two jobs. Ops run in one process: a new interpreter for each op costs seconds."""

import dagster as dg

from apex_dagster.defs.compensation import (
    close_sagas,
    neo4j_compensate,
    postgres_compensate,
    qdrant_compensate,
    redis_compensate,
)
from apex_dagster.defs.hooks import compensate_sagas
from apex_dagster.defs.ops import (
    commit,
    extract,
    neo4j_write,
    postgres_write,
    qdrant_write,
    redis_write,
)


@dg.job(executor_def=dg.in_process_executor, hooks={compensate_sagas})
def ingest_documents() -> None:
    """Ingest documents into all four stores: each one completely, or not at all."""
    commit(redis_write(qdrant_write(postgres_write(neo4j_write(extract())))))


@dg.job(executor_def=dg.in_process_executor)
def compensate_documents() -> None:
    """Undo sagas, last step first. Started by the failure hook, or by hand with saga ids."""
    close_sagas(neo4j_compensate(postgres_compensate(qdrant_compensate(redis_compensate()))))
