"""The HTTP API as Python: `Client`. Needs nothing of the rest of the project but its errors.

with Client("http://127.0.0.1:8000", key="apex_…") as client:
    ingested = client.ingest_file(Path("report.pdf"), collection="reports")
    for move in client.follow(ingested["saga_id"]): ...
    document = client.document(ingested["document_id"])
"""

from apex_dagster.client.answers import (
    DocumentHeading,
    Ingested,
    LiveDocument,
    SagaMove,
    SagaStory,
    SagaSummary,
)
from apex_dagster.client.client import Client
from apex_dagster.client.problem import ApiProblem, ApiUnreachable

__all__ = [
    "ApiProblem",
    "ApiUnreachable",
    "Client",
    "DocumentHeading",
    "Ingested",
    "LiveDocument",
    "SagaMove",
    "SagaStory",
    "SagaSummary",
]
