"""One resource for each store, and one that drives sagas over all four.

Each is configured by environment variables; what is not set is served by the embedded servers.
Clients live in the process, not in the run: a resource is built anew for every run, the clients
behind it are not.
"""

import os
from functools import lru_cache
from pathlib import Path

import dagster as dg
from pydantic import Field, SecretStr

from apex_dagster.composition import Application, application
from apex_dagster.settings import Settings

_DEFAULT = "Default: the embedded server."


class Neo4jResource(dg.ConfigurableResource[None]):
    """Entities and relations."""

    uri: str | None = Field(None, description=f"bolt:// or neo4j:// address. {_DEFAULT}")
    user: str = Field("neo4j")
    password: str | None = Field(None)
    database: str = Field("neo4j")

    def settings(self) -> dict[str, object]:
        """The settings that this resource stands for."""
        return {
            "neo4j_uri": self.uri,
            "neo4j_user": self.user,
            "neo4j_password": _secret(self.password),
            "neo4j_database": self.database,
        }


class PostgresResource(dg.ConfigurableResource[None]):
    """Metadata, full text, document embeddings, and the ledger."""

    url: str | None = Field(None, description=f"postgresql:// address. {_DEFAULT}")

    def settings(self) -> dict[str, object]:
        """The settings that this resource stands for."""
        return {"postgres_url": _secret(self.url)}


class QdrantResource(dg.ConfigurableResource[None]):
    """Chunk vectors."""

    url: str | None = Field(None, description=f"http(s):// address. {_DEFAULT}")
    api_key: str | None = Field(None)

    def settings(self) -> dict[str, object]:
        """The settings that this resource stands for."""
        return {"qdrant_url": self.url, "qdrant_api_key": _secret(self.api_key)}


class RedisResource(dg.ConfigurableResource[None]):
    """The cache."""

    url: str | None = Field(None, description=f"redis:// address. {_DEFAULT}")

    def settings(self) -> dict[str, object]:
        """The settings that this resource stands for."""
        return {"redis_url": _secret(self.url)}


class SagasResource(dg.ConfigurableResource[None]):
    """Drives sagas over the four stores. Needs all of them in every op: a re-executed op first
    stages what is missing in the stores before its own."""

    neo4j: Neo4jResource
    postgres: PostgresResource
    qdrant: QdrantResource
    redis: RedisResource

    def application(self) -> Application:
        """The process's application for these stores; the first call starts and migrates."""
        stores = (self.neo4j, self.postgres, self.qdrant, self.redis)
        stated = {name: value for store in stores for name, value in store.settings().items()}
        update = {name: value for name, value in stated.items() if value is not None}
        return application(_settings(_environment()).model_copy(update=update))


def resources_from_environment() -> dict[str, object]:
    """The resources of the code location, by the names that ops ask for."""
    neo4j = Neo4jResource(
        uri=_variable("APEX_NEO4J_URI"),
        user=_variable("APEX_NEO4J_USER") or "neo4j",
        password=_variable("APEX_NEO4J_PASSWORD"),
        database=_variable("APEX_NEO4J_DATABASE") or "neo4j",
    )
    postgres = PostgresResource(url=_variable("APEX_POSTGRES_URL"))
    qdrant = QdrantResource(
        url=_variable("APEX_QDRANT_URL"), api_key=_variable("APEX_QDRANT_API_KEY")
    )
    redis = RedisResource(url=_variable("APEX_REDIS_URL"))
    sagas = SagasResource(neo4j=neo4j, postgres=postgres, qdrant=qdrant, redis=redis)
    return {"neo4j": neo4j, "postgres": postgres, "qdrant": qdrant, "redis": redis, "sagas": sagas}


@lru_cache(maxsize=4)
def _settings(environment: frozenset[tuple[str, str]]) -> Settings:
    """Read once for each environment: every op of a run asks several times, and reading took a
    sixth of the processor time of a run of one document."""
    return Settings()


def _environment() -> frozenset[tuple[str, str]]:
    """All that settings depend on: variables, and the working directory."""
    variables = {
        (name, value) for name, value in os.environ.items() if name.upper().startswith("APEX_")
    }
    place = ("DAGSTER_HOME", os.environ.get("DAGSTER_HOME", ""))
    return frozenset(variables | {place, ("", str(Path.cwd()))})


def _variable(name: str) -> str | None:
    """An EnvVar, so that the UI shows the variable's name and never its value; None when unset,
    as an EnvVar that is unset fails every run."""
    return dg.EnvVar(name) if os.environ.get(name) else None


def _secret(value: str | None) -> SecretStr | None:
    return SecretStr(value) if value is not None else None
