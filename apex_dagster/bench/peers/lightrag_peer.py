"""LightRAG beside us: its own environment, our documents, our servers.

Its dependencies contradict ours, so it is installed apart, from requirements/peers.txt.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from apex_dagster.errors import ApexError, InvalidInput
from apex_dagster.extraction.as_sent import as_sent
from apex_dagster.records import Extraction
from apex_dagster.settings import Endpoints

TIMEOUT_S = 1800
INSTALL_TIMEOUT_S = 900
HASHED = ("--require-hashes", "-r")


def measure(folder: Path, servers: Endpoints, documents: Sequence[Extraction]) -> dict[str, Any]:
    """Write the documents through `ainsert_custom_kg`, several at once as it allows.

    Returns documents, seconds, documents_per_s, p50_s, p90_s. Raises ApexError when it fails, and
    InvalidInput where it cannot be installed.
    """
    python = _environment(folder)
    lines, work = folder / "documents.jsonl", folder / f"work-{secrets.token_hex(4)}"
    work.mkdir()
    lines.write_bytes(b"\n".join(_line(document) for document in documents))
    with as_file(files("apex_dagster.bench.peers") / "lightrag_writer.py") as script:
        ended = subprocess.run(
            [str(python), str(script), str(lines), str(work)],
            env={**os.environ, **_variables(servers, work.name)},
            cwd=work,
            capture_output=True,
            timeout=TIMEOUT_S,
        )
    if ended.returncode != 0:
        raise ApexError(f"LightRAG failed: {ended.stderr.decode(errors='replace')[-2000:]}")
    result = orjson.loads(ended.stdout.splitlines()[-1])
    p50_s, p90_s = np.percentile(result.pop("latencies_s"), (50, 90)).tolist()
    rate = result["documents"] / result["seconds"]
    return {**result, "documents_per_s": rate, "p50_s": p50_s, "p90_s": p90_s}


def _environment(folder: Path) -> Path:
    """The interpreter of its environment in `folder`, made on first use."""
    python = folder / "venv" / "bin" / "python"
    if python.exists():
        return python
    requirements = Path("requirements/peers.txt")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None or not requirements.exists():
        raise InvalidInput("--peer: needs uv and requirements/peers.txt; run it in a checkout")
    folder.mkdir(parents=True, exist_ok=True)
    for command in (
        ["venv", "--quiet", "--python", sys.executable, str(folder / "venv")],
        ["pip", "install", "--quiet", "--python", str(python), *HASHED, str(requirements)],
    ):
        try:
            subprocess.run([uv, *command], check=True, timeout=INSTALL_TIMEOUT_S)
        except subprocess.SubprocessError as error:
            shutil.rmtree(folder / "venv", ignore_errors=True)
            raise InvalidInput(f"--peer: it cannot be installed: {error}") from error
    return python


def _line(document: Extraction) -> bytes:
    members = as_sent(document)
    vectors = members.pop("embeddings")
    members["chunks"] = [
        {"text": text, "embedding": vector}
        for text, vector in zip(members["chunks"], vectors, strict=True)
    ]
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)


def _variables(servers: Endpoints, workspace: str) -> dict[str, str]:
    """What LightRAG reads."""
    postgres = urlsplit(servers.postgres_url.get_secret_value())
    key = servers.qdrant_api_key
    return {
        "APEX_PEER_WORKSPACE": workspace,
        "NEO4J_URI": servers.neo4j_uri,
        "NEO4J_USERNAME": servers.neo4j_user,
        "NEO4J_PASSWORD": servers.neo4j_password.get_secret_value(),
        "NEO4J_DATABASE": servers.neo4j_database,
        "QDRANT_URL": servers.qdrant_url,
        "QDRANT_API_KEY": key.get_secret_value() if key else "",
        "REDIS_URI": servers.redis_url.get_secret_value(),
        "REDIS_ALLOW_EVICTION_POLICY": "true",  # it asks for a setting that nothing here needs
        "POSTGRES_HOST": postgres.hostname or "",
        "POSTGRES_PORT": str(postgres.port or 5432),
        "POSTGRES_USER": postgres.username or "",
        "POSTGRES_PASSWORD": postgres.password or "",
        "POSTGRES_DATABASE": postgres.path.lstrip("/"),
    }
