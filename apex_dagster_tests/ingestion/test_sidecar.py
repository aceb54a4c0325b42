"""Sidecars, and tables whose rows are documents: from the inbox into the stores, and put away."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from apex_dagster.composition import Application
from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.prepared import Refused
from apex_dagster.ingestion import moving
from apex_dagster.ingestion.inbox import ERASED, PROCESSED
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.ingestion.sidecar import (
    SIDECAR_BYTES_MAX,
    body_hash,
    file_hash,
    read_sidecar,
    sidecar_of,
)
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "voyages.csv"
BOAT = "The Aurora lay in the ice off Gull Island."


def drop(app: Application, name: str, content: str, sidecar: Any = None) -> Path:
    """A file in the inbox, and the sidecar that was put there before it."""
    path = app.inbox.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if sidecar is not None:
        told = sidecar if isinstance(sidecar, str) else json.dumps(sidecar)
        sidecar_of(path).write_text(told)
    path.write_text(content)
    return path


def read(app: Application, path: str | Path = "inbox:", **given: Any) -> list[Submission]:
    return app.sources.read([str(path)], **given)


def ingest(app: Application) -> list[Saga]:
    return app.ingestion.ingest(read(app), owner="test")


def tree(app: Application) -> set[str]:
    """All files below the inbox."""
    folder = app.inbox.folder
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def pair(place: str, name: str) -> set[str]:
    return {f"{place}{name}", f"{place}{name}.meta.json"}


# -- what it says --------------------------------------------------------------------------------


def test_a_sidecar_describes_any_file_and_the_run_has_the_last_word(
    app: Application, unique: str
) -> None:
    told = {"collection": "logs", "metadata": {"ship": "Aurora", "by": "sidecar"}}
    drop(app, f"ships/{unique}.txt", BOAT, told)
    [one] = read(app)
    assert (one.document.collection, one.document.metadata) == ("logs", told["metadata"])
    [other] = read(app, collection="mine", metadata={"by": "run"})
    assert (other.document.collection, other.document.metadata) == (
        "mine",
        {"ship": "Aurora", "by": "run"},
    )


def test_without_a_collection_in_the_sidecar_the_folder_is_it(
    app: Application, unique: str
) -> None:
    drop(app, f"ships/{unique}.txt", BOAT, {"metadata": {"a": 1}})
    [one] = read(app)
    assert one.document.collection == "ships"


def test_files_of_this_machine_have_sidecars_too(app: Application, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path)
    shutil.copy(sidecar_of(EXAMPLE), tmp_path)
    for path in (tmp_path, tmp_path / EXAMPLE.name):
        found = read(app, path)
        assert [s.document.document_id for s in found if "csv" in s.document.document_id] == [
            "voyages.csv#007",
            "voyages.csv#008",
            "voyages.csv#009",
        ]
        assert not any("meta.json" in s.document.document_id for s in found)
    with pytest.raises(InvalidInput, match=r"is a sidecar; give the file it belongs to"):
        read(app, sidecar_of(tmp_path / EXAMPLE.name))


WRONG = [
    ("{", "it is not valid JSON"),
    ("[]", "it must be one JSON object, not a list"),
    ({"colection": "x"}, "colection: is unknown; use collection, metadata, columns"),
    ({"collection": 3}, "collection: expected a text, not a number"),
    ({"collection": ""}, "collection: must be 1 to 200 printable characters"),
    ({"metadata": []}, "metadata: expected an object, not a list"),
    ({"columns": "x"}, "columns: expected an object, not a text"),
]


@pytest.mark.parametrize(("stated", "reason"), WRONG, ids=[reason[:30] for _, reason in WRONG])
def test_a_wrong_sidecar_is_told_with_the_member_and_the_fix(stated: Any, reason: str) -> None:
    content = stated if isinstance(stated, str) else json.dumps(stated)
    with pytest.raises(Refused, match=reason):
        read_sidecar(content.encode())


@pytest.mark.parametrize(
    ("name", "sidecar", "reason"),
    [
        ("a.txt", {"tags": []}, "a.txt.meta.json: tags: is unknown"),
        ("a.txt", {"columns": {}}, "a.txt.meta.json: columns: a.txt is no table; leave them out"),
        ("a.csv", {"columns": {"id": "no"}}, "a.csv: columns.id: there is no column 'no'"),
        ("a.txt", "x" * (SIDECAR_BYTES_MAX + 1), "a.txt.meta.json has 1048577 bytes, the limit is"),
    ],
)
def test_a_file_with_a_wrong_sidecar_is_rejected_whole(
    app: Application, name: str, sidecar: Any, reason: str
) -> None:
    path = drop(app, name, "id,text\n1,x\n", sidecar)
    [one] = read(app)
    assert (one.document.document_id, one.document.content) == (name, b"")
    assert reason in str(one.rejection)
    assert one.body_hash == body_hash(path)


def test_the_hash_covers_both(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(BOAT)
    alone = body_hash(path)
    assert alone == file_hash(path)
    hashes = {alone}
    for told in ("{}", '{"collection": "x"}'):
        sidecar_of(path).write_text(told)
        hashes.add(body_hash(path))
    assert len(hashes) == 3


# -- in the inbox --------------------------------------------------------------------------------


def test_the_example_goes_from_the_inbox_into_all_stores(app: Application, unique: str) -> None:
    told = json.loads(sidecar_of(EXAMPLE).read_text())
    path = drop(app, f"{unique}.csv", EXAMPLE.read_text(), told)
    assert [saga.status for saga in ingest(app)] == [Status.COMPLETED] * 3
    app.inbox.settle(app.ledger)
    assert tree(app) == pair("processed/", path.name)
    for row in ("007", "008", "009"):
        assert_whole(app, f"{unique}.csv#{row}")
    with app.ledger.transaction() as tx:
        rows = tx.execute(
            "SELECT title, collection, metadata FROM apex.document_versions ORDER BY document_id"
        ).fetchall()
    assert [row["title"] for row in rows][1:] == ["The Aurora in the ice", "Meridian Bank pays"]
    assert {row["collection"] for row in rows} == {"voyages"}
    assert [row["metadata"] for row in rows] == [
        {"archive": "Port Amaranth", "year": 1911, "port_code": "0042"},
        {"archive": "Port Amaranth", "year": 1912, "port_code": "0042"},
        {"archive": "Port Amaranth", "port_code": "0113"},
    ]


def test_a_corrected_row_is_the_only_new_version(app: Application, unique: str) -> None:
    told = json.loads(sidecar_of(EXAMPLE).read_text())
    drop(app, f"{unique}.csv", EXAMPLE.read_text(), told)
    ingest(app)
    app.inbox.settle(app.ledger)
    first, *rows = EXAMPLE.read_text().replace("nine days", "ten days").splitlines()
    drop(app, f"{unique}.csv", "\n".join([first, *reversed(rows)]), told)
    ingest(app)
    app.inbox.settle(app.ledger)
    live = app.ledger.pointers([f"{unique}.csv#{row}" for row in ("007", "008", "009")])
    assert sorted(pointer["live_version"] for pointer in live.values()) == [1, 1, 2]
    assert live[f"{unique}.csv#008"]["live_version"] == 2
    expected = pair("processed/", f"{unique}.csv") | pair("processed/", f"{unique}~1.csv")
    assert tree(app) == expected


def test_a_bad_row_takes_no_other_with_it_and_the_file_tells_why(
    app: Application, unique: str
) -> None:
    name = f"{unique}.csv"
    drop(app, name, f"id,text\n1,{BOAT}\n2,\n1,{BOAT}\n", {"metadata": {"a": 1}})
    sagas = {saga.document_id: saga.status for saga in ingest(app)}
    app.inbox.settle(app.ledger)
    assert sagas == {
        f"{name}#1": Status.COMPLETED,
        f"{name}#2": Status.COMPENSATED,
        f"{name}#3": Status.COMPENSATED,
    }
    assert_whole(app, f"{name}#1")
    assert_whole(app, f"{name}#2")
    away = pair("quarantine/", name)
    assert tree(app) == away | {f"quarantine/{name}.reason.json"}
    told = json.loads((app.inbox.folder / "quarantine" / f"{name}.reason.json").read_text())
    assert f"{name}, row 2: it has no text in column 'text'" in told["reason"]
    assert f"{name}, row 3: row 1 has '1' in column 'id' as well" in told["reason"]
    assert told["ingested"] == [f"{name}#1"]


def test_a_damaged_table_takes_no_other_file_of_its_batch_with_it(
    app: Application, unique: str
) -> None:
    good, bad = f"{unique}.parquet", f"{unique}-bad.parquet"
    frame = pd.DataFrame({"id": [7], "text": [BOAT], "at": [pd.Timestamp("1912-04-15", tz="UTC")]})
    app.inbox.folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(app.inbox.folder / good)
    drop(app, bad, "PAR1 but nothing else", {"collection": "x"})
    sagas = {saga.document_id: saga.status for saga in ingest(app)}
    assert sagas == {f"{good}#7": Status.COMPLETED, bad: Status.COMPENSATED}
    app.inbox.settle(app.ledger)
    away = {f"quarantine/{bad}.reason.json"} | pair("quarantine/", bad)
    assert tree(app) == {f"processed/{good}"} | away
    told = json.loads((app.inbox.folder / "quarantine" / f"{bad}.reason.json").read_text())
    assert f"{bad}: the table cannot be read" in told["reason"]
    with app.ledger.transaction() as tx:
        [row] = tx.execute("SELECT metadata FROM apex.document_versions").fetchall()
    assert row["metadata"] == {"at": "1912-04-15T00:00:00+00:00"}
    assert_whole(app, f"{good}#7")


def test_a_sidecar_alone_is_no_document_and_waits_for_its_file(
    app: Application, unique: str
) -> None:
    path = app.inbox.folder / f"{unique}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    sidecar_of(path).write_text('{"collection": "x"}')
    assert app.inbox.files() == []
    assert read(app) == []
    path.write_text(BOAT)
    [file] = app.inbox.files()
    assert file.path == path


def test_a_link_is_no_sidecar(app: Application, unique: str, tmp_path: Path) -> None:
    outside = tmp_path / "secret.json"
    outside.write_text('{"metadata": {"secret": "1"}}')
    path = drop(app, f"{unique}.txt", BOAT)
    sidecar_of(path).symlink_to(outside)
    [one] = read(app)
    assert (one.document.metadata, one.body_hash) == ({}, file_hash(path))


def test_a_file_whose_sidecar_changes_counts_as_changed(app: Application, unique: str) -> None:
    path = drop(app, f"{unique}.txt", BOAT)
    seen = [app.inbox.files()[0].signature]
    for told in ("{}", '{"a": 1}'):
        sidecar_of(path).write_text(told)
        seen.append(app.inbox.files()[0].signature)
    os.utime(sidecar_of(path), ns=(1, 1))
    seen.append(app.inbox.files()[0].signature)
    assert len(set(seen)) == 4


def test_a_sidecar_that_came_late_keeps_the_file_for_a_turn_of_its_own(
    app: Application, unique: str
) -> None:
    path = drop(app, f"{unique}.txt", BOAT)
    [saga] = app.ingestion.open(read(app), owner="test").alive
    sidecar_of(path).write_text('{"collection": "late"}')
    app.ingestion.commit(app.ingestion.extract([saga]).alive, owner="test")
    app.inbox.settle(app.ledger)
    assert tree(app) == pair("", path.name)
    [again] = ingest(app)
    assert again.version == 2
    app.inbox.settle(app.ledger)
    assert tree(app) == pair("processed/", path.name)


def test_released_from_quarantine_and_dropped_a_sidecar_goes_with_its_file(
    app: Application, unique: str
) -> None:
    inbox = app.inbox
    for target, left in ((PROCESSED, 2), (ERASED, 0)):
        path = drop(app, f"{unique}-{target}.txt", BOAT, {"collection": "x"})
        known = body_hash(path)
        uri = f"inbox:{path.name}"
        inbox.put_away(uri, known, "quarantine", {"reason": "a"})
        assert pair("quarantine/", path.name) <= tree(app)
        inbox.put_away(uri, known, target, None)
        now = {name for name in tree(app) if path.name in name}
        assert len(now - {f"quarantine/{path.name}.reason.json"}) == left


# -- crashes and races ---------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["processed", "quarantine"])
@pytest.mark.parametrize("point", ["sidecar_copied", "file_moved"])
def test_a_crash_while_it_moves_parts_no_file_from_its_sidecar(
    app: Application, unique: str, point: str, target: str
) -> None:
    told = {"collection": "x"}
    good = target == "processed"
    path = drop(app, f"{unique}.txt", BOAT if good else " ", told)
    known = body_hash(path)
    [saga] = ingest(app)
    assert (saga.status is Status.COMPLETED) == good
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        app.inbox.settle(app.ledger)
    for file in (p for p in app.inbox.folder.rglob("*.txt")):
        assert body_hash(file) == known
    app.inbox.settle(app.ledger)
    [moved] = app.inbox.folder.rglob("*.txt")
    assert moved.is_relative_to(app.inbox.folder / target)
    assert body_hash(moved) == known
    assert app.inbox.files() == []
    assert app.ledger.unsettled_sources() == []
    assert moved.with_name(f"{moved.name}.reason.json").exists() != good


def test_what_a_crash_left_over_becomes_no_other_files_sidecar(
    app: Application, unique: str
) -> None:
    path = drop(app, f"{unique}.txt", BOAT, {"collection": "x"})
    with armed("sidecar_copied=raise"), pytest.raises(SimulatedCrash):
        moving.move(path, app.inbox.folder / "processed" / path.name, body_hash(path))
    sidecar_of(path).unlink()
    path.write_text("another file, without a sidecar")
    moved = moving.move(path, app.inbox.folder / "processed" / path.name, body_hash(path))
    assert moved is not None
    assert not sidecar_of(moved).exists()


def about_to_move(folder: Path) -> tuple[Path, Path, str]:
    """A file with its sidecar, where it is to go, and the hash that it is known by."""
    path = folder / "a.txt"
    path.write_text(BOAT)
    sidecar_of(path).write_text("{}")
    return path, folder / "processed" / path.name, body_hash(path)


@pytest.mark.parametrize("changed", ["file", "sidecar"])
def test_what_is_overwritten_at_the_last_moment_has_its_own_turn(
    tmp_path: Path, changed: str
) -> None:
    path, away, known = about_to_move(tmp_path)
    newer = path if changed == "file" else sidecar_of(path)
    newer.write_text("newer")
    assert moving.move(path, away, known) is None
    assert newer.read_text() == "newer"
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"a.txt", "a.txt.meta.json"}
    assert list(away.parent.iterdir()) == []


def test_a_sidecar_put_there_while_the_file_moves_is_left_for_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, away, known = about_to_move(tmp_path)

    def meanwhile(point: str) -> None:
        if point == "file_moved":
            sidecar_of(path).write_text("for the next")

    monkeypatch.setattr(moving, "reach", meanwhile)
    assert moving.move(path, away, known) == away
    assert sidecar_of(path).read_text() == "for the next"
    assert body_hash(away) == known


def test_of_two_processes_that_move_a_file_one_does_and_the_pair_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has looked, and copied the sidecar, when the first is through."""
    path, away, known = about_to_move(tmp_path)
    outcomes: list[Path | None] = []

    def meanwhile(point: str) -> None:
        if point == "sidecar_copied":
            monkeypatch.setattr(moving, "reach", lambda point: None)
            outcomes.append(moving.move(path, away, known))

    monkeypatch.setattr(moving, "reach", meanwhile)
    assert moving.move(path, away, known) is None
    [moved] = outcomes
    assert moved is not None
    assert body_hash(moved) == known
    assert {p.name for p in away.parent.iterdir()} == {moved.name, f"{moved.name}.meta.json"}
    assert not sidecar_of(path).exists()
