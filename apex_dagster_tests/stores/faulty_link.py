"""A TCP link to a real server that can be cut, frozen, or robbed of the replies."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType

Address = tuple[str, int]


class FaultyLink:
    """Forwards `address` to `target`. To a client, `cut` is a stopped server, `freeze` one that no
    longer runs (SIGSTOP), `lose_replies` one that does what it is told and is never heard of."""

    def __init__(self, target: Address) -> None:
        self._target = target
        self._requests_pass, self._replies_pass = threading.Event(), threading.Event()
        self.holds_bytes = threading.Event()  # of a request or a reply, since the last fault began
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = self._listen(("127.0.0.1", 0))
        self.address: Address = self._listener.getsockname()
        self._requests_pass.set()
        self._replies_pass.set()

    def cut(self) -> None:
        """Refuse new connections and reset those there are."""
        # A blocked accept() outlives close() on Linux; shutdown() wakes it.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            doomed, self._sockets = self._sockets, set()
        for each in doomed:
            _close(each)

    def freeze(self) -> None:
        """Accept connections and bytes, and pass nothing on until `restore`."""
        self.holds_bytes.clear()
        self._requests_pass.clear()
        self._replies_pass.clear()

    def lose_replies(self) -> None:
        """Pass requests on, and hold back what the server says to them."""
        self.holds_bytes.clear()
        self._replies_pass.clear()

    def restore(self) -> None:
        """End any fault; what was held back by `freeze` is delivered now: late."""
        self._requests_pass.set()
        self._replies_pass.set()
        if self._listener.fileno() < 0:
            self._listener = self._listen(self.address)

    def __enter__(self) -> FaultyLink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._requests_pass.set()
        self._replies_pass.set()
        self.cut()

    def _listen(self, address: Address) -> socket.socket:
        listener = socket.create_server(address, reuse_port=False)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._sockets |= {client, server}
            self._pump(client, server, self._requests_pass)
            self._pump(server, client, self._replies_pass)

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    if not gate.is_set():
                        self.holds_bytes.set()
                        gate.wait()
                    sink.sendall(data)
            _close(source)
            _close(sink)

        threading.Thread(target=run, daemon=True).start()


def _close(each: socket.socket) -> None:
    # close() alone leaves a recv() in another thread, and so the connection, hanging.
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
