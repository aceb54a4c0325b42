"""Loopback ports for servers that keep theirs from one start to the next."""

import secrets
import socket

LOOPBACK = "127.0.0.1"

# Below the range from which Linux and macOS take ports for outgoing connections: a server that is
# down for a moment would otherwise lose its port to some client's connection.
PORT_MIN, PORT_MAX = 15_000, 32_000


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(remembered: int | None) -> int:
    """The remembered port if it is free, else another one that is."""
    if remembered is not None and is_free(remembered):
        return remembered
    while True:
        port = PORT_MIN + secrets.randbelow(PORT_MAX - PORT_MIN)
        if is_free(port):
            return port
