"""Group commit: whatever comes in while one transaction runs shares the next.

So a call that comes alone waits for nobody, and a hundred at once cost a few transactions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

from apex_dagster.errors import TransientError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Call(Generic[Item, Result]):
    item: Item
    size: int
    future: asyncio.Future[Result]


class Gatherer(Generic[Item, Result]):
    """Runs `work` on batches of what is put in, one batch at a time. For one event loop.

    `claims` names what an item needs for itself, each with what it may share it with: two items go
    into one batch only if they agree on every name that both claim.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        executor: Executor,
        *,
        items_max: int,
        bytes_max: int,
        wait_s: float = 0.0,
        size_of: Callable[[Item], int] = lambda item: 0,
        claims: Callable[[Item], dict[Hashable, Hashable]] = lambda item: {},
    ) -> None:
        self._work, self._executor = work, executor
        self._items_max, self._bytes_max, self._wait_s = items_max, bytes_max, wait_s
        self._size_of, self._claims = size_of, claims
        self._waiting: list[_Call[Item, Result]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that no batch has taken yet."""
        return len(self._waiting)

    async def put(self, item: Item) -> Result:
        """The result for `item`; raises what `work` raised. Giving up waiting undoes nothing."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Call(item, self._size_of(item), future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await asyncio.shield(future)

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._wait_s)
            batch = self._take()
            await self._settle(batch)

    def _take(self) -> list[_Call[Item, Result]]:
        batch: list[_Call[Item, Result]] = []
        rest: list[_Call[Item, Result]] = []
        taken: dict[Hashable, Hashable] = {}
        behind: set[Hashable] = set()  # so that nothing overtakes what stays behind
        size = 0
        for call in self._waiting:
            wanted = self._claims(call.item)
            fits = len(batch) < self._items_max and size + call.size <= self._bytes_max
            agrees = all(taken.get(name, share) == share for name, share in wanted.items())
            if batch and not (fits and agrees and behind.isdisjoint(wanted)):
                rest.append(call)
                behind.update(wanted)
            else:
                batch.append(call)
                size += call.size
                taken |= wanted
        self._waiting = rest
        return batch

    async def _settle(self, batch: list[_Call[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        items = [call.item for call in batch]
        try:
            results = await loop.run_in_executor(self._executor, self._work, items)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, TransientError):
                for call in batch:  # to find the one at fault
                    await self._settle([call])
                return
            for call in batch:
                if not call.future.done():
                    call.future.set_exception(error)
            return
        for call, result in zip(batch, results, strict=True):
            if not call.future.done():
                call.future.set_result(result)
