"""Documents with fingerprints that tell editions apart in every store."""

from __future__ import annotations

from collections.abc import Mapping

from apex_dagster.chaos.fingerprints import expected, seen
from apex_dagster.extraction.embed import MiniLmEmbedder
from apex_dagster.extraction.extract import Extractor
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.records import Extraction
from apex_dagster_tests.documents import DIM, submission

__all__ = ["edition", "extracted", "seen", "submitted"]


def edition(document_id: str, number: int, *, shared: str) -> Submission:
    """An edition that differs from the others in every store, with entities beginning with `shared`
    that other documents and editions mention as well."""
    names = [f"{shared} {which % 5}" for which in (number, number + 1)]
    own = f"{document_id} {number % 3}"
    return submission(
        document_id,
        edition=number,
        chunks=1 + number % 4,
        entities=[{"name": name, "type": "place"} for name in (*names, own)],
        relations=[{"source": own, "target": name, "type": f"EDITION_{number}"} for name in names],
        embedding_model=MiniLmEmbedder.model,  # so that searches compare with them
    )


def submitted(submission: Submission) -> Mapping[str, str]:
    """What the stores have to show once it is live."""
    return expected(extracted(submission))


def extracted(submission: Submission) -> Extraction:
    return Extractor.default(embedding_dim=DIM).extract(submission.document)
