"""A real gateway process for tests: started, killed, stopped and asked raw questions."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import httpx
from qdrant_client import QdrantClient

READY_S = 30.0


class GatewayProcess:
    """One gateway over one data folder; may be started again after it ended."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder, self.flags = folder, flags
        self.data, self.log_path = folder / "data", folder / "gateway.log"
        self.key = secrets.token_urlsafe(16)
        self.identity = secrets.token_hex(8)
        self.process: subprocess.Popen[bytes] | None = None
        key_file = folder / "key"
        key_file.write_text(self.key + "\n")

    def start(self) -> GatewayProcess:
        """Start on a free port and wait until this very process answers."""
        self.port = free_port()
        argv = [sys.executable, "-m", "apex_dagster.embedded.qdrant_server"]
        argv += ["--port", str(self.port), "--data", str(self.data)]
        argv += ["--api-key-file", str(self.folder / "key"), "--identity", self.identity]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen([*argv, *self.flags], stderr=log)
        deadline = time.monotonic() + READY_S
        while not self._answers():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"not ready in {READY_S} s: {self.log()}"
            time.sleep(0.02)
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> QdrantClient:
        """The unmodified client."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
            # The check runs in a thread of its own and warns when the gateway is killed meanwhile;
            # test_client.py asks the question itself.
            return QdrantClient(
                url=self.url,
                api_key=self.key,
                prefer_grpc=False,
                timeout=30,
                check_compatibility=False,
            )

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        """A raw request with the key; `body` is JSON, or bytes to send as they are."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"api-key": self.key} | options.pop("headers", {})
        url = self.url + path
        return httpx.request(method, url, content=content, headers=headers, timeout=30, **options)

    def kill(self) -> None:
        """SIGKILL: whatever it was doing stays half done."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def _answers(self) -> bool:
        try:
            about = httpx.get(self.url, timeout=5).json()
        except httpx.TransportError:
            return False
        return bool(about.get("identity") == self.identity)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
