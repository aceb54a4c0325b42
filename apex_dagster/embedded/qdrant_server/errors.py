"""What the gateway answers when it cannot do what was asked, in Qdrant's words and status codes.

GatewayError
├── BadInput            400  malformed, of another type, of the wrong dimension
├── NotFound            404  no such collection, no such point
├── AlreadyExists       409  a collection of that name
├── TooLarge            413  over the request limit
├── Unprocessable       422  well-formed but outside the allowed values
├── EngineFailed        500  the engine failed, or a collection could not be opened
└── NotSupported        501  Qdrant can do this, the gateway cannot
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class GatewayError(Exception):
    """An answer other than 200; the text goes to the client."""

    status = 500


class BadInput(GatewayError):
    status = 400


class NotFound(GatewayError):
    status = 404

    def __init__(self, what: str) -> None:
        super().__init__(f"Not found: {what}")


class AlreadyExists(GatewayError):
    status = 409


class TooLarge(GatewayError):
    status = 413


class Unprocessable(GatewayError):
    status = 422


class EngineFailed(GatewayError):
    status = 500

    def __init__(self, detail: str) -> None:
        super().__init__(f"Service internal error: {detail}")


class NotSupported(GatewayError):
    status = 501

    def __init__(self, what: str) -> None:
        super().__init__(
            f"Not supported by the embedded Qdrant gateway: {what}. "
            "Point APEX_QDRANT_URL at a Qdrant server to use it."
        )


@contextmanager
def engine_values() -> Iterator[None]:
    """Turn what the engine's constructors raise on a value they cannot hold into BadInput."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"Format error in JSON body: {error}") from error


@contextmanager
def engine_calls() -> Iterator[None]:
    """Turn what the engine raises into the answer a Qdrant server would give."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"Wrong input: {error}") from error
    except BaseException as error:
        # A Rust panic arrives as pyo3's PanicException, a BaseException that cannot be imported.
        if type(error).__name__ == "PanicException":
            raise EngineFailed(f"the engine panicked: {error}") from error
        if type(error) is Exception:
            raise _answer(str(error)) from error
        raise


def _answer(text: str) -> GatewayError:
    """The engine raises a bare Exception for everything; only its text tells them apart."""
    if text.startswith("No point with id"):
        return NotFound(f"{text} found")
    if text.startswith(("Service runtime error", "Inconsistent storage", "Out of memory")):
        return EngineFailed(text)
    return BadInput(f"Wrong input: {text}")
