"""The checker of read histories lets good ones pass and finds what is wrong with bad ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apex_dagster.chaos.history import Pivot, Read, Seen, violations
from apex_dagster_tests.applications import version_ref

ALL = ("neo4j", "postgres", "qdrant", "redis")


def pivot(version: int, began: float, ended: float) -> Pivot:
    content = {store: f"{store} {version}" for store in ALL}
    ref = version_ref("d", version, f"s{version}")
    return Pivot(ref=ref, began=began, ended=ended, content=content)


def read(began: float, ended: float, **versions: int) -> Read:
    """A read that saw this version in each store."""
    parts = {
        store: Seen(ref=version_ref("d", version, f"s{version}"), fingerprint=f"{store} {version}")
        for store, version in versions.items()
    }
    return Read(document_id="d", began=began, ended=ended, parts=parts)


def whole(began: float, ended: float, version: int) -> Read:
    return read(began, ended, **dict.fromkeys(ALL, version))


PIVOTS = [pivot(1, 10.0, 10.1), pivot(3, 20.0, 20.2), pivot(4, 30.0, 30.1)]

GOOD = {
    "nothing before the first": [read(1.0, 9.0)],
    "each in its time": [whole(11.0, 12.0, 1), whole(21.0, 22.0, 3), whole(31.0, 32.0, 4)],
    "either while it changes": [whole(20.05, 20.15, 3), whole(20.1, 20.3, 1)],
    "either in a long read": [whole(15.0, 25.0, 1), whole(15.0, 25.0, 3)],
    "a cache miss": [read(11.0, 12.0, neo4j=1, postgres=1, qdrant=1)],
    "old beside new, overlapping": [whole(19.9, 20.15, 3), whole(20.1, 20.12, 1)],
    "any of the three in one long read": [whole(5.0, 35.0, 3)],
}

BAD = {
    "a mixture": ([read(11.0, 25.0, neo4j=1, postgres=3, qdrant=3)], "mixture"),
    "a stale cache entry": ([read(21.0, 22.0, neo4j=3, postgres=3, qdrant=3, redis=1)], "mixture"),
    "half of it": ([read(11.0, 12.0, neo4j=1, postgres=1)], "nothing of qdrant"),
    "never live": ([whole(11.0, 12.0, 2)], "never live"),
    "too early": ([whole(8.0, 9.0, 1)], "before it was live"),
    "too late": ([whole(20.3, 21.0, 1)], "after version 3"),
    "long gone": ([whole(31.0, 32.0, 1)], "after version 3"),
    "nothing although one is live": ([read(11.0, 12.0)], "no version after version 1"),
    "back in time": ([whole(20.05, 20.1, 3), whole(20.11, 20.15, 1)], "an older version"),
    "gone again": ([whole(10.01, 10.02, 1), read(10.03, 10.04)], "an older version"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    assert violations(PIVOTS, GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_found_out(name: str) -> None:
    reads, message = BAD[name]
    [found] = violations(PIVOTS, [*reads, whole(31.0, 32.0, 4)])
    assert message in found


@pytest.mark.parametrize("store", ALL)
def test_other_content_than_was_submitted_is_found_out(store: str) -> None:
    good = whole(11.0, 12.0, 1)
    spoilt = replace(good.parts[store], fingerprint="half of it")
    [found] = violations(PIVOTS, [replace(good, parts={**good.parts, store: spoilt})])
    assert f"{store} shows other content" in found


def test_the_pivot_of_another_document_proves_nothing() -> None:
    other = replace(PIVOTS[0], ref=version_ref("e", 1, "s1"))
    assert violations([other], [whole(11.0, 12.0, 1)]) != []
