"""The Qdrant gateway: Qdrant's own engine behind the part of its REST API that we use."""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import ClassVar
from urllib.error import URLError

from apex_dagster.embedded.ports import LOOPBACK
from apex_dagster.embedded.process import Launch, ServerState
from apex_dagster.embedded.server import EmbeddedServer, NotReady, OnProgress, WrongServer

# Never by way of a proxy that the environment names: it would get the API key.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Qdrant(EmbeddedServer):
    """One gateway process; its password is the API key."""

    name: ClassVar[str] = "qdrant"

    def prepare(self, state: ServerState, report: OnProgress) -> Launch:
        self.data.mkdir(mode=0o700, exist_ok=True)
        self.password()
        argv = [sys.executable, "-m", "apex_dagster.embedded.qdrant_server"]
        argv += ["--host", LOOPBACK, "--port", str(state.port), "--data", str(self.data)]
        argv += ["--api-key-file", str(self.password_path), "--identity", state.identity]
        return Launch(argv=argv, cwd=self.directory)

    def probe(self, state: ServerState) -> str:
        try:
            self._get(state, "/readyz")
            answer = json.loads(self._get(state, "/"))
        except (URLError, OSError, ValueError) as error:
            raise NotReady(str(error)) from error
        if answer.get("identity") != state.identity:
            raise WrongServer(f"port {state.port} is answered by {answer.get('title')!r}, not ours")
        return str(answer["version"])

    def address(self, state: ServerState) -> str:
        return self.url(state)

    def url(self, state: ServerState) -> str:
        return f"http://{LOOPBACK}:{state.port}"

    def _get(self, state: ServerState, path: str) -> bytes:
        request = urllib.request.Request(  # noqa: S310  our own loopback address
            self.url(state) + path, headers={"api-key": self.password()}
        )
        with DIRECT.open(request, timeout=5) as response:
            content: bytes = response.read()
        return content
