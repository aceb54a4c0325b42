"""How run launchers talk to the pool of warm workers: a line of JSON each way, on a Unix socket.

The socket is private to its owner (mode 600): whoever may connect may run and cancel.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apex_dagster.settings import Settings

# On a run that the pool has taken: which pool. Its workers die with it, so a run of another pool,
# or of one that is gone, has no process any more.
POOL_TAG = "apex/pool"
ANSWER_TIMEOUT_S = 10.0  # the pool answers within milliseconds, unless PostgreSQL is slow
_LINE_BYTES_MAX = 64 * 1024
_PATH_BYTES_MAX = 100  # of a Unix socket's address, everywhere at least


class PoolIsDown(Exception):
    """Nobody listens on the socket, so no worker is alive either."""


class EndOfTalk(ValueError):
    """The other end has closed the connection."""


class NoAnswer(Exception):
    """Somebody listens, but has not answered in time."""


def socket_path(settings: Settings) -> Path:
    """Where the pool of these settings listens."""
    return settings.pool_socket or settings.home / "pool" / "socket"


def ask(path: Path, request: str, **fields: str) -> dict[str, Any]:
    """The pool's answer, "ok" and what else it says. Raises PoolIsDown or NoAnswer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            with address(path) as name:
                connection.connect(name)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise PoolIsDown(str(path)) from error
        except OSError as error:
            raise NoAnswer(f"{path}: {error}") from error
        try:
            send_line(connection, {"request": request, **fields})
            return receive_line(connection)
        except (OSError, ValueError) as error:
            raise NoAnswer(f"{path}: {error}") from error


def send_line(connection: socket.socket, message: dict[str, Any]) -> None:
    """Raises OSError when the other end is gone."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive_line(connection: socket.socket) -> dict[str, Any]:
    """Raises ValueError for what is not a line of JSON, EndOfTalk or OSError when nothing comes."""
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(4096)
        if not part and not line:
            raise EndOfTalk("nothing more comes")
        if not part or len(line) > _LINE_BYTES_MAX:
            raise ValueError(f"not a whole line: {line[:100]!r}")
        line += part
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError(f"not an object: {line[:100]!r}")
    return message


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """The socket's path in a form that is short enough, for the length of the block."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
