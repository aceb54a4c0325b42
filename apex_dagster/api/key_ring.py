"""The keys that can be used, as this process knows them: asked of the ledger now and then, so that
no request costs a query, and never older than a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog

from apex_dagster.access.keys import UsableKey, split_key

log = structlog.get_logger(__name__)

# A key that is not known may be new. To ask so often, whatever is sent, costs hardly anything.
_UNKNOWN_EVERY_S = 1.0
# Goes on while the machine sleeps, which must not prolong the life of a key that was revoked.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class KeyRing:
    """Finds keys. For one event loop.

    `load` asks the ledger. A key that is revoked is refused `cache_s` seconds later at the latest,
    one that expires at once; when the ledger cannot be asked, nobody gets in after that time.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[Sequence[UsableKey]]],
        cache_s: float,
        *,
        clock: Callable[[], float] = lambda: time.clock_gettime(_CLOCK),
    ) -> None:
        self._load, self._cache_s, self._clock = load, cache_s, clock
        self._keys: dict[str, tuple[UsableKey, float]] = {}  # by id, with when it expires
        self._asked_at = -float("inf")
        self._loading: asyncio.Task[None] | None = None

    async def find(self, sent: str) -> UsableKey | None:
        """The key that `sent` is; None for one that cannot be used. Raises what `load` raises."""
        parts = split_key(sent)
        if parts is None:
            return None
        age_s = self._clock() - self._asked_at
        if age_s >= self._cache_s or (parts[0] not in self._keys and age_s >= _UNKNOWN_EVERY_S):
            await asyncio.shield(self._reload())
        elif age_s >= self._cache_s / 2:
            self._reload()  # ahead of time, so that hardly any request has to wait
        key, expires_at = self._keys.get(parts[0], (None, 0.0))
        if key is None or expires_at <= self._clock() or not key.has_secret(parts[1]):
            return None
        return key

    def _reload(self) -> asyncio.Task[None]:
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._ask())
            self._loading.add_done_callback(_note_failure)
        return self._loading

    async def _ask(self) -> None:
        asked_at = self._clock()
        keys = await self._load()
        # Counted from before the question: what was revoked since is not in the answer.
        self._keys = {key.key_id: (key, asked_at + _life_s(key)) for key in keys}
        self._asked_at = asked_at


def _life_s(key: UsableKey) -> float:
    return float("inf") if key.expires_in_s is None else key.expires_in_s


def _note_failure(loading: asyncio.Task[None]) -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.warning("api_keys_not_read", error=str(error))
