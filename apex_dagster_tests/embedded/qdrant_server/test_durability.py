"""What is acknowledged survives; what is damaged stays alone."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from qdrant_client import QdrantClient, models

from apex_dagster_tests.embedded.qdrant_server.gateway_process import GatewayProcess

MakeGateway = Callable[..., GatewayProcess]
DOT = models.VectorParams(size=4, distance=models.Distance.DOT)
BATCH = 20
ROUNDS = 4


class Writer(threading.Thread):
    """Inserts batch after batch and notes which were acknowledged, until the gateway is gone."""

    def __init__(self, gateway: GatewayProcess, first: int) -> None:
        super().__init__()
        self.client, self.next = gateway.client(), first
        self.inserted: list[int] = []  # first id of each acknowledged batch
        self.committed: list[int] = []
        self.deleted: list[int] = []

    def run(self) -> None:
        try:
            while True:
                self.write_one()
        except Exception:  # whichever way the connection broke: it is what the test waits for
            self.client.close()

    def write_one(self) -> None:
        first = self.next
        self.next += BATCH
        ids: list[models.ExtendedPointId] = list(range(first, self.next))
        batch = models.Batch(ids=ids, vectors=[[1, 2, 3, 4]] * BATCH, payloads=[{"s": 0}] * BATCH)
        mode = models.UpdateMode.INSERT_ONLY
        self.client.upsert("c", points=batch, wait=True, update_mode=mode)
        self.inserted.append(first)
        self.client.set_payload("c", {"s": 1}, points=ids[:10], wait=True)
        self.committed.append(first)
        if first // BATCH % 3 == 0:
            self.client.delete("c", points_selector=ids[10:], wait=True)
            self.deleted.append(first)


def missing_or_wrong(client: QdrantClient, writer: Writer) -> list[object]:
    """Acknowledged changes that the gateway no longer knows of."""
    stored, _ = client.scroll("c", limit=10**6)
    status = {record.id: (record.payload or {}).get("s") for record in stored}
    wrong: list[object] = []
    for first in writer.inserted:
        kept = 10 if first in writer.deleted else BATCH
        in_flight = first == writer.next - BATCH  # its later steps may or may not have landed
        wrong += [n for n in range(first, first + (10 if in_flight else kept)) if n not in status]
        if first in writer.committed:
            wrong += [(n, "s") for n in range(first, first + 10) if status.get(n) != 1]
        if first in writer.deleted:
            wrong += [(n, "back") for n in range(first + 10, first + BATCH) if n in status]
    return wrong


@pytest.mark.parametrize(
    "flags",
    [[], ["--flush-s", "0.05"], ["--flush-s", "0.05", "--idle-s", "0"]],
    ids=["log only", "while flushing", "while flushing and vacuuming"],
)
def test_sigkill_loses_nothing_that_was_acknowledged(
    own_gateway: MakeGateway, flags: list[str]
) -> None:
    gateway = own_gateway(*flags).start()
    client = gateway.client()
    client.create_collection("c", vectors_config=DOT)
    client.create_payload_index("c", "s", field_schema="integer", wait=True)  # type: ignore[arg-type]
    writers: list[Writer] = []
    for _ in range(ROUNDS):
        writer = Writer(gateway, first=len(writers) * 1_000_000 + BATCH)
        writers.append(writer)
        writer.start()
        wait_until(lambda writer=writer: len(writer.inserted) >= 40)  # type: ignore[misc]
        gateway.kill()
        writer.join()
        client = gateway.start().client()
        assert [missing_or_wrong(client, each) for each in writers] == [[]] * len(writers)
    info = client.get_collection("c").payload_schema["s"]
    assert info.points == client.count("c").count


def test_sigterm_ends_in_order_with_status_0(own_gateway: MakeGateway) -> None:
    gateway = own_gateway().start()
    client = gateway.client()
    client.create_collection("c", vectors_config=DOT)
    client.upsert("c", points=models.Batch(ids=[1], vectors=[[1, 2, 3, 4]]), wait=True)
    assert gateway.stop() == 0
    assert gateway.log() == ""
    assert gateway.start().client().count("c").count == 1


def test_a_second_gateway_on_the_folder_says_who_is_in_the_way(own_gateway: MakeGateway) -> None:
    gateway = own_gateway().start()
    rival = own_gateway()
    with pytest.raises(AssertionError, match="is open in another Qdrant gateway"):
        rival.start()
    assert rival.process is not None
    assert rival.process.wait() == 1
    assert gateway.ask("GET", "/collections").status_code == 200


def test_a_taken_port_ends_the_gateway(own_gateway: MakeGateway, gateway: GatewayProcess) -> None:
    late = own_gateway("--port", str(gateway.port))  # the last --port counts
    with pytest.raises(AssertionError, match="address already in use"):
        late.start()
    assert late.process is not None
    assert late.process.wait() != 0


def test_other_machines_are_not_served(own_gateway: MakeGateway) -> None:
    with pytest.raises(AssertionError, match=r"0\.0\.0\.0 is not a loopback address"):
        own_gateway("--host", "0.0.0.0").start()


def test_an_empty_key_file_is_refused(own_gateway: MakeGateway) -> None:
    gateway = own_gateway()
    (gateway.folder / "key").write_text("\n")
    with pytest.raises(AssertionError, match="has to hold the API key"):
        gateway.start()


@pytest.mark.parametrize("damage", ["description", "log", "engine files"])
def test_a_broken_collection_does_not_keep_the_others_from_opening(
    own_gateway: MakeGateway, damage: str
) -> None:
    gateway = own_gateway().start()
    for name in ("good", "bad"):
        gateway.client().create_collection(name, vectors_config=DOT)
        gateway.client().upsert(name, points=models.Batch(ids=[1], vectors=[[1, 2, 3, 4]]))
    gateway.kill()
    folder = folder_of(gateway, "bad")
    if damage == "description":
        (folder / "collection.json").write_text("{")
    elif damage == "log":
        (folder / "shard" / "wal" / "open-1").write_bytes(b"x" * 100)
    else:
        (folder / "shard" / "edge_config.json").write_text("{")
    gateway.start()
    shown = folder.name if damage == "description" else "bad"
    assert "collection_not_opened" in gateway.log()
    assert gateway.ask("GET", "/").json()["broken_collections"] == 1
    assert gateway.client().count("good").count == 1
    answer = gateway.ask("POST", f"/collections/{shown}/points/count", {})
    assert answer.status_code == 500
    assert "could not be opened" in answer.json()["status"]["error"]
    assert gateway.ask("DELETE", f"/collections/{shown}").json()["result"] is True
    assert not folder.exists()
    assert gateway.ask("GET", "/").json()["broken_collections"] == 0


def test_what_a_crash_left_of_a_creation_or_deletion_is_cleared_away(
    own_gateway: MakeGateway,
) -> None:
    gateway = own_gateway()
    for name in (".new-1", ".deleted-2"):
        (gateway.data / "collections" / name / "shard").mkdir(parents=True)
    gateway.start()
    assert list((gateway.data / "collections").iterdir()) == []
    assert gateway.ask("GET", "/collections").json()["result"] == {"collections": []}


def test_the_deepest_payload_that_is_accepted_survives_a_crash(own_gateway: MakeGateway) -> None:
    """The engine's log reader stops at about 120 levels and then never opens the collection."""
    gateway = own_gateway().start()
    client = gateway.client()
    client.create_collection("c", vectors_config=DOT)
    deep: object = 1
    for _ in range(63):
        deep = [deep]
    payload = {"deep": deep}
    client.upsert("c", points=models.Batch(ids=[1], vectors=[[1, 2, 3, 4]], payloads=[payload]))
    client.set_payload("c", payload={"x": 1}, key="k" + ".k" * 60, points=[1], wait=True)
    gateway.kill()
    found = gateway.start().ask("GET", "/collections/c/points/1").json()["result"]["payload"]
    assert found["deep"] == deep
    assert json.dumps(found["k"]).count("{") == 61


def test_dirty_collections_are_flushed_and_their_log_cut(own_gateway: MakeGateway) -> None:
    """Seen from outside: after a flush a copy of the files without the log holds the points."""
    gateway = own_gateway("--flush-s", "0.1").start()
    client = gateway.client()
    client.create_collection("c", vectors_config=DOT)
    log = folder_of(gateway, "c") / "shard" / "wal" / "first-index"
    before = log.read_bytes()
    client.upsert("c", points=models.Batch(ids=[1], vectors=[[1, 2, 3, 4]]), wait=True)
    client.upsert("c", points=models.Batch(ids=[2], vectors=[[1, 2, 3, 4]]), wait=True)
    wait_until(lambda: log.read_bytes() != before)


def test_deleted_points_leave_the_disk_while_nobody_asks(own_gateway: MakeGateway) -> None:
    gateway = own_gateway("--flush-s", "0.1", "--idle-s", "0.3").start()
    client = gateway.client()
    vectors = models.VectorParams(size=256, distance=models.Distance.DOT)
    client.create_collection("c", vectors_config=vectors)
    for first in range(0, 8000, 1000):
        ids = list(range(first, first + 1000))
        client.upsert("c", points=models.Batch(ids=ids, vectors=[[1.0] * 256] * 1000), wait=True)
    client.delete("c", points_selector=list(range(7000)), wait=True)
    segments = folder_of(gateway, "c") / "shard" / "segments"
    first_segment = {entry.name for entry in segments.iterdir()}
    wait_until(lambda: not first_segment & {entry.name for entry in segments.iterdir()})
    assert client.count("c").count == 1000
    found = client.query_points("c", query=[1.0] * 256, limit=1000, with_vectors=True).points
    assert {point.id for point in found} == set(range(7000, 8000))


def test_sigkill_during_a_vacuum_neither_loses_nor_revives_points(
    own_gateway: MakeGateway,
) -> None:
    gateway = own_gateway("--flush-s", "0.05", "--idle-s", "0").start()
    client = gateway.client()
    client.create_collection("c", vectors_config=DOT)
    segments = folder_of(gateway, "c") / "shard" / "segments"
    kept: set[models.ExtendedPointId] = set()
    for first in range(0, ROUNDS * 5000, 5000):
        ids: list[models.ExtendedPointId] = list(range(first, first + 5000))
        batch = models.Batch(ids=ids, vectors=[[1, 2, 3, 4]] * 5000, payloads=[{"s": 1}] * 5000)
        client.upsert("c", points=batch, wait=True)
        before = {entry.name for entry in segments.iterdir()}
        client.delete("c", points_selector=ids[100:], wait=True)
        kept |= set(ids[:100])
        wait_until(lambda before=before: {entry.name for entry in segments.iterdir()} != before)  # type: ignore[misc]
        gateway.kill()
        client = gateway.start().client()
        stored, _ = client.scroll("c", limit=10**6)
        assert {record.id for record in stored} == kept
        assert client.count("c").count == len(kept)


def test_health_answers_while_the_engine_works(own_gateway: MakeGateway) -> None:
    """The engine thread decodes and applies; the event loop is free between its calls."""
    gateway = own_gateway().start()
    gateway.client().create_collection("c", vectors_config=DOT)
    writer = Writer(gateway, first=BATCH)
    writer.start()
    try:
        wait_until(lambda: len(writer.inserted) > 5)
        answers = [httpx.get(f"{gateway.url}/livez", timeout=2).status_code for _ in range(50)]
    finally:
        gateway.kill()
        writer.join()
    assert answers == [200] * 50


def folder_of(gateway: GatewayProcess, name: str) -> Path:
    for folder in (gateway.data / "collections").iterdir():
        if json.loads((folder / "collection.json").read_text())["name"] == name:
            return folder
    raise AssertionError(f"there is no folder of {name}")


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)
