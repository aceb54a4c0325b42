"""Each fault at each point of an update of a live version. One line a cell: `pytest -v` shows them.

A cell is over when the nets have done their part: the failure hook where an exception left the
engine, recovery for whatever is open, an operator for an undo that failed, and the sweep.
"""

from __future__ import annotations

import signal
import threading

import pytest

from apex_dagster.saga.failpoints import parked
from apex_dagster.saga.states import Status
from apex_dagster_tests.faults.arena import Arena
from apex_dagster_tests.faults.cells import Cell, cells
from apex_dagster_tests.faults.victims import Owner, kill_owner

CELLS = list(cells())


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_whatever_hits_an_update_it_ends_whole_or_undone(
    arena: Arena, unique: str, cell: Cell
) -> None:
    arena.ingest(unique, 1)
    before = arena.copies(unique)
    if cell.fault == "kill":
        update = [arena.edition(unique, 2)]
        exit_code = kill_owner(arena.servers, arena.settings, update, cell.failpoints)
        assert exit_code == -signal.SIGKILL
        end_after_a_crash(arena, unique)
    else:
        arena.pace.tries_again = cell.fault == "repeat"
        owner = Owner(arena.victim, arena.edition(unique, 2), cell.failpoints)
        assert bool(parked()) == (cell.fault in ("late", "repeat"))
        arena.assert_reads_one_of(unique, 1, 2)
        if parked():
            end_with_late_landing(arena, unique, cell, owner)
        else:
            end_after_an_error(arena, unique, owner)
    check(arena, unique, cell, before)


def test_the_same_at_the_first_version_leaves_nothing(arena: Arena, unique: str) -> None:
    """The update is the harder case; this is the other one, with a fault in every store."""
    for step in ("neo4j_write", "postgres_write", "qdrant_write", "redis_write"):
        one = arena.edition(f"{unique}-{step}", 1)
        arena.pace.tries_again = False
        owner = Owner(arena.victim, one, f"started:{step}=park*1")
        owner.land()
        [saga] = arena.sagas(f"{unique}-{step}")
        assert saga.status is Status.COMPENSATED
        assert arena.rescuer.reader.read_document(saga.document_id) is None
        arena.sweep(saga.document_id)
        assert arena.copies(saga.document_id) == {name: {} for name in arena.rescuer.stores}


@pytest.mark.parametrize("point", ["undo_recorded:neo4j_write", "undone"])
def test_kill_9_between_the_undo_of_a_loser_and_its_restart_loses_no_submission(
    arena: Arena, unique: str, point: str
) -> None:
    meeting = [arena.edition(unique, 1), arena.edition(unique, 2)]
    exit_code = kill_owner(arena.servers, arena.settings, meeting, f"{point}=kill")
    assert exit_code == -signal.SIGKILL
    arena.assert_reads_one_of(unique, 1)
    end_after_a_crash(arena, unique)
    arena.assert_reads_one_of(unique, 2)
    assert [saga.status for saga in arena.sagas(unique)] == [
        Status.COMPLETED,
        Status.COMPENSATED,
        Status.COMPLETED,
    ]
    arena.sweep(unique)
    arena.assert_audit_agrees(unique)


# -- the nets ------------------------------------------------------------------------------------


def end_after_an_error(arena: Arena, document_id: str, owner: Owner) -> None:
    if owner.error is not None:
        arena.run_failure_hook(document_id)
    arena.recover(document_id)
    arena.drive_failed(document_id)


def end_after_a_crash(arena: Arena, document_id: str) -> None:
    arena.assert_reads_one_of(document_id, 1, 2)
    assert arena.recover(document_id), "the killed owner has left nothing open"


def end_with_late_landing(arena: Arena, document_id: str, cell: Cell, owner: Owner) -> None:
    """Everybody else has done their part before what was held up happens."""
    if cell.point == "pivoting":
        arena.claim_during(document_id, owner.land)
    elif owner.is_paused:
        assert arena.recover(document_id), "a paused owner was not taken over"
    arena.drive_failed(document_id)
    if cell.act == "publish":
        arena.ingest(document_id, 3)  # the late publish comes after its own successor's
    owner.land()
    if cell.is_staged_late:
        # PostgreSQL sees the saga's row and refuses; the others take it in, and nobody reads it.
        dead, held = arena.sagas(document_id)[-1], arena.rescuer.stores
        landed = held[str(cell.step).removesuffix("_write")].holdings([dead.ref])[dead.saga_id]
        assert (landed > 0) == (cell.step != "postgres_write")
    arena.assert_reads_one_of(document_id, *((3,) if cell.act == "publish" else (1, 2)))
    arena.recover(document_id)
    arena.drive_failed(document_id)


# -- what has to hold ----------------------------------------------------------------------------


def check(arena: Arena, document_id: str, cell: Cell, before: dict[str, dict[int, str]]) -> None:
    assert parked() == set()
    assert not [t for t in threading.enumerate() if t.name.startswith("call-")]
    sagas = arena.sagas(document_id)
    assert sagas[1].status is cell.ends
    assert all(saga.published_at for saga in sagas if saga.status is Status.COMPLETED)
    if cell.ends is Status.COMPENSATED and not cell.is_staged_late:
        assert arena.copies(document_id) == before  # by the undo alone
    arena.sweep(document_id)
    if cell.ends is Status.COMPENSATED:
        assert arena.copies(document_id) == before
        arena.assert_reads_one_of(document_id, 1)
    else:
        last = sagas[-1].version
        held = {name: set(versions) for name, versions in arena.copies(document_id).items()}
        assert held == {name: {last} for name in arena.rescuer.stores}
        arena.assert_reads_one_of(document_id, last)
    arena.assert_audit_agrees(document_id)
