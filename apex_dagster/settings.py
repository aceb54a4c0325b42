"""Every setting, read from APEX_* once where a process starts, and passed on as values.

`Settings()` reads the environment. Printing it, or putting it in a log, shows no secret.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_home() -> Path:
    """Where embedded servers and their data live unless APEX_HOME says otherwise.

    Beside dagster.yaml when DAGSTER_HOME is set, so that webserver, daemon and run workers, which
    may have different working directories, agree; below the working directory otherwise.
    """
    dagster_home = os.environ.get("DAGSTER_HOME")
    return (Path(dagster_home) if dagster_home else Path.cwd()) / ".apex"


class Settings(BaseSettings):
    """One frozen tree. Each field is the environment variable APEX_<FIELD> in upper case."""

    model_config = SettingsConfigDict(env_prefix="APEX_", frozen=True, extra="ignore")

    home: Path = Field(default_factory=default_home, description="Embedded servers and their data.")

    # Outside servers, store by store. What is not set here is served by an embedded server.
    neo4j_uri: str | None = Field(None, description="bolt:// or neo4j:// address of a Neo4j 5.26+.")
    neo4j_user: str = Field("neo4j", description="For an outside Neo4j.")
    neo4j_password: SecretStr | None = Field(None, description="Required with APEX_NEO4J_URI.")
    neo4j_database: str = Field("neo4j", description="For an outside Neo4j.")
    postgres_url: SecretStr | None = Field(
        None, description="postgresql:// address of a PostgreSQL with pgvector."
    )
    qdrant_url: str | None = Field(None, description="http(s):// address of a Qdrant 1.18+.")
    qdrant_api_key: SecretStr | None = Field(None, description="For an outside Qdrant.")
    redis_url: SecretStr | None = Field(None, description="redis:// address.")

    # Names inside the stores
    qdrant_collection: str = Field("apex_chunks", description="Created when it is missing.")
    redis_prefix: str = Field("", description="Put before every Redis key.")

    # The saga
    compensation: Literal["lifo", "parallel"] = Field(
        "lifo", description="Undo the stores last to first, or all at once."
    )
    staging: Literal["in_order", "at_once"] = Field(
        "in_order",
        description="Write the stores of a batch one after another, each in its own op, or all at "
        "once in the first op, which is faster; the others then report how theirs went.",
    )
    step_timeout_s: float = Field(30.0, gt=0, description="For one saga step, retries included.")
    step_attempts: int = Field(5, ge=1, description="Tries of one saga step.")
    undo_attempts: int = Field(8, ge=1, description="Tries of one undo.")
    undo_timeout_s: float = Field(60.0, gt=0, description="For one undo, retries included.")
    retry_base_s: float = Field(0.1, gt=0, description="Full-jitter back-off starts here.")
    retry_delay_s_max: float = Field(5.0, gt=0, description="Longest wait between two tries.")
    lease_s: float = Field(60.0, gt=0, description="An owner silent for so long is taken over.")
    saga_bound_s: float = Field(
        60.0, gt=0, description="A saga still open so long after its lease ran out is an error."
    )
    probe_timeout_s: float = Field(5.0, gt=0, description="For one look at a store that was down.")
    probe_delay_s: float = Field(
        1.0, gt=0, description="Longest wait before the first look; doubles with each in vain."
    )
    probe_delay_s_max: float = Field(30.0, gt=0, description="Longest wait between two looks.")
    admission_ramp_s: float = Field(
        15.0, gt=0, description="A store that is back is given all work again after so long."
    )
    takeovers_max: int = Field(
        3, ge=1, description="A saga taken over more often is undone and quarantined."
    )
    grace_s: float = Field(60.0, ge=0, description="Superseded versions stay readable so long.")
    read_timeout_s: float = Field(
        10.0, gt=0, description="For one try of a read; keep it below APEX_GRACE_S."
    )
    search_timeout_s: float = Field(
        3.0,
        gt=0,
        description="A ranker of a search that takes longer is left out; keep it below"
        " APEX_READ_TIMEOUT_S.",
    )
    cache_ttl_s: int = Field(3600, ge=1, description="Life of a cache entry in Redis.")

    # Files
    inbox: Path | None = Field(None, description="Files are dropped here; default APEX_HOME/inbox.")
    batch_documents: int = Field(25, ge=1, le=1000, description="Files to a run.")
    file_attempts: int = Field(
        5,
        ge=1,
        description="Runs that a file gets which take nothing in, before it is quarantined.",
    )
    document_attempts: int = Field(
        5,
        ge=1,
        description="Sagas that a file's document gets in all, while they fail for passing causes.",
    )
    document_retry_s: float = Field(
        15.0, gt=0, description="Wait before its second saga; doubles with each after that."
    )
    document_retry_s_max: float = Field(3600.0, gt=0, description="Longest wait between two sagas.")

    # HTTP
    api_host: str = Field(
        "127.0.0.1",
        description="Where `apex api` listens. Other than loopback addresses need API keys.",
    )
    api_port: int = Field(8000, ge=1, le=65535, description="Port of `apex api`.")
    api_keys: bool | None = Field(
        None,
        description="Ask every request for a key of `apex key create`. Default: unless the address"
        " is a loopback one. Without keys, whoever reaches that can write.",
    )
    api_keys_cache_s: float = Field(
        5.0, gt=0, le=300, description="A key that was revoked is refused so much later at most."
    )
    api_rate: str = Field(
        "2000/second",
        description="Requests that a client may send, to each API process; as `100/minute`.",
    )
    api_body_bytes_max: int = Field(
        16 * 1024 * 1024, ge=1024, description="A larger request, or line of a batch, is refused."
    )
    api_batch_documents_max: int = Field(
        10_000, ge=1, description="Lines to a batch request; the rest is refused."
    )
    pending_max: int = Field(
        2000, ge=1, description="While so many documents wait to be driven, no more are taken."
    )
    publish_wait_s: float = Field(
        2.0, ge=0, description="A request waits so long for a live version to be published as well."
    )
    answer_wait_s: float = Field(
        120.0, gt=0, description="A saga that takes longer is answered with 503; it goes on."
    )
    idempotency_keep_s: float = Field(
        7 * 86400.0, gt=0, description="Idempotency keys and their answers are kept so long."
    )

    # Alerts
    alert_window_s: float = Field(
        300.0,
        gt=0,
        description="Rates and percentiles are of the sagas opened so long ago at most.",
    )
    alert_repeat_s: float = Field(
        4 * 3600.0, gt=0, description="What goes on firing is told again after so long."
    )
    alert_webhook_url: SecretStr | None = Field(
        None, description="Alerts are posted there as JSON."
    )
    alert_slack_url: SecretStr | None = Field(
        None, description="Alerts are posted there as messages in Slack's format."
    )

    # How runs are executed
    workers: int = Field(
        2, ge=0, le=64, description="Warm processes that execute runs; 0: none, see the next one."
    )
    isolate_runs: bool = Field(
        False, description="Start a process for each run that is launched: seconds instead of 0.1."
    )
    worker_runs_max: int = Field(1000, ge=1, description="A worker is replaced after so many runs.")
    worker_memory_mb_max: int = Field(
        2048, ge=256, description="A worker that is larger after a run is replaced."
    )
    dispatch_documents: int = Field(
        64, ge=1, le=1000, description="Documents of the API to a run; fewer when fewer wait."
    )
    pool_socket: Path | None = Field(
        None, description="Where the warm workers are reached; default APEX_HOME/pool/socket."
    )

    # Extraction
    spacy_model: str = Field("en_core_web_sm", description="An installed pipeline, or a folder.")
    embedding_dim: int = Field(384, ge=1, le=4000, description="Floats in one embedding.")
    chunk_tokens: int = Field(200, ge=16, le=256, description="The model reads 256 tokens at most.")
    document_bytes_max: int = Field(
        32 * 1024 * 1024, ge=1, description="A larger file is rejected."
    )
    chunks_max: int = Field(10_000, ge=1, description="A document of more chunks is rejected.")
    text_chars_min: int = Field(8, ge=0, description="Less readable text than this is a rejection.")

    @property
    def inbox_dir(self) -> Path:
        """The inbox in force."""
        return self.inbox or self.home / "inbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the four stores are and how to log in, whether embedded or outside.

    An address is empty where a store was not asked for and has never been started.
    """

    neo4j_uri: str
    neo4j_user: str
    neo4j_password: SecretStr
    neo4j_database: str = "neo4j"
    postgres_url: SecretStr
    qdrant_url: str
    qdrant_api_key: SecretStr | None
    redis_url: SecretStr

    def postgres_database(self, database: str) -> SecretStr:
        """The address of another database of the same PostgreSQL."""
        parts = urlsplit(self.postgres_url.get_secret_value())
        return SecretStr(urlunsplit(parts._replace(path=f"/{database}")))
