"""The checker of direct reads lets good ones pass and finds what is wrong with bad ones."""

from __future__ import annotations

import pytest

from apex_dagster.chaos.direct_reads import DirectRead, violations
from apex_dagster.chaos.history import Pivot
from apex_dagster_tests.applications import version_ref


def pivot(version: int, began: float) -> Pivot:
    ref = version_ref("d", version, f"s{version}")
    return Pivot(ref=ref, began=began, content={"postgres": f"rows {version}"})


def read(began: float, **versions: str) -> DirectRead:
    """`v1="rows 1"`: version 1 showed these rows."""
    shown = {int(name.removeprefix("v")): rows for name, rows in versions.items()}
    return DirectRead(document_id="d", began=began, ended=began + 0.1, versions=shown)


PIVOTS = [pivot(1, 10.0), pivot(3, 20.0)]
ONE, THREE = {"v1": "rows 1"}, {"v3": "rows 3"}

GOOD = {
    "nothing, then each": [read(1.0), read(11.0, **ONE), read(21.0, **THREE)],
    "the old one until the new is published": [read(20.5, **ONE), read(20.7, **THREE)],
    "either, at once": [read(20.50, **THREE), read(20.55, **ONE)],
}
BAD = {
    "two at once": ([read(21.0, **ONE, **THREE)], "committed at once"),
    "never live": ([read(21.0, v2="rows 2")], "never live"),
    "too early": ([read(15.0, **THREE)], "before it was live"),
    "half of it": ([read(21.0, v3="rows")], "other content"),
    "back in time": ([read(21.0, **THREE), read(22.0, **ONE)], "version 1 after version 3"),
    "gone again": ([read(11.0, **ONE), read(12.0)], "version none after version 1"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_reads_pass(name: str) -> None:
    assert violations(PIVOTS, GOOD[name]) == []


@pytest.mark.parametrize("name", BAD)
def test_bad_reads_are_found_out(name: str) -> None:
    reads, message = BAD[name]
    [found] = violations(PIVOTS, reads)
    assert message in found
