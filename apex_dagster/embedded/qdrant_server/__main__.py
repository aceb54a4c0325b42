"""Runs the gateway until it is told to stop: `python -m apex_dagster.embedded.qdrant_server`.

SIGTERM and SIGINT finish the requests in flight, flush and close; SIGKILL loses nothing that was
acknowledged. Exit status: 0 stopped; anything else could not start, and stderr says why.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

import structlog
import uvicorn

from apex_dagster.embedded.qdrant_server.app import create_app
from apex_dagster.embedded.qdrant_server.collections import Collections, DataFolderBusy
from apex_dagster.embedded.qdrant_server.gateway import Limits

# Longer than httpx keeps an idle connection (5 s), or a client now and then sends a request into
# a connection that is just being closed.
KEEP_ALIVE_S = 75
GRACE_S = 10


def main() -> None:
    arguments = _arguments()
    _log_to_stderr()
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again after its own shutdown; this makes that exit status 0
        signal.signal(number, _exit)
    collections = Collections(arguments.data)
    try:
        api_key = _read_key(arguments.api_key_file)
        collections.open()
    except (OSError, ValueError, DataFolderBusy) as error:
        sys.exit(f"The Qdrant gateway cannot start: {error}")
    limits = Limits(
        request_bytes_max=int(arguments.request_mib_max * 1024 * 1024),
        flush_s=arguments.flush_s,
        idle_s=arguments.idle_s,
    )
    app = create_app(collections, api_key=api_key, identity=arguments.identity, limits=limits)
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qdrant_server", description=__doc__)
    parser.add_argument("--host", type=_loopback, default="127.0.0.1", help="loopback only")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the collections")
    parser.add_argument("--api-key-file", type=Path, required=True, help="holds the key, stripped")
    parser.add_argument("--identity", default="", help="shown by GET /; tells gateways apart")
    parser.add_argument("--request-mib-max", type=float, default=32, help="larger ones get a 413")
    parser.add_argument("--flush-s", type=float, default=5.0, help="seconds between flushes")
    parser.add_argument("--idle-s", type=float, default=30.0, help="quiet before vacuuming")
    return parser.parse_args()


def _loopback(host: str) -> str:
    """The gateway has one key and no TLS, so other machines have no business with it."""
    if host == "localhost" or ipaddress.ip_address(host).is_loopback:
        return host
    raise argparse.ArgumentTypeError(f"{host} is not a loopback address; use 127.0.0.1")


def _read_key(path: Path) -> str:
    key = path.read_text(encoding="utf-8").strip()
    if not key:
        raise ValueError(f"{path} is empty; it has to hold the API key")
    return key


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
