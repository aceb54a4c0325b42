"""The simulation's ledger does what PostgreSQL does: same operations, same answers, same rows.

Operations are drawn from a seed, and most of them are allowed at the time; some come from owners
that were taken over, or are no good in the status a saga has by then.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from apex_dagster.saga.states import Status
from apex_dagster_tests.simulation.ledger_player import WEIGHTS, LedgerPlayer
from apex_dagster_tests.simulation.twin_ledgers import TwinLedgers

_OPERATIONS = 250


@pytest.fixture
def twins(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TwinLedgers]:
    twins = TwinLedgers(postgres_database, monkeypatch)
    yield twins
    twins.close()


@pytest.mark.parametrize("seed", range(4))
def test_the_model_answers_as_postgresql_does(twins: TwinLedgers, seed: int) -> None:
    draw = random.Random(seed)
    player = LedgerPlayer(twins, draw)
    names = list(player.operations)
    names += draw.choices(names, [WEIGHTS.get(name, 1.0) for name in names], k=_OPERATIONS)
    draw.shuffle(names)
    for number, name in enumerate(names):
        player.operations[name]()
        if number % 10 == 0:
            twins.assert_equal_rows(name)
    twins.assert_equal_rows("the last of all")
    reached = {event["status"] for event in twins.database.tables.events.values()}
    assert reached >= set(Status) - {Status.FAILED}, "the operations have to lead everywhere"
