"""A document is deleted: nothing of it is left or shown, whatever happens on the way."""

from __future__ import annotations

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from apex_dagster.composition import Application
from apex_dagster.ingestion.audit import verify
from apex_dagster.ingestion.codec import pack
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.records import StagedVersion
from apex_dagster.saga.extractions import extraction_bodies, submitted_documents
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.opening import deletion, open_sagas
from apex_dagster.saga.removal import DeletionReceipt, find_receipt
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.saga.submissions import Answer, keep_answers
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import (
    BuildApplication,
    assert_whole,
    copies,
    events,
    recovered,
)
from apex_dagster_tests.documents import document, submission, submissions
from apex_dagster_tests.ingestion.files import drop, take_in
from apex_dagster_tests.ingestion.probes import Probes
from apex_dagster_tests.ingestion.test_crash import recover
from apex_dagster_tests.ingestion.victim import WAIT_S, start_victim

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")
BEFORE_PIVOT = [
    *("opened", "claimed", "started:neo4j_write", "sent:postgres_write", "written:qdrant_write"),
    *("recorded:redis_write", "staged"),
]
AFTER_PIVOT = [
    "pivoted",
    *(f"{point}:{step}" for step in STEPS for point in ("removing", "removed")),
    *("published:redis_write", "marked", "erasing", "erased", "read_back", "closed"),
]
LEASE_S = 0.3
NOBODY = "http://127.0.0.1:1"


def ingest(app: Application, document_id: str, **fields: Any) -> Saga:
    [saga] = app.ingestion.ingest([submission(document_id, **fields)], owner="test")
    assert saga.published_at
    return saga


def delete(app: Application, document_id: str) -> Saga:
    [saga] = app.ingestion.ingest([Submission.deletion(document_id)], owner="test")
    return saga


def staged(app: Application, one: Submission) -> list[Saga]:
    """A saga that has only its pivot before it, held by "me"."""
    opened = app.ingestion.open([one], owner="me")
    return app.ingestion.stage("redis_write", opened.alive).alive


def receipt_of(app: Application, saga: Saga) -> dict[str, Any]:
    receipt = find_receipt(app.ledger, saga.saga_id)
    assert isinstance(receipt, DeletionReceipt)
    body: dict[str, Any] = json.loads(receipt.body)
    return body


def assert_deleted(app: Application, document_id: str) -> None:
    """At once, without any sweep: nothing anywhere, and the audit agrees."""
    assert app.reader.read_document(document_id) is None
    pointer = app.ledger.pointers([document_id])[document_id]
    assert (pointer["live_version"], pointer["live_saga_id"]) == (None, None)
    assert_whole(app, document_id)
    with Probes(app) as probes:
        assert not any(probes.committed([document_id]).values())
    sagas = app.ledger.list_sagas(document_id=document_id)
    assert extraction_bodies(app.ledger, [saga.saga_id for saga in sagas]) == {}
    assert verify(app.ledger, app.stores).differences == []


# -- what it does ----------------------------------------------------------------------------------


def test_a_deletion_leaves_nothing_and_a_receipt_that_says_so(
    app: Application, unique: str
) -> None:
    first, second = ingest(app, unique), ingest(app, unique, edition=2)
    ingest(app, f"{unique}-neighbour")
    before = copies(app, f"{unique}-neighbour")
    held = {name: store.digest(unique, 2) for name, store in app.stores.items()}
    saga = delete(app, unique)
    assert saga.saga_id.startswith(f"delete_{unique}_")
    assert (saga.status, saga.version, saga.replaces_saga_id) == ("completed", 3, second.saga_id)
    assert_deleted(app, unique)
    for store in app.stores.values():  # the superseded one as well, in its time of grace
        assert store.holdings([first.ref, second.ref]) == {first.saga_id: 0, second.saga_id: 0}
    assert copies(app, f"{unique}-neighbour") == before
    body = receipt_of(app, saga)
    assert {name: each["held"]["digest"] for name, each in body["stores"].items()} == held
    assert {
        name: each["held"]["version"] for name, each in body["stores"].items()
    } == dict.fromkeys(app.stores, 2)
    # Two versions of 3 chunks, 2 mentions and a relation each; the cache held the live one.
    removed = {name: each["removed"] for name, each in body["stores"].items()}
    assert removed == {"neo4j": 8, "postgres": 6, "qdrant": 6, "redis": 1}
    assert body["erased"] == {"extractions": 2}
    assert body["read_back"] == {
        "ledger": {"extractions": 0},
        "neo4j": {"graph": 0, "versions": 0},
        "postgres": {"chunks": 0, "full_text": 0, "versions": 0},
        "qdrant": {"vectors": 0},
        "redis": {"cache": 0},
    }
    assert body["requested_at"] <= body["deleted_at"] <= body["cleared_at"]
    assert (body["saga_id"], body["version"], body["document_id"]) == (saga.saga_id, 3, unique)


def test_entities_that_only_the_document_mentioned_go_at_once(
    app: Application, unique: str
) -> None:
    other = f"{unique} other"
    ingest(app, unique, entities=[{"name": unique, "type": "place"}], relations=[])
    ingest(app, other, entities=[{"name": other, "type": "place"}], relations=[])
    with Probes(app) as probes:
        assert probes.entities(unique) == {f"place:{unique}", f"place:{other}"}
        delete(app, unique)
        assert probes.entities(unique) == {f"place:{other}"}


def test_neither_the_audit_trail_nor_the_receipt_holds_content(
    app: Application, unique: str
) -> None:
    ingest(app, unique)
    saga = delete(app, unique)
    told = json.dumps([app.ledger.events(saga.saga_id), receipt_of(app, saga)], default=str)
    assert not [word for word in ("copper", "Shipping", "Amaranth", "edition") if word in told]


def test_a_batch_may_hold_versions_and_deletions(app: Application, unique: str) -> None:
    app.ingestion.ingest(submissions(unique, 4), owner="test")
    batch = [
        submission(f"{unique}-0", edition=2),
        Submission.deletion(f"{unique}-1"),
        submission(f"{unique}-2", poison=True),
        Submission.deletion(f"{unique}-3"),
    ]
    sagas = app.ingestion.ingest(batch, owner="test")
    ends = {saga.document_id[-1]: (saga.kind, saga.status.value) for saga in sagas}
    assert ends == {
        "0": ("ingest", "completed"),
        "1": ("delete", "completed"),
        "2": ("ingest", "compensated"),
        "3": ("delete", "completed"),
    }
    for number, live in enumerate((2, None, 1, None)):
        pointer = app.ledger.pointers([f"{unique}-{number}"])[f"{unique}-{number}"]
        assert pointer["live_version"] == live
        app.ingestion.sweep()
        assert_whole(app, f"{unique}-{number}")


def test_what_waits_in_quarantine_is_erased_and_says_so(app: Application, unique: str) -> None:
    ingest(app, unique)
    [bad] = app.ingestion.ingest([submission(unique, edition=2, dim=7)], owner="test")
    assert [entry["saga_id"] for entry in app.ledger.quarantined()] == [bad.saga_id]
    saga = delete(app, unique)
    assert app.ledger.quarantined() == []
    assert events(app, bad.saga_id)[-1] == ("quarantine_dropped", None)
    assert receipt_of(app, saga)["erased"] == {"extractions": 2, "quarantined": 1}
    assert submitted_documents(app.ledger, [bad.saga_id]) == {}
    assert_deleted(app, unique)


def test_stored_answers_are_erased(app: Application, unique: str) -> None:
    one = submission(unique)
    extraction = app.ingestion._extractor.extract(one.document)
    opening = replace(deletion(unique, client="c", idempotency_key="k"), document=one.document)
    opening = replace(opening, content_hash="h", body=pack(extraction), deletes=False)
    [opened] = open_sagas(app.ledger, [opening])
    app.ingestion.recovery.drive([opened.saga], owner="test")  # type: ignore[union-attr]
    keep_answers(app.ledger, {("c", "k"): Answer(status=200, body=b"yes")})
    saga = delete(app, unique)
    assert receipt_of(app, saga)["erased"] == {"answers": 1, "extractions": 1}
    [again] = open_sagas(app.ledger, [opening])
    assert (again.disposition, again.answer) == ("repeated", None)  # type: ignore[union-attr]


# -- again and again -------------------------------------------------------------------------------


def test_deleting_again_leads_to_the_deletion_that_was(app: Application, unique: str) -> None:
    ingest(app, unique)
    saga, total = delete(app, unique), len(app.ledger.list_sagas())
    assert delete(app, unique).saga_id == saga.saga_id
    assert len(app.ledger.list_sagas()) == total


def test_deleting_at_the_same_time_joins(app: Application, unique: str) -> None:
    ingest(app, unique)
    first = app.ingestion.open([Submission.deletion(unique)], owner="me")
    second = app.ingestion.open([Submission.deletion(unique)], owner="you")
    assert [saga.saga_id for saga in second.joined] == [saga.saga_id for saga in first.alive]
    assert second.alive == []


def test_deleting_what_was_never_submitted_leaves_no_trace(app: Application, unique: str) -> None:
    assert app.ingestion.ingest([Submission.deletion(unique)], owner="test") == []
    assert app.ledger.pointers([unique]) == {}


def test_what_failed_after_a_deletion_is_deleted_as_well(app: Application, unique: str) -> None:
    ingest(app, unique)
    first = delete(app, unique)
    app.ingestion.ingest([submission(unique, dim=7)], owner="test")
    second = delete(app, unique)
    assert second.saga_id != first.saga_id
    assert receipt_of(app, second)["erased"] == {"extractions": 1, "quarantined": 1}
    assert receipt_of(app, second)["stores"]["qdrant"] == {"held": {"items": 0}, "removed": 1}
    assert_deleted(app, unique)


@pytest.mark.parametrize("edition", [1, 2])
def test_an_ingest_after_a_deletion_makes_the_document_live_again(
    app: Application, unique: str, edition: int
) -> None:
    ingest(app, unique)
    gone = delete(app, unique)
    saga = ingest(app, unique, edition=edition)
    assert (saga.version, saga.replaces_saga_id) == (3, gone.saga_id)
    document = app.reader.read_document(unique)
    assert document is not None
    assert document.ref == saga.ref
    assert verify(app.ledger, app.stores).differences == []
    assert set(app.stores["qdrant"].contents([unique])) == {gone.saga_id, saga.saga_id}
    app.ingestion.sweep()
    assert set(app.stores["qdrant"].contents([unique])) == {saga.saga_id}
    assert_whole(app, unique)
    assert verify(app.ledger, app.stores).differences == []


# -- beside others ---------------------------------------------------------------------------------


def test_what_was_submitted_before_a_deletion_never_becomes_live(
    app: Application, unique: str
) -> None:
    ingest(app, unique)
    earlier = staged(app, submission(unique, edition=2))
    delete(app, unique)
    assert app.reader.read_document(unique) is None
    outcome = app.ingestion.commit(earlier, owner="me")
    assert [(saga.error or {})["class"] for saga in outcome.failed] == ["superseded"]
    app.compensation.compensate([earlier[0].saga_id], owner="me")
    app.ingestion.sweep()
    assert_deleted(app, unique)


def test_a_first_version_under_way_never_becomes_live_either(app: Application, unique: str) -> None:
    """Nothing is live before or after: what tells the two apart is the deletion's own version."""
    earlier = staged(app, submission(unique))
    assert delete(app, unique).status is Status.COMPLETED
    outcome = app.ingestion.commit(earlier, owner="me")
    assert [(saga.error or {})["class"] for saga in outcome.failed] == ["superseded"]
    app.compensation.compensate([earlier[0].saga_id], owner="me")
    app.ingestion.sweep()
    assert_deleted(app, unique)


def test_a_deletion_that_comes_later_starts_again_on_what_has_become_live(
    app: Application, unique: str
) -> None:
    ingest(app, unique)
    earlier = staged(app, submission(unique, edition=2))
    later = staged(app, Submission.deletion(unique))
    assert app.ingestion.commit(earlier, owner="me").failed == []
    outcome = app.ingestion.commit(later, owner="me")
    [restarted] = outcome.completed
    assert (restarted.kind, restarted.arrival) == ("delete", later[0].arrival)
    assert restarted.replaces_saga_id == earlier[0].saga_id
    [loser] = app.ledger.sagas([later[0].saga_id])
    assert (loser.status, loser.version) == (Status.COMPENSATED, 3)
    assert {step: undo["skipped"] for step, undo in loser.undone_steps.items()} == dict.fromkeys(
        STEPS, "the step wrote nothing"
    )
    app.ingestion.sweep()
    assert_deleted(app, unique)


def test_a_deletion_that_came_before_what_is_live_is_superseded(
    app: Application, unique: str
) -> None:
    ingest(app, unique)
    earlier = staged(app, Submission.deletion(unique))
    saga = ingest(app, unique, edition=2)
    outcome = app.ingestion.commit(earlier, owner="me")
    assert [(one.error or {})["class"] for one in outcome.failed] == ["superseded"]
    app.compensation.compensate([earlier[0].saga_id], owner="me")
    assert app.ledger.pointers([unique])[unique]["live_saga_id"] == saga.saga_id
    app.ingestion.sweep()
    assert_whole(app, unique)
    assert verify(app.ledger, app.stores).differences == []


def test_of_many_writers_and_deleters_the_last_to_arrive_wins(
    build_application: BuildApplication, unique: str
) -> None:
    # As many attempts as in production: they do deadlock.
    app = build_application(step_attempts=5, undo_attempts=8, step_timeout_s=30.0)

    def write(number: int) -> None:
        one = submission(unique, edition=number) if number % 2 else Submission.deletion(unique)
        app.ingestion.ingest([one], owner=f"writer-{number}")

    write(1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(2, 10)))
    sagas = app.ledger.list_sagas(document_id=unique, limit=200)
    assert {saga.status for saga in sagas} <= {Status.COMPLETED, Status.COMPENSATED}
    last = max(sagas, key=lambda saga: (saga.arrival, saga.version))
    pointer = app.ledger.pointers([unique])[unique]
    assert last.saga_id == (pointer["live_saga_id"] or pointer["tombstone_saga_id"])
    app.ingestion.sweep()
    assert_whole(app, unique)
    assert verify(app.ledger, app.stores).differences == []


def test_a_version_that_is_not_published_yet_is_published_first(
    app: Application, unique: str
) -> None:
    with armed("pivoted=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.ingest([submission(unique)], owner="dead")
    delete(app, unique)
    [deletion_, version] = app.ledger.list_sagas(document_id=unique)
    assert version.published_at < deletion_.ended_at  # type: ignore[operator]
    assert_deleted(app, unique)


def test_what_follows_a_deletion_that_is_not_over_ends_that_first(
    app: Application, unique: str
) -> None:
    ingest(app, unique)
    with armed("pivoted=raise"), pytest.raises(SimulatedCrash):
        delete(app, unique)
    saga = ingest(app, unique, edition=2)
    [_, gone, _] = app.ledger.list_sagas(document_id=unique)
    assert gone.published_at < saga.ended_at  # type: ignore[operator]
    assert receipt_of(app, gone)["read_back"]["qdrant"] == {"vectors": 0}
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_a_late_stage_of_a_deleted_version_shows_nothing_and_is_swept(
    app: Application, unique: str
) -> None:
    saga = ingest(app, unique)
    [body] = extraction_bodies(app.ledger, [saga.saga_id]).values()
    delete(app, unique)
    late = app.ingestion._extractor.extract(submission(unique).document)
    assert pack(late) == body
    for store in app.stores.values():
        store.stage([StagedVersion(ref=saga.ref, extraction=late)])
    assert app.reader.read_document(unique) is None
    with Probes(app) as probes:
        assert not any(probes.committed([unique]).values())
    assert app.stores["postgres"].holdings([saga.ref]) == {saga.saga_id: 0}  # it sees the pointer
    app.ingestion.sweep()
    assert_deleted(app, unique)


# -- whatever dies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", BEFORE_PIVOT + AFTER_PIVOT)
def test_a_crash_on_the_way_is_finished_by_recovery(
    build_application: BuildApplication, unique: str, point: str
) -> None:
    victim = build_application(lease_s=LEASE_S)
    ingest(victim, unique)
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        delete(victim, unique)
    if point in AFTER_PIVOT:
        assert victim.reader.read_document(unique) is None  # not a moment longer
    else:
        assert victim.reader.read_document(unique) is not None
    saga = recover(build_application(lease_s=LEASE_S), unique)
    assert (saga.kind, saga.status, saga.version) == ("delete", Status.COMPLETED, 2)
    assert not any(
        count
        for paths in receipt_of(victim, saga)["read_back"].values()
        for count in paths.values()
    )
    assert_deleted(victim, unique)


@pytest.mark.parametrize(
    "point", ["written:qdrant_write", "pivoted", "removed:neo4j_write", "erased"]
)
def test_kill_9_of_the_process_is_finished_by_recovery(
    build_application: BuildApplication, endpoints: Endpoints, unique: str, point: str
) -> None:
    app = build_application(lease_s=1.0)
    ingest(app, unique)
    victim = start_victim(app, endpoints, unique, failpoints=f"{point}=kill", edition=0)
    output, _ = victim.communicate(timeout=WAIT_S)
    assert victim.returncode == -signal.SIGKILL, output
    assert recover(app, unique).status is Status.COMPLETED
    assert_deleted(app, unique)


def test_a_deletion_that_cannot_go_on_before_its_pivot_ends_compensated(
    app: Application, unique: str
) -> None:
    ingest(app, unique)
    before = copies(app, unique)
    with armed("started:qdrant_write=reject"):
        saga = delete(app, unique)
    assert saga.status is Status.COMPENSATED
    assert app.ledger.quarantined() == []  # whoever asked was told, and asks again
    assert copies(app, unique) == before
    app.ingestion.sweep()
    assert copies(app, unique) == before
    assert verify(app.ledger, app.stores).differences == []
    delete(app, unique)
    assert_deleted(app, unique)


def test_while_a_store_is_down_the_removal_stays_open_and_ends_when_it_is_back(
    app: Application, build_application: BuildApplication, endpoints: Endpoints, unique: str
) -> None:
    ingest(app, unique)
    up, down = app.stores["qdrant"], build_application(replace(endpoints, qdrant_url=NOBODY))
    step = app.engine.steps[app.engine.step_names.index("qdrant_write")]
    opened = staged(app, Submission.deletion(unique))
    step.store = down.stores["qdrant"]  # type: ignore[attr-defined]
    [saga] = app.ingestion.commit(opened, owner="me").completed
    assert saga.published_at is None
    assert find_receipt(app.ledger, unique) is None
    assert app.reader.read_document(unique) is None
    step.store = up  # type: ignore[attr-defined]
    recovered(app, saga.saga_id)
    assert_deleted(app, unique)


def test_what_is_still_shown_keeps_the_removal_open(
    app: Application, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that says that it has removed something is not believed: it is asked."""
    ingest(app, unique)
    qdrant = app.stores["qdrant"]
    monkeypatch.setattr(qdrant, "remove", lambda batch: {r.ref.saga_id: 3 for r in batch})
    saga = delete(app, unique)
    assert (saga.status, saga.published_at) == (Status.COMPLETED, None)
    assert events(app, saga.saga_id)[-1] == ("publish_failed", None)
    monkeypatch.undo()
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET lease_expires_at = '2000-01-01'")
    recovered(app, saga.saga_id)
    assert_deleted(app, unique)


# -- what the audit finds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("UPDATE apex.documents SET tombstone_version = 1", "documents"),
        ("UPDATE apex.documents SET deleted_at = NULL", "documents"),
        (
            "UPDATE apex.documents SET tombstone_version = NULL, tombstone_saga_id = NULL",
            "documents",
        ),
        ("UPDATE apex.deletion_receipt SET body = body || ' '", "deletion_receipt"),
        ("DELETE FROM apex.deletion_receipt", "deletion_receipt"),
        ("UPDATE apex.saga_state SET kind = 'ingest'", "saga_state"),
        (
            "INSERT INTO apex.extraction (saga_id, name, collection, metadata, body)"
            " SELECT saga_id, '', '', '{}', '' FROM apex.saga_state WHERE kind = 'ingest'",
            "extraction",
        ),
    ],
)
def test_tampering_with_a_deletion_is_found(
    app: Application, unique: str, statement: str, place: str
) -> None:
    ingest(app, unique)
    delete(app, unique)
    assert verify(app.ledger, app.stores).differences == []
    with app.ledger.transaction() as tx:
        tx.execute("SET LOCAL session_replication_role = replica")
        assert tx.execute(statement.encode()).rowcount > 0
    found = {difference.place for difference in verify(app.ledger, app.stores).differences}
    assert place in found


def test_a_deleted_version_that_a_store_shows_again_is_found(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    delete(app, unique)
    late = app.ingestion._extractor.extract(submission(unique).document)
    app.stores["neo4j"].stage([StagedVersion(ref=saga.ref, extraction=late)])
    [difference] = verify(app.ledger, app.stores).differences
    assert (difference.place, difference.saga_id) == ("neo4j", saga.saga_id)


# -- the file it came in ---------------------------------------------------------------------------


def test_the_file_that_it_came_in_is_deleted_with_its_sidecar(
    app: Application, unique: str
) -> None:
    path = drop(app, unique)
    sidecar = path.with_name(f"{path.name}.meta.json")
    sidecar.write_text('{"metadata": {"secret": "word"}}')
    take_in(app, path)
    away = app.inbox.folder / "processed"
    assert {each.name for each in away.iterdir()} == {path.name, sidecar.name}
    delete(app, unique)
    app.inbox.settle(app.ledger)
    assert list(away.iterdir()) == []
    assert_deleted(app, unique)


def test_a_file_that_was_dropped_since_has_its_own_turn(app: Application, unique: str) -> None:
    take_in(app, drop(app, unique))
    delete(app, unique)
    again = drop(app, unique)
    app.inbox.settle(app.ledger)
    assert again.exists()
    assert list((app.inbox.folder / "processed").iterdir()) == []
    assert take_in(app, again).version == 3
    assert not again.exists()
    assert (app.inbox.folder / "processed" / again.name).exists()


def test_a_file_that_waits_in_quarantine_is_deleted(app: Application, unique: str) -> None:
    path = drop(app, unique)
    with armed("sent:qdrant_write=reject"):
        take_in(app, path)
    away = app.inbox.folder / "quarantine"
    assert {each.name for each in away.iterdir()} == {path.name, f"{path.name}.reason.json"}
    delete(app, unique)
    app.inbox.settle(app.ledger)
    assert list(away.iterdir()) == []


def test_a_file_that_holds_other_documents_stays(app: Application, unique: str) -> None:
    lines = [document(f"{unique}-{number}").content for number in range(2)]
    path = app.inbox.folder / f"{unique}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines))
    sagas = app.ingestion.ingest(app.sources.read([f"inbox:{path.name}"]), owner="test")
    app.inbox.settle(app.ledger)
    away = app.inbox.folder / "processed" / path.name
    for saga, stays in zip(sagas, (True, False), strict=True):
        delete(app, saga.document_id)
        app.inbox.settle(app.ledger)
        assert away.exists() == stays
