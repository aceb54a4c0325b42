"""Waiting for sagas to end: one listener and one query for all that are waited for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import structlog

from apex_dagster.errors import ApexError
from apex_dagster.records import SagaId
from apex_dagster.saga.states import Status
from apex_dagster.saga.submissions import Ending

log = structlog.get_logger(__name__)

# Between two looks, so that sagas that end together are found together.
_GAP_S = 0.01
_POLL_S = 1.0  # a notification may be lost: it is a hint
_LISTEN_S = 1.0  # at a time, and so how long a stop may take


class Hears(Protocol):
    """What this module needs of `saga.wakeup.Listener`."""

    def wait(self, timeout_s: float) -> list[str] | None: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Waiting:
    future: asyncio.Future[Ending]
    publish_by: float | None = None  # event loop's clock; set when it was found completed


class Endings:
    """Resolves a future for each saga that is waited for, when it has ended.

    A completed one is held back for up to `publish_wait_s` until it is published as well. For one
    event loop; `look` reads the ledger, and is called from a thread.
    """

    def __init__(
        self,
        look: Callable[[Sequence[SagaId]], list[Ending]],
        listener: Hears,
        executor: Executor,
        *,
        publish_wait_s: float,
    ) -> None:
        self._look, self._listener, self._executor = look, listener, executor
        self._publish_wait_s = publish_wait_s
        self._waiting: dict[SagaId, list[_Waiting]] = {}
        self._hint = asyncio.Event()
        self._stopped = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Sagas that somebody waits for."""
        return len(self._waiting)

    def start(self) -> None:
        """Listen and look from now on. Called within the event loop."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())
        self._thread = threading.Thread(
            target=self._listen, args=(loop,), name="endings", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """Give up; whoever still waits is cancelled."""
        self._stopped.set()
        if self._task is not None:
            self._task.cancel()
        for waiting in [one for group in self._waiting.values() for one in group]:
            waiting.future.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def wait(self, saga_id: SagaId, *, look_now: bool) -> Ending:
        """How the submission of this saga ended. `look_now`: it may have ended already."""
        waiting = _Waiting(asyncio.get_running_loop().create_future())
        self._waiting.setdefault(saga_id, []).append(waiting)
        if look_now:
            self._hint.set()
        try:
            return await waiting.future
        finally:
            self._leave(saga_id, waiting)

    def _leave(self, saga_id: SagaId, waiting: _Waiting) -> None:
        group = self._waiting.get(saga_id, [])
        if waiting in group:
            group.remove(waiting)
        if not group:
            self._waiting.pop(saga_id, None)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped.is_set():
            heard = self._listener.wait(_LISTEN_S)
            if heard == []:
                continue
            try:
                loop.call_soon_threadsafe(self._hear, heard)
            except RuntimeError:  # the loop is closed
                break
        self._listener.close()

    def _hear(self, saga_ids: Sequence[str] | None) -> None:
        # A restart ends under an id of its own, so an unknown one may be that of a submission here.
        if saga_ids is None or self._waiting:
            self._hint.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hint.wait(), self._pause_s())
            self._hint.clear()
            if self._waiting:
                await self._resolve()
            await asyncio.sleep(_GAP_S)

    def _pause_s(self) -> float:
        now = asyncio.get_running_loop().time()
        deadlines = [one.publish_by for group in self._waiting.values() for one in group]
        return min([_POLL_S, *(max(0.0, d - now) for d in deadlines if d is not None)])

    async def _resolve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            asked = list(self._waiting)
            endings = await loop.run_in_executor(self._executor, self._look, asked)
        except ApexError as error:  # whoever waits has a bound of its own
            log.warning("endings_not_read", error=str(error), waiting=len(self._waiting))
            return
        now = loop.time()
        for ending in endings:
            for waiting in self._waiting.get(ending.asked_saga_id, []):
                if not waiting.future.done() and self._is_over(ending, waiting, now):
                    waiting.future.set_result(ending)

    def _is_over(self, ending: Ending, waiting: _Waiting, now: float) -> bool:
        if ending.status is not Status.COMPLETED or ending.published:
            return True
        if waiting.publish_by is None:
            waiting.publish_by = now + self._publish_wait_s
        return now >= waiting.publish_by
