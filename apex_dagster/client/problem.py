"""Errors of the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apex_dagster.errors import ApexError


class ApiUnreachable(ApexError):
    """No answer; `__cause__` says why. What was sent may have been taken in: send it again with the
    same idempotency key."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url} gave no answer: {reason}")


class ApiProblem(ApexError):
    """The API refused, or the document could not be taken in.

    `details` are the problem details of the answer; `retry_after_s` is when to send it again, where
    that is worth while.
    """

    def __init__(self, details: Mapping[str, Any], retry_after_s: int | None) -> None:
        super().__init__(f"{details['status']} {details['detail']}")
        self.details, self.retry_after_s = details, retry_after_s
        self.status: int = details["status"]
        self.name: str = str(details["type"]).rpartition(":")[2]  # "compensated", "queue-full", …
