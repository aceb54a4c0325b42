"""Sagas that wait for a driver are claimed in batches, each by one run only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from apex_dagster.composition import Application
from apex_dagster.saga.pending import claim_pending, pending_count
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.documents import open_pending

PLENTY = 1 << 30


def test_the_oldest_are_claimed_first_and_only_one_of_a_document(
    app: Application, unique: str
) -> None:
    names = [f"{unique}-{name}" for name in ("z", "y", "x")]
    first = [open_pending(app, name) for name in names]
    second = open_pending(app, names[0], edition=2)
    assert pending_count(app.ledger) == 4
    claimed = claim(app, "run-1", limit=2)
    assert ids(claimed) == ids(first[:2])
    assert app.ledger.sagas_of_run("run-1") == sorted(claimed, key=lambda saga: saga.arrival)
    held = claimed[0]
    assert (held.status, held.lease_owner, held.epoch) == (Status.IN_PROGRESS, "run:run-1", 1)
    assert ids(claim(app, "run-2", limit=10)) == ids([first[2], second])
    assert pending_count(app.ledger) == 0
    assert claim(app, "run-3", limit=10) == []


def test_two_of_a_document_share_no_batch(app: Application, unique: str) -> None:
    first, second = (open_pending(app, unique, edition=edition) for edition in (1, 2))
    assert ids(claim(app, "run-1", limit=10)) == ids([first])
    assert ids(claim(app, "run-2", limit=10)) == ids([second])


def test_a_batch_has_a_weight_that_one_document_may_exceed(app: Application, unique: str) -> None:
    sagas = [open_pending(app, f"{unique}-{index}") for index in range(3)]
    assert ids(claim(app, "run-1", limit=10, bytes_max=1)) == ids(sagas[:1])
    assert ids(claim(app, "run-2", limit=10)) == ids(sagas[1:])


def test_claims_at_once_share_no_saga_and_leave_none(app: Application, unique: str) -> None:
    opened = [open_pending(app, f"{unique}-{index}") for index in range(40)]
    with ThreadPoolExecutor(4) as pool:
        rounds = [
            list(pool.map(lambda n: claim(app, f"run-{n}", limit=3), range(turn, turn + 4)))
            for turn in range(0, 16, 4)
        ]
    claimed = [saga for batches in rounds for batch in batches for saga in batch]
    claimed += claim(app, "last", limit=40)
    assert ids(claimed) == ids(opened)


def test_what_a_run_opened_for_itself_is_nobody_elses(app: Application, unique: str) -> None:
    open_pending(app, unique, run_id="mine")
    assert pending_count(app.ledger) == 0
    assert claim(app, "run-1", limit=10) == []


def claim(app: Application, run_id: str, *, limit: int, bytes_max: int = PLENTY) -> list[Saga]:
    return claim_pending(
        app.ledger, owner=f"run:{run_id}", run_id=run_id, limit=limit, bytes_max=bytes_max
    )


def ids(sagas: list[Saga]) -> list[str]:
    return sorted(saga.saga_id for saga in sagas)
