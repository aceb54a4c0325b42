"""Document → Extraction, offline."""

from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.extraction.extract import Extractor
from apex_dagster.extraction.split import split_documents

__all__ = ["Extractor", "content_hash", "split_documents"]
