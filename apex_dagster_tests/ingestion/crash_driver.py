"""Ingests or deletes one document, to be killed on the way: `python -m ... DOCUMENT_ID EDITION`,
where edition 0 is its deletion.

APEX_TEST_ENDPOINTS holds the servers as JSON; settings and failpoints come from the environment.
"""

from __future__ import annotations

import json
import os
import sys

from pydantic import SecretStr

from apex_dagster.composition import Application, build
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.documents import submission


def main() -> None:
    document_id, edition = sys.argv[1], int(sys.argv[2])
    app = build_from_environment()
    one = submission(document_id, edition=edition) if edition else Submission.deletion(document_id)
    app.ingestion.ingest([one], owner="victim")


def build_from_environment() -> Application:
    """The application over the servers in APEX_TEST_ENDPOINTS."""
    values = json.loads(os.environ["APEX_TEST_ENDPOINTS"])
    secret = {"neo4j_password", "postgres_url", "qdrant_api_key", "redis_url"}
    endpoints = Endpoints(**{k: SecretStr(v) if k in secret else v for k, v in values.items()})
    return build(Settings(), endpoints)


if __name__ == "__main__":
    main()
