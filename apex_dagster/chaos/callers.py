"""What callers sent and what they were told, kept by the load alone: nobody asks the ledger."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from apex_dagster.chaos.offers import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One thing a caller was told about a submission."""

    at: float  # seconds since 1970
    saga_id: str
    version: int | None  # None: not told
    arrival: int | None
    status: str


@dataclass(slots=True, kw_only=True)
class Submission:
    """One offer, from the moment it was due."""

    offer: Offer
    due: float  # seconds since 1970
    first_sent: float = math.inf
    attempts: int = 0
    unanswered: int = 0  # attempts that may have landed or may land yet
    opened: list[Answer] = field(default_factory=list)
    ended: list[Answer] = field(default_factory=list)
    refused: str | None = None  # for good, without a saga

    @property
    def completed(self) -> list[Answer]:
        """The answers that promised something for good."""
        return [answer for answer in self.ended if answer.status == "completed"]


class Callers:
    """The record, in memory and line by line in a file. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._submissions: dict[int, Submission] = {}

    def offer(self, offer: Offer) -> None:
        """A caller wants this ingested."""
        with self._lock:
            submission = Submission(offer=offer, due=time.time())
            self._submissions[offer.number] = submission
            self._write("due", offer.number, document_id=offer.document.document_id)

    def sent(self, offers: Iterable[Offer]) -> None:
        """It is about to be handed over, perhaps not for the first time."""
        with self._lock:
            for offer in offers:
                submission = self._submissions[offer.number]
                submission.first_sent = min(submission.first_sent, time.time())
                submission.attempts += 1
                submission.unanswered += 1
                self._write("sent", offer.number, attempt=submission.attempts)

    def answered(self, offer: Offer, event: str, answer: Mapping[str, Any]) -> None:
        """An answer to the attempt that was sent last: `event` is "opened" or "ended"."""
        told = Answer(
            at=time.time(),
            saga_id=answer["saga_id"],
            version=answer.get("version"),
            arrival=answer.get("arrival"),
            status=answer["status"],
        )
        with self._lock:
            submission = self._submissions[offer.number]
            if event == "opened":
                submission.opened.append(told)
                submission.unanswered -= 1
            else:
                submission.ended.append(told)
            self._write(event, offer.number, **answer)

    def turned_away(self, offer: Offer, why: str, *, for_good: bool) -> None:
        """The attempt that was sent last has opened nothing."""
        with self._lock:
            submission = self._submissions[offer.number]
            submission.unanswered -= 1
            submission.refused = why if for_good else submission.refused
            self._write("turned_away", offer.number, why=why, for_good=for_good)

    def all(self) -> list[Submission]:
        """Every submission, in the order of the offers. The load has to have ended."""
        with self._lock:
            return list(self._submissions.values())

    def close(self) -> None:
        self._file.close()

    def _write(self, event: str, number: int, **more: Any) -> None:
        line = {"at": round(time.time(), 6), "event": event, "offer": number, **more}
        self._file.write(orjson.dumps(line) + b"\n")
