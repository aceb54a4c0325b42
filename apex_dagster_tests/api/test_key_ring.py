"""How long a process goes by what it knows of the keys. The clock is the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from apex_dagster.access.keys import Scope, UsableKey, digest_of
from apex_dagster.api.key_ring import KeyRing
from apex_dagster.errors import StoreUnavailable

pytestmark = pytest.mark.anyio

CACHE_S = 10.0
TOKEN = "apex_a1_secret"


def usable(key_id: str = "a1", expires_in_s: float | None = None) -> UsableKey:
    return UsableKey(
        key_id=key_id,
        name="newsroom",
        scopes=frozenset({Scope.READ}),
        digest=digest_of("secret"),
        expires_in_s=expires_in_s,
    )


class Ledger:
    """Keys that are asked for, and a clock."""

    def __init__(self, *keys: UsableKey) -> None:
        self.keys: Sequence[UsableKey] = keys
        self.asked, self.now_s, self.takes_s, self.is_down = 0, 1000.0, 0.0, False
        self.ring = KeyRing(self.load, CACHE_S, clock=lambda: self.now_s)

    async def load(self) -> Sequence[UsableKey]:
        self.asked += 1
        found = list(self.keys)
        await asyncio.sleep(0)
        self.now_s += self.takes_s
        if self.is_down:
            raise StoreUnavailable("ledger", "refused")
        return found

    async def finds(self, token: str = TOKEN) -> bool:
        found = await self.ring.find(token) is not None
        for _ in range(4):  # what was begun ahead of time ends
            await asyncio.sleep(0)
        return found


async def test_a_request_costs_no_question():
    ledger = Ledger(usable())
    assert all([await ledger.finds() for _ in range(50)])
    assert ledger.asked == 1


async def test_many_requests_at_once_ask_once():
    ledger = Ledger(usable())
    assert all(await asyncio.gather(*[ledger.finds() for _ in range(50)]))
    assert ledger.asked == 1


async def test_a_revoked_key_is_refused_when_the_time_is_over():
    ledger = Ledger(usable())
    assert await ledger.finds()
    ledger.keys = ()
    ledger.now_s += CACHE_S
    assert not await ledger.finds()


async def test_the_time_is_counted_from_before_the_question():
    """Revoked while the answer was on its way, which took nearly all of the time."""
    ledger = Ledger(usable())
    ledger.takes_s = 0.9 * CACHE_S
    assert await ledger.finds()
    ledger.keys = ()
    ledger.now_s += 0.1 * CACHE_S
    assert not await ledger.finds()


async def test_keys_in_use_are_asked_for_ahead_of_time():
    ledger = Ledger(usable())
    for _ in range(10):
        assert await ledger.finds()
        ledger.now_s += CACHE_S / 2
    assert ledger.asked == 10


async def test_nobody_gets_in_once_the_ledger_has_been_silent_for_too_long():
    ledger = Ledger(usable())
    assert await ledger.finds()
    ledger.is_down = True
    ledger.now_s += 0.9 * CACHE_S
    assert await ledger.finds()  # asks ahead of time, in vain
    ledger.now_s += 0.1 * CACHE_S
    with pytest.raises(StoreUnavailable):
        await ledger.finds()
    ledger.is_down = False
    assert await ledger.finds()


async def test_a_new_key_is_known_within_a_second_and_unknown_ones_cost_a_question_a_second():
    ledger = Ledger(usable())
    assert await ledger.finds()
    for _ in range(50):
        assert not await ledger.finds("apex_b2_secret")
    assert ledger.asked == 1
    ledger.keys = (usable(), usable("b2"))
    ledger.now_s += 1
    assert await ledger.finds("apex_b2_secret")
    assert ledger.asked == 2


async def test_a_key_that_expires_is_refused_at_once():
    ledger = Ledger(usable(expires_in_s=3.0))
    assert await ledger.finds()
    ledger.now_s += 3.0
    assert not await ledger.finds()
    assert ledger.asked == 1


async def test_another_secret_does_not_do():
    ledger = Ledger(usable())
    for token in ("apex_a1_other", "apex_a1_", "apex_a1_secre", "a1_secret", ""):
        assert not await ledger.finds(token)
