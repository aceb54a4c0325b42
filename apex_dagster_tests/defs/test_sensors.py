"""The inbox sensor: files that are complete become runs, once; nothing is lost, nothing doubled."""

from __future__ import annotations

import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

from apex_dagster.composition import Application
from apex_dagster.definitions import defs
from apex_dagster.defs import sensors
from apex_dagster.defs.resources import resources_from_environment
from apex_dagster.errors import StoreUnavailable
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole
from apex_dagster_tests.documents import document, submission
from apex_dagster_tests.ingestion.files import make_due, mend


class Ticks:
    """Evaluates the sensor as the daemon does, tick after tick, and executes what it asks for."""

    def __init__(self, instance: dg.DagsterInstance, job: ReconstructableJob) -> None:
        self._instance, self._job, self._cursor = instance, job, None
        self.keys: set[str] = set()
        self.skipped = ""  # the reason, of the last tick

    def tick(self) -> list[dg.RunRequest]:
        """One evaluation; requests whose key was seen before are dropped, as Dagster does."""
        context = dg.build_sensor_context(
            instance=self._instance,
            cursor=self._cursor,
            definitions=defs,
            resources={"sagas": resources_from_environment()["sagas"]},
        )
        with context:
            result = defs.get_sensor_def("inbox_sensor").evaluate_tick(context)
        self._cursor, self.skipped = result.cursor, result.skip_message or ""
        fresh = [r for r in result.run_requests or [] if r.run_key not in self.keys]
        self.keys |= {request.run_key for request in fresh if request.run_key}
        return fresh

    def run(self, request: dg.RunRequest) -> dg.JobExecutionResult:
        """Execute one request as the launcher would."""
        tags = {**request.tags, "dagster/run_key": str(request.run_key)}
        with dg.execute_job(
            self._job, instance=self._instance, run_config=request.run_config, tags=tags
        ) as result:
            return result


@pytest.fixture
def ticks(
    dagster_app: Application, instance: dg.DagsterInstance, ingest_job: ReconstructableJob
) -> Ticks:
    dagster_app.inbox.folder.mkdir(parents=True, exist_ok=True)
    return Ticks(instance, ingest_job)


def drop(app: Application, name: str, *, edition: int = 1) -> Path:
    path = app.inbox.folder / f"{name}.json"
    path.write_bytes(document(name, edition=edition).content)
    return path


def test_a_file_is_taken_at_the_second_look_and_put_away_after_its_run(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    path = drop(dagster_app, unique)
    assert ticks.tick() == []
    [request] = ticks.tick()
    assert ticks.tick() == []
    assert ticks.run(request).success
    assert not path.exists()
    assert (dagster_app.inbox.folder / "processed" / path.name).exists()
    assert ticks.tick() == []
    assert_whole(dagster_app, unique)


def test_a_file_that_still_grows_waits(dagster_app: Application, ticks: Ticks, unique: str) -> None:
    path = drop(dagster_app, unique)
    for _ in range(3):
        assert ticks.tick() == []
        path.write_bytes(path.read_bytes() + b" ")
    assert ticks.tick() == []
    assert len(ticks.tick()) == 1


def test_unfinished_hidden_and_linked_files_are_left_alone(
    dagster_app: Application, ticks: Ticks, unique: str, tmp_path: Path
) -> None:
    inbox = dagster_app.inbox.folder
    outside = tmp_path / "secret.txt"
    outside.write_text("not for the corpus")
    (inbox / "a.json.part").write_text("{}")
    (inbox / ".hidden.txt").write_text("hidden")
    (inbox / "link.txt").symlink_to(outside)
    (inbox / "folder").symlink_to(tmp_path)
    assert (ticks.tick(), ticks.tick()) == ([], [])


def test_the_same_file_dropped_again_doubles_nothing(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    for _ in range(2):
        drop(dagster_app, unique)
        ticks.tick()
        for request in ticks.tick():
            assert ticks.run(request).success
    assert len(dagster_app.ledger.list_sagas(document_id=unique)) == 1
    processed = dagster_app.inbox.folder / "processed"
    drop(dagster_app, unique)
    ticks.tick()
    assert len(list(processed.iterdir())) >= 1
    assert_whole(dagster_app, unique)


def test_a_corrected_file_under_the_same_name_is_a_new_version(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    for edition in (1, 2):
        drop(dagster_app, unique, edition=edition)
        ticks.tick()
        [request] = ticks.tick()
        assert ticks.run(request).success
    assert dagster_app.ledger.pointers([unique])[unique]["live_version"] == 2


def test_files_share_runs_up_to_the_batch_size(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    for index in range(7):
        drop(dagster_app, f"{unique}-{index}")
    ticks.tick()
    requests = ticks.tick()
    sizes = [len(r.run_config["ops"]["extract"]["config"]["paths"]) for r in requests]
    assert sizes == [3, 3, 1]


def test_a_sidecar_starts_no_run_of_its_own_and_a_changed_one_a_run_of_its_file(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    path = dagster_app.inbox.folder / f"{unique}.csv"
    sidecar = path.with_name(f"{path.name}.meta.json")
    sidecar.write_text('{"collection": "first"}')
    assert (ticks.tick(), ticks.tick()) == ([], [])
    path.write_text("id,text\n007,The Aurora lay in the ice off Gull Island.\n")
    ticks.tick()
    [early] = ticks.tick()
    sidecar.write_text('{"collection": "second"}')
    assert ticks.tick() == []  # it may be changing still
    [request] = ticks.tick()
    assert request.run_key != early.run_key
    assert request.run_config["ops"]["extract"]["config"] == {"paths": [f"inbox:{path.name}"]}
    assert ticks.run(request).success
    processed = dagster_app.inbox.folder / "processed"
    assert {p.name for p in processed.glob(f"{unique}*")} == {path.name, sidecar.name}
    assert [p for p in (path, sidecar) if p.exists()] == []
    with dagster_app.ledger.transaction() as tx:
        rows = tx.execute("SELECT collection FROM apex.document_versions").fetchall()
    assert [row["collection"] for row in rows] == ["second"]
    assert ticks.tick() == []
    assert_whole(dagster_app, f"{path.name}#007")


def test_a_file_with_a_sidecar_is_known_to_be_under_way(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    path = drop(dagster_app, unique)
    path.with_name(f"{path.name}.meta.json").write_text('{"metadata": {"a": 1}}')
    ticks.tick()
    [request] = ticks.tick()
    with armed("started:qdrant_write=unavailable"):
        assert not ticks.run(request).success
    mend(dagster_app)
    assert ticks.tick() == []
    assert "1 under way" in ticks.skipped


def test_a_bad_file_goes_to_quarantine_with_its_reason(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    bad = dagster_app.inbox.folder / f"{unique}.pdf"
    bad.write_bytes(b"%PDF-1.7 this is no PDF")
    ticks.tick()
    [request] = ticks.tick()
    assert not ticks.run(request).success
    quarantine = dagster_app.inbox.folder / "quarantine"
    assert (quarantine / bad.name).read_bytes() == b"%PDF-1.7 this is no PDF"
    assert unique in (quarantine / f"{bad.name}.reason.json").read_text()
    assert not bad.exists()


def recovery_tick(instance: dg.DagsterInstance) -> str:
    """One evaluation of the recovery sensor; what it says."""
    resources = {"sagas": resources_from_environment()["sagas"]}
    with dg.build_sensor_context(
        instance=instance, definitions=defs, resources=resources
    ) as context:
        data = defs.get_sensor_def("recovery_sensor").evaluate_tick(context)
    return data.skip_message or ""


def test_a_file_whose_store_was_down_is_left_to_the_ledger_which_tries_it_again(
    dagster_app: Application, ticks: Ticks, instance: dg.DagsterInstance, unique: str
) -> None:
    path = drop(dagster_app, unique)
    ticks.tick()
    [request] = ticks.tick()
    with armed("started:qdrant_write=unavailable"):
        assert not ticks.run(request).success
    assert path.exists()
    mend(dagster_app)
    for _ in range(dagster_app.settings.file_attempts + 2):
        assert ticks.tick() == []
    assert "1 under way" in ticks.skipped
    make_due(dagster_app)
    assert "1 files tried again" in recovery_tick(instance)
    [saga] = dagster_app.ledger.newest_sagas(document_ids=[unique])
    assert saga.status is Status.PENDING  # for a worker, or for the sensor once its lease is over
    with dagster_app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET lease_expires_at = '2000-01-01'")
    assert "1 sagas finished" in recovery_tick(instance)
    assert ticks.tick() == []
    assert (dagster_app.inbox.folder / "processed" / path.name).exists()
    assert_whole(dagster_app, unique)


def test_a_sensor_that_has_forgotten_everything_leaves_to_the_ledger_what_that_has_taken_in(
    dagster_app: Application,
    ticks: Ticks,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    unique: str,
) -> None:
    drop(dagster_app, unique)
    ticks.tick()
    [request] = ticks.tick()
    with armed("started:qdrant_write=unavailable"):
        ticks.run(request)
    mend(dagster_app)
    young = Ticks(instance, ingest_job)
    assert [young.tick() for _ in range(3)] == [[], [], []]


def test_a_file_that_no_run_takes_in_is_given_up_with_its_reason(
    dagster_app: Application,
    ticks: Ticks,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sensors, "_RETRY_AFTER_S", 0.0)
    path = drop(dagster_app, unique)
    ticks.tick()
    lost = dagster_app.inbox.folder / "lost.json"
    for _ in range(dagster_app.settings.file_attempts):
        [request] = ticks.tick()
        path.rename(lost)  # not there when its run looks, and there again afterwards
        ticks.run(request)
        lost.rename(path)
    assert ticks.tick() == []
    assert dagster_app.ledger.list_sagas(document_id=unique) == []
    assert not path.exists()
    reason = dagster_app.inbox.folder / "quarantine" / f"{path.name}.reason.json"
    assert "5 runs" in reason.read_text()


def take_down(app: Application, store: str) -> None:
    """As another process found it; nobody is to look again for an hour."""
    app.breakers.note(store, StoreUnavailable(store, "connection refused"))
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.breaker SET next_probe_at = now() + interval '1 hour'")


def bring_back(app: Application) -> None:
    assert app.breakers.probe(at_once=True)


def test_while_a_store_is_down_files_wait_and_no_attempt_is_counted(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    path = drop(dagster_app, unique)
    ticks.tick()
    take_down(dagster_app, "neo4j")
    for _ in range(dagster_app.settings.file_attempts + 2):
        assert ticks.tick() == []
        assert "neo4j is unavailable, retry after" in ticks.skipped
    bring_back(dagster_app)
    [request] = ticks.tick()
    assert ticks.run(request).success
    assert not path.exists()
    assert_whole(dagster_app, unique)


def test_a_run_that_meets_a_store_down_takes_nothing_in_and_is_no_attempt(
    dagster_app: Application, ticks: Ticks, instance: dg.DagsterInstance, unique: str
) -> None:
    drop(dagster_app, unique)
    ticks.tick()
    for _ in range(dagster_app.settings.file_attempts + 2):
        [request] = ticks.tick()
        take_down(dagster_app, "qdrant")
        refused = ticks.run(request)
        assert not refused.success
        assert instance.get_run_by_id(refused.run_id).tags["saga/refused"] == "qdrant"
        assert dagster_app.ledger.list_sagas(document_id=unique) == []
        bring_back(dagster_app)
    [request] = ticks.tick()
    assert ticks.run(request).success
    assert_whole(dagster_app, unique)


def test_after_a_store_is_back_files_are_let_in_a_few_at_first(
    dagster_app: Application, ticks: Ticks, unique: str
) -> None:
    for index in range(15):
        drop(dagster_app, f"{unique}-{index}")
    ticks.tick()
    take_down(dagster_app, "redis")
    bring_back(dagster_app)
    with dagster_app.ledger.transaction() as tx:  # it was closed this very moment, and 6 came in
        tx.execute("UPDATE apex.breaker SET closed_at = now() + interval '1 hour', admitted = 6")
    asked = sum(len(r.run_config["ops"]["extract"]["config"]["paths"]) for r in ticks.tick())
    assert asked < 15
    with dagster_app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.breaker SET closed_at = now() - interval '1 hour'")
    time.sleep(1.1)  # what a process has seen of the breakers may be a second old
    asked += sum(len(r.run_config["ops"]["extract"]["config"]["paths"]) for r in ticks.tick())
    assert asked == 15


def test_the_recovery_sensor_finishes_what_a_dead_owner_left(
    dagster_app: Application, instance: dg.DagsterInstance, unique: str
) -> None:
    with armed("written:qdrant_write=raise"), pytest.raises(SimulatedCrash):
        dagster_app.ingestion.ingest([submission(unique)], owner="dead")
    with dagster_app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET lease_expires_at = clock_timestamp()")
    time.sleep(0.01)
    assert "1 sagas finished" in recovery_tick(instance)
    [saga] = dagster_app.ledger.list_sagas(document_id=unique)
    assert saga.status is Status.COMPLETED
    assert_whole(dagster_app, unique)


def test_runs_show_how_their_sagas_ended_that_had_to_wait_for_a_store(
    dagster_app: Application, ticks: Ticks, instance: dg.DagsterInstance, unique: str
) -> None:
    drop(dagster_app, unique)
    ticks.tick()
    [request] = ticks.tick()
    with armed("sent:qdrant_write=reject*1;undoing:qdrant_write=unavailable"):
        run_id = ticks.run(request).run_id
    undone_by = dg.RunsFilter(tags={"saga/compensates": run_id})
    [compensation] = instance.get_runs(undone_by)
    run_ids = [run_id, compensation.run_id]
    assert saga_statuses(instance, run_ids) == ["compensating"] * 2
    deadline = time.monotonic() + 60
    while "1 sagas finished" not in recovery_tick(instance):  # the store was never really down
        assert time.monotonic() < deadline
    assert saga_statuses(instance, run_ids) == ["compensated"] * 2


def saga_statuses(instance: dg.DagsterInstance, run_ids: list[str]) -> list[str]:
    return [instance.get_run_by_id(run_id).tags["saga/status"] for run_id in run_ids]


def test_the_recovery_sensor_forgets_keys_that_nobody_repeats(
    dagster_app: Application, instance: dg.DagsterInstance, unique: str
) -> None:
    dagster_app.ingestion.ingest([submission(unique)], owner="somebody")
    for age_days, key in ((6, "young"), (8, "old")):
        with dagster_app.ledger.transaction() as tx:
            tx.execute(
                "INSERT INTO apex.submission (client, idempotency_key, body_hash, document_id,"
                " saga_id, created_at) SELECT 'http', %s, '', document_id, saga_id,"
                " now() - %s * interval '1 day' FROM apex.saga_state",
                [key, age_days],
            )
    recovery_tick(instance)
    with dagster_app.ledger.transaction() as tx:
        rows = tx.execute("SELECT idempotency_key FROM apex.submission").fetchall()
    keys = {row["idempotency_key"] for row in rows}
    assert keys == {None, "young"}
