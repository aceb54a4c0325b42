"""Group commit: who shares a batch, who waits, and whose error is whose."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from apex_dagster.errors import StoreRejected, StoreUnavailable
from apex_dagster.ingestion.gathering import Gatherer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Held:
    """Work that waits to be let go, so that a test decides what comes in meanwhile."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        assert self.go.wait(30)
        return [item.upper() for item in items]


async def gathered(work, items, **options):
    """The results, or errors, of items put in while the first of them is being worked on."""
    with ThreadPoolExecutor(1) as executor:
        limits = {"items_max": 10, "bytes_max": 100} | options
        gatherer = Gatherer(work, executor, **limits)
        calls = [asyncio.create_task(gatherer.put(items[0]))]
        while not work.batches:
            await asyncio.sleep(0.01)
        calls += [asyncio.create_task(gatherer.put(item)) for item in items[1:]]
        await asyncio.sleep(0)
        work.go.set()
        return await asyncio.gather(*calls, return_exceptions=True)


async def test_what_comes_in_while_one_batch_runs_shares_the_next():
    work = Held()
    assert await gathered(work, ["a", "b", "c", "d"]) == ["A", "B", "C", "D"]
    assert work.batches == [["a"], ["b", "c", "d"]]


async def test_batches_are_bounded_in_number_and_in_size():
    work = Held()
    await gathered(work, list("abcdef"), items_max=2)
    assert work.batches == [["a"], ["b", "c"], ["d", "e"], ["f"]]
    work = Held()
    await gathered(work, ["a", "bb", "cccc", "dd", "e"], bytes_max=5, size_of=len)
    assert work.batches == [["a"], ["bb", "dd", "e"], ["cccc"]]


async def test_an_item_larger_than_the_bound_goes_alone():
    work = Held()
    await gathered(work, ["a", "bbbbbbbb", "c"], bytes_max=5, size_of=len)
    assert work.batches == [["a"], ["bbbbbbbb"], ["c"]]


async def test_who_claims_the_same_differently_waits_and_is_not_overtaken():
    """Contents x1, x2, x1 of one document: the last x1 must not go in before x2."""
    work = Held()
    items = ["start", "x1", "x1", "y1", "x2", "x1"]
    await gathered(work, items, claims=lambda item: {item[0]: item[1:]})
    assert work.batches == [["start"], ["x1", "x1", "y1"], ["x2"], ["x1"]]


class Failing(Held):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __call__(self, items):
        results = super().__call__(items)
        if "bad" in items:
            raise self.error
        return results


async def test_only_the_item_at_fault_is_told_of_an_error_that_will_not_pass():
    work = Failing(StoreRejected("ledger", "no"))
    results = await gathered(work, ["a", "b", "bad", "c"])
    assert [str(result)[:6] for result in results] == ["A", "B", "ledger", "C"]
    assert work.batches[2:] == [["b"], ["bad"], ["c"]]


async def test_an_error_that_may_pass_is_everybodys_and_is_not_multiplied():
    work = Failing(StoreUnavailable("ledger", "down"))
    results = await gathered(work, ["a", "b", "bad"])
    assert results[0] == "A"
    assert [type(result) for result in results[1:]] == [StoreUnavailable] * 2
    assert len(work.batches) == 2


async def test_giving_up_waiting_undoes_nothing():
    work = Held()
    with ThreadPoolExecutor(1) as executor:
        gatherer = Gatherer(work, executor, items_max=10, bytes_max=100)
        call = asyncio.create_task(gatherer.put("a"))
        while not work.batches:
            await asyncio.sleep(0.01)
        other = asyncio.create_task(gatherer.put("b"))
        call.cancel()
        await asyncio.sleep(0)
        work.go.set()
        assert await other == "B"
    assert work.batches == [["a"], ["b"]]
