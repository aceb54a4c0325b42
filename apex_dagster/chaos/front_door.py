"""Where the load hands in its documents: worker processes that use the code directly."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from apex_dagster.chaos.callers import Callers
from apex_dagster.chaos.offers import Offer
from apex_dagster.chaos.processes import Child, Victim

_BATCH_DOCUMENTS_MAX = 25  # as APEX_BATCH_DOCUMENTS
_OPENED_WITHIN_S = 10.0  # then the caller tries again elsewhere
_AGAIN_AFTER_S = 0.5  # a worker that ended, or gave up because a store is down


class FrontDoor(Protocol):
    """Takes documents, keeps their callers informed, and has processes that can be disturbed."""

    @property
    def victims(self) -> Mapping[str, Victim]:
        """Its processes by name."""
        ...

    def open(self) -> None:
        """Start taking documents."""
        ...

    def submit(self, offer: Offer) -> None:
        """Take one more; never waits. Sent again and again until it was opened."""
        ...

    @property
    def unfinished(self) -> int:
        """How many submissions have neither been answered for good nor been let go."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Workers:
    """Worker processes that each take a batch of what waits, as fast as they can."""

    def __init__(self, count: int, callers: Callers, *, log_dir: Path) -> None:
        self._queue = _Waiting()
        self._slots = [
            _Slot(f"worker-{number}", self._queue, callers, log_dir=log_dir)
            for number in range(1, count + 1)
        ]

    @property
    def victims(self) -> Mapping[str, Victim]:
        return {slot.child.name: slot.child for slot in self._slots}

    def open(self) -> None:
        for slot in self._slots:
            slot.open()
        for slot in self._slots:
            slot.child.start()  # returns when it is in service

    def submit(self, offer: Offer) -> None:
        self._queue.put([offer])

    @property
    def unfinished(self) -> int:
        return len(self._queue) + sum(len(slot.batch) for slot in self._slots)

    def close(self) -> None:
        for slot in self._slots:
            slot.close()


class _Waiting:
    """Offers in the order in which they came; those to be sent again go first."""

    def __init__(self) -> None:
        self._offers: deque[Offer] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._offers)

    def put(self, offers: Sequence[Offer]) -> None:
        with self._changed:
            self._offers.extend(offers)
            self._changed.notify()

    def put_back(self, offers: Sequence[Offer]) -> None:
        with self._changed:
            self._offers.extendleft(reversed(offers))
            self._changed.notify()

    def take(self, timeout_s: float) -> list[Offer]:
        """Up to a batch, with one offer a document; empty if nothing came."""
        with self._changed:
            if not self._offers:
                self._changed.wait(timeout_s)
            batch: dict[str, Offer] = {}
            while self._offers and len(batch) < _BATCH_DOCUMENTS_MAX:
                if self._offers[0].document.document_id in batch:
                    break
                offer = self._offers.popleft()
                batch[offer.document.document_id] = offer
        return list(batch.values())


class _Slot:
    """One worker process after another, and the thread that talks to it."""

    def __init__(self, name: str, waiting: _Waiting, callers: Callers, *, log_dir: Path) -> None:
        self.child = Child(name, ["apex_dagster.chaos.worker"], log=log_dir / f"{name}.log")
        self.batch: dict[str, Offer] = {}  # what it has been handed and has not done with
        self._waiting, self._callers = waiting, callers
        self._numbers = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def open(self) -> None:
        self.child.spawn()
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=_AGAIN_AFTER_S + 5.0)
        self.child.stop()

    def _run(self) -> None:
        while not self._closing.is_set():
            if not self.child.is_running():
                self._supervise()
                continue
            offers = self._waiting.take(timeout_s=0.2)
            if offers:
                self._hand_over(offers)

    def _supervise(self) -> None:
        """Start a process that has ended, unless a disturbance keeps it down."""
        if not self._closing.wait(_AGAIN_AFTER_S) and not self.child.held_down:
            self.child.spawn()

    def _hand_over(self, offers: Sequence[Offer]) -> None:
        self._numbers += 1
        self.batch = {offer.document.document_id: offer for offer in offers}
        documents = [
            {
                "document_id": offer.document.document_id,
                "name": offer.document.name,
                "content": offer.document.content.decode(),
            }
            for offer in offers
        ]
        self._callers.sent(offers)
        self.child.say({"batch": self._numbers, "documents": documents})
        again = self._listen()
        if again:
            self._closing.wait(_AGAIN_AFTER_S)
            self._waiting.put_back(again)
        self.batch = {}

    def _listen(self) -> list[Offer]:
        """Pass on what the worker says of its batch, until it is done with it or ends; those that
        have to be sent again, because nobody has said that they were opened."""
        unopened = list(self.batch.values())
        patience_ends = time.monotonic() + _OPENED_WITHIN_S
        while not self._closing.is_set():
            try:
                message = self.child.hear(timeout_s=0.5)
            except TimeoutError:
                if unopened and time.monotonic() > patience_ends:
                    self._waiting.put_back(unopened)  # elsewhere; it may still be opened here, too
                    unopened = []
                continue
            if message is None or "gave_up" in message:
                break
            if "turned_away" in message:
                for offer in self.batch.values():
                    self._callers.turned_away(offer, message["turned_away"], for_good=False)
                break
            [event] = message.keys() & {"opened", "ended"}
            for answer in message[event]:
                self._callers.answered(self.batch[answer["document_id"]], event, answer)
            unopened = []
            if event == "ended":
                break
        return unopened
