"""However a run is ended, its saga ends by itself: as if it had never been, or whole.

The runs hang in Qdrant's part of the saga while they are ended, so the stores before it hold a part
of the new version, and Qdrant may.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import pytest

from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole, copies, events
from apex_dagster_tests.documents import document, submission
from apex_dagster_tests.e2e.conftest import World
from apex_dagster_tests.e2e.dagster_process import WAIT_S, wait_until
from apex_dagster_tests.e2e.gate import Hold
from apex_dagster_tests.ingestion.probes import Probes

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("dagster dev"), pytest.mark.timeout(1800)]

FINISHED = "Finished steps in process"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A run that was ended, and what the stores held of its document before."""

    document_id: str
    run_id: str
    before: Mapping[str, Mapping[int, str]]
    hold: Hold  # where it hangs

    def saga(self, world: World) -> Saga:
        [saga] = world.app.ledger.sagas_of_run(self.run_id)
        return saga


# What to wait for and what to do then, again and again; told the run's id once it is launched.
Script = Generator[Hold, str, None]
Act = Callable[[World, str], Script]


def timed_out(world: World, document_id: str) -> Script:
    yield world.gate.hold("stage", document_id)


def terminated(world: World, document_id: str) -> Script:
    run_id = yield world.gate.hold("stage", document_id)
    world.dagster.terminate(run_id)


def told_to_stop(world: World, document_id: str) -> Script:
    run_id = yield world.gate.hold("stage", document_id)
    world.dagster.process_of(run_id).terminate()


def killed(world: World, document_id: str) -> Script:
    run_id = yield world.gate.hold("stage", document_id)
    world.dagster.process_of(run_id).kill()


def killed_while_compensating(world: World, document_id: str) -> Script:
    undo = world.gate.hold("undo", document_id)
    run_id = yield world.gate.hold("stage", document_id)
    process = world.dagster.process_of(run_id)
    world.dagster.terminate(run_id)
    yield undo
    process.kill()


def killed_after_the_pivot(world: World, document_id: str) -> Script:
    """No run sensor looks at a completed saga; what is left to publish waits for the lease."""
    run_id = yield world.gate.hold("publish", document_id)
    world.dagster.process_of(run_id).kill()
    let_an_hour_pass(world, document_id)


def terminated_immediately(world: World, document_id: str) -> Script:
    """The run is over at once for Dagster, and its process a moment later."""
    run_id = yield world.gate.hold("stage", document_id)
    world.dagster.terminate(run_id, immediately=True)


def out_of_reach(world: World, document_id: str) -> Script:
    """Its process stands still, and goes on when all is over: a zombie."""
    run_id = yield world.gate.hold("stage", document_id, lands=False)
    world.dagster.process_of(run_id).suspend()
    world.dagster.mark_as_cancelled(run_id)


ENDINGS: Mapping[str, tuple[Act, Mapping[str, str]]] = {
    "time_out": (timed_out, {"dagster/max_runtime": "20"}),
    "terminate": (terminated, {}),
    "terminate_immediately": (terminated_immediately, {}),
    "out_of_reach": (out_of_reach, {}),
    "sigterm": (told_to_stop, {}),
    "sigkill": (killed, {}),
    "sigkill_in_compensation": (killed_while_compensating, {}),
    "sigkill_after_pivot": (killed_after_the_pivot, {}),
}


@pytest.fixture(scope="session")
def endings(world: World) -> dict[str, Ending]:
    """All of them at once, as starting runs is what takes the time."""
    scripts = {name: act(world, new_id(name)) for name, (act, _) in ENDINGS.items()}
    waiting = {name: next(script) for name, script in scripts.items()}
    launched = {name: launch(world, hold, ENDINGS[name][1]) for name, hold in waiting.items()}
    deadline = time.monotonic() + WAIT_S
    while waiting:
        assert time.monotonic() < deadline, f"not reached: {waiting}"
        for name in [name for name, hold in waiting.items() if hold.reached.is_set()]:
            del waiting[name]
            with suppress(StopIteration):
                waiting[name] = scripts[name].send(launched[name].run_id)
        time.sleep(0.05)
    return launched


# Only a run that Dagster has asked to end, and that says it did, is shown as cancelled.
@pytest.mark.parametrize(
    ("name", "run_statuses"),
    [
        ("terminate", ["CANCELED"]),
        ("terminate_immediately", ["CANCELED", "FAILURE"]),
        ("sigterm", ["FAILURE", "CANCELED"]),
        ("time_out", ["FAILURE"]),
    ],
)
def test_the_process_of_a_run_that_is_told_to_end_undoes_its_saga(
    world: World, endings: dict[str, Ending], name: str, run_statuses: list[str]
) -> None:
    ending = endings[name]
    saga = wait_for_end(world, ending)
    assert_undone(world, ending, saga)
    assert saga.error is not None
    assert saga.error["class"] == "cancelled"
    wait_until("the run ends", lambda: world.dagster.run(ending.run_id)[0] in run_statuses)
    compensation, status = compensation_of(world, ending)
    assert status == "SUCCESS"
    if name != "terminate_immediately":  # there the sensor may be faster
        assert world.dagster.parent_of(compensation) == ending.run_id


@pytest.mark.parametrize("name", ["sigkill", "sigkill_in_compensation"])
def test_what_a_killed_run_leaves_is_undone_by_a_run_that_a_sensor_asks_for(
    world: World, endings: dict[str, Ending], name: str
) -> None:
    ending = endings[name]
    assert_undone(world, ending, wait_for_end(world, ending))
    assert world.dagster.run(ending.run_id)[0] in ("FAILURE", "CANCELED")
    compensation, status = compensation_of(world, ending)
    assert status == "SUCCESS"
    assert world.dagster.parent_of(compensation) is None


def test_a_zombie_run_marked_as_cancelled_changes_nothing_when_it_wakes(
    world: World, endings: dict[str, Ending]
) -> None:
    """Its late write shows to no reader, and the next sweep takes it away."""
    ending = endings["out_of_reach"]
    saga = wait_for_end(world, ending)
    assert_undone(world, ending, saga)
    trail = events(world.app, saga.saga_id)
    ending.hold.released.set()
    assert ending.hold.delivered.wait(WAIT_S)
    assert world.app.stores["qdrant"].holdings([saga.ref]) != {saga.saga_id: 0}
    assert_only_shows(world, ending, version=1)
    world.dagster.process_of(ending.run_id).resume()
    wait_until(
        "the zombie comes to its end",
        lambda: any(FINISHED in each for each in world.dagster.run(ending.run_id)[2]),
    )
    assert events(world.app, saga.saga_id) == trail
    assert_only_shows(world, ending, version=1)
    world.app.ingestion.sweep()
    assert_undone(world, ending, saga)


def test_a_run_killed_after_the_pivot_is_published_to_its_end(
    world: World, endings: dict[str, Ending]
) -> None:
    ending = endings["sigkill_after_pivot"]
    assert_whole_and_new(world, ending, wait_for_end(world, ending))


def test_runs_that_die_while_the_daemon_is_down_are_finished_when_it_is_back(
    world: World, endings: dict[str, Ending]
) -> None:
    for name in ENDINGS:
        wait_for_end(world, endings[name])
    before_pivot = launch(world, world.gate.hold("stage", new_id("before_pivot")))
    after_pivot = launch(world, world.gate.hold("publish", new_id("after_pivot")))
    died = [before_pivot, after_pivot]
    for ending in died:
        assert ending.hold.reached.wait(WAIT_S)
    world.dagster.daemon().suspend()
    for ending in died:
        world.dagster.process_of(ending.run_id).kill()
    world.dagster.daemon().kill()
    wait_until("`dagster dev` ends with its daemon", lambda: not world.dagster.dev.is_running())
    world.dagster.stop()
    for ending in died:
        let_an_hour_pass(world, ending.document_id)
        assert is_open(ending.saga(world))
    world.dagster.start()
    saga = wait_for_end(world, before_pivot)
    if saga.status is Status.COMPENSATED:  # whichever sensor is the first
        assert_undone(world, before_pivot, saga)
    else:
        assert_whole_and_new(world, before_pivot, saga)
    assert_whole_and_new(world, after_pivot, wait_for_end(world, after_pivot))


def new_id(name: str) -> str:
    return f"{name}-{secrets.token_hex(6)}"


def launch(world: World, hold: Hold, tags: Mapping[str, str] | None = None) -> Ending:
    """Let version 1 be live, then launch a run that brings version 2 and hangs."""
    document_id = hold.document_id
    world.app.ingestion.ingest([submission(document_id)], owner="before")
    path = world.folder / f"{document_id}.json"
    path.write_bytes(document(document_id, edition=2).content)
    run_id = world.dagster.launch(
        "ingest_documents", {"ops": {"extract": {"config": {"paths": [str(path)]}}}}, tags
    )
    before = copies(world.app, document_id)
    return Ending(document_id=document_id, run_id=run_id, before=before, hold=hold)


def let_an_hour_pass(world: World, document_id: str) -> None:
    """For whoever holds the document's sagas, by the database's clock."""
    with world.app.ledger.transaction() as tx:
        tx.execute(
            "UPDATE apex.saga_state SET lease_expires_at = lease_expires_at - %s"
            " WHERE document_id = %s",
            [timedelta(hours=1), document_id],
        )


def is_open(saga: Saga) -> bool:
    if saga.status is Status.COMPLETED:
        return saga.published_at is None
    return saga.status is not Status.COMPENSATED


def wait_for_end(world: World, ending: Ending) -> Saga:
    wait_until(f"{ending.document_id} has ended", lambda: not is_open(ending.saga(world)))
    return ending.saga(world)


def assert_undone(world: World, ending: Ending, saga: Saga) -> None:
    """All stores are as before, and each step was undone by one alone."""
    assert saga.status is Status.COMPENSATED
    assert copies(world.app, ending.document_id) == ending.before
    assert_only_shows(world, ending, version=1)
    counts = Counter(events(world.app, saga.saga_id))
    undone = {step: counts["step_undone", step] for step in world.app.engine.step_names}
    assert undone == dict.fromkeys(world.app.engine.step_names, 1)
    assert counts["saga_compensated", None] == 1


def assert_whole_and_new(world: World, ending: Ending, saga: Saga) -> None:
    assert (saga.status, saga.version) == (Status.COMPLETED, 2)
    world.app.ingestion.sweep()
    assert_whole(world.app, ending.document_id)
    assert_only_shows(world, ending, version=2)
    counts = Counter(events(world.app, saga.saga_id))
    assert (counts["saga_completed", None], counts["saga_published", None]) == (1, 1)


def assert_only_shows(world: World, ending: Ending, *, version: int) -> None:
    """To whoever reads a store directly."""
    with Probes(world.app) as probes:
        shown = probes.committed([ending.document_id])
    assert shown == {name: {ending.document_id: {version}} for name in world.app.stores}


def compensation_of(world: World, ending: Ending) -> tuple[str, str]:
    """The run that the UI links as the one that has undone this one, and how it ended."""

    def tags() -> Mapping[str, str]:
        return world.dagster.run(ending.run_id)[1]

    wait_until("the run says so", lambda: tags().get("saga/status") == "compensated")
    run_id = tags()["saga/compensation_run"]
    wait_until("the undo ends", lambda: world.dagster.run(run_id)[0] in ("SUCCESS", "FAILURE"))
    status, its_tags, _ = world.dagster.run(run_id)
    assert its_tags["saga/compensates"]
    return run_id, status
