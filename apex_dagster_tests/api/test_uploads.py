"""`POST /documents`: texts and files, extracted on the way."""

from __future__ import annotations

import pytest

from apex_dagster.access.keys import Scope, create_key
from apex_dagster.samples import sample_files
from apex_dagster_tests.api.requests import problem
from apex_dagster_tests.api.test_keys import bearer
from apex_dagster_tests.applications import assert_whole, copies

TEXT = b"Halcyon Shipping has moved its office to Port Amaranth, says Ada Brandt of Halcyon."
SAMPLES = {path.suffix: path for path in sample_files()}


def upload(client, content=TEXT, name="harbour.txt", *, kind=None, headers=None, **fields):
    part = (name, content, kind) if kind else (name, content)
    return client.post("/documents", files={"file": part}, data=fields, headers=headers or {})


def live(client, document_id):
    return client.get(f"/documents/{document_id}").json()


@pytest.mark.parametrize("suffix", [".txt", ".md", ".html", ".pdf", ".docx"])
def test_a_file_is_extracted_and_live_in_all_stores(client, driver, app, unique, suffix):
    content = SAMPLES[suffix].read_bytes()
    answer = upload(client, content, SAMPLES[suffix].name, document_id=unique)
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == 1
    assert_whole(app, unique)
    shown = live(client, unique)
    assert shown["entities"]
    assert len(shown["chunks"][0]["text"]) > 100


def test_what_is_said_of_a_file_goes_with_it(client, driver, app, unique):
    said = {"collection": "news", "metadata": '{"source": "newsroom", "serial": 7}'}
    answer = upload(client, name=f"C:\\reports\\{unique}.txt", **said)
    assert answer.json()["document_id"] == f"{unique}.txt"
    shown = live(client, f"{unique}.txt")
    assert shown["collection"] == "news"
    assert shown["metadata"].items() >= {"source": "newsroom", "serial": 7}.items()


def test_a_text_is_extracted(client, driver, app, unique):
    body = {"document_id": unique, "text": TEXT.decode(), "metadata": {"source": "newsroom"}}
    answer = client.post("/documents", json=body)
    assert answer.status_code == 200, answer.text
    assert_whole(app, unique)
    assert live(client, unique)["chunks"][0]["text"] == TEXT.decode()
    assert client.post("/documents", json=body).json()["unchanged"]


def test_the_same_file_again_changes_nothing_whatever_its_boundary(client, driver, unique):
    first = upload(client, document_id=unique, idempotency_key=unique)
    again = upload(client, document_id=unique, headers={"Idempotency-Key": unique})
    assert first.status_code == 200
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert again.content == first.content
    assert upload(client, document_id=unique).json()["unchanged"]
    other = upload(client, TEXT + b" More.", document_id=unique, idempotency_key=unique)
    problem(other, 422, "key-reused")


def test_an_expected_version_is_a_condition(client, driver, unique):
    assert upload(client, document_id=unique, expected_version="0").status_code == 200
    answer = upload(client, TEXT + b" More.", document_id=unique, expected_version="0")
    assert problem(answer, 409, "conflict")["live_version"] == 1
    answer = upload(client, TEXT + b" More.", document_id=unique, expected_version="1")
    assert answer.json()["version"] > 1


def test_a_file_that_cannot_be_read_leaves_nothing(client, driver, app, unique):
    answer = upload(client, b"%PDF-1.7 nothing of the kind", "a.pdf", document_id=unique)
    body = problem(answer, 500, "compensated")
    assert body["reason_class"] == "permanent"
    assert not any(copies(app, unique).values())


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("a.exe", None, "are not read; send one of: txt"),
        ("a.txt", "application/x-msdownload", "are not read; send one of: txt"),
        ("a.csv", None, "a document a row"),
        ("a.parquet", None, "a document a row"),
        ("a.txt", "text/csv", "a document a row"),
        ("a.jsonl", None, "/documents/ingest/batch"),
        ("a.json", None, "send it to /documents/ingest"),
    ],
)
def test_a_type_that_is_not_read_here_is_said_so_with_what_to_do(refusing, name, kind, words):
    body = problem(upload(refusing, name=name, kind=kind), 415, "media-type")
    assert body["field"] == "file"
    assert words in body["detail"]


def test_another_content_type_is_refused(refusing):
    answer = refusing.post("/documents", content=TEXT, headers={"Content-Type": "text/plain"})
    detail = problem(answer, 415, "media-type")["detail"]
    assert "application/json or multipart/form-data" in detail


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"document_id": ""}, "document_id"),
        ({"document_id": "x" * 201}, "document_id"),
        ({"collection": "a\nb"}, "collection"),
        ({"metadata": "{"}, "metadata"),
        ({"metadata": "[1]"}, "metadata"),
        ({"expected_version": "-1"}, "expected_version"),
        ({"expected_version": "9" * 5000}, "expected_version"),
        ({"idempotency_key": "x" * 256}, "idempotency_key"),
        ({"content": b""}, "file"),
        ({"name": "x" * 300 + ".txt"}, "file"),
        ({"headers": {"Idempotency-Key": "a"}, "idempotency_key": "b"}, "idempotency_key"),
    ],
)
def test_what_cannot_be_used_of_a_form_is_named(refusing, fields, field):
    assert problem(upload(refusing, **fields), 422, "invalid")["field"] == field


def test_a_form_without_its_file_is_refused(refusing):
    answer = refusing.post("/documents", files={"other": ("a.txt", TEXT)})
    assert problem(answer, 422, "invalid")["field"] == "file"
    answer = refusing.post("/documents", files={"file": ("a.txt", TEXT), "metadata": ("b", b"{}")})
    problem(answer, 400, "form")  # two files


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("multipart/form-data", TEXT),
        ("multipart/form-data; boundary=x", b"no boundary in here"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n"),
    ],
)
def test_a_form_that_is_none_is_refused(refusing, kind, content):
    answer = refusing.post("/documents", content=content, headers={"Content-Type": kind})
    problem(answer, 400, "form")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"document_id": "d"}, "text"),
        ({"text": "Copper."}, "document_id"),
        ({"document_id": "d", "text": "Copper.", "chunks": ["a"]}, "chunks"),
        ({"document_id": "d", "text": "Copper.", "entities": []}, "entities"),
    ],
)
def test_a_member_of_a_text_that_cannot_be_used_is_named(refusing, body, field):
    assert problem(refusing.post("/documents", json=body), 422, "invalid")["field"] == field


def test_too_large_a_file_is_refused(start_api):
    with start_api(api_body_bytes_max=2048).client() as client:
        assert problem(upload(client, TEXT * 100), 413, "too-large")["bytes_max"] == 2048


def test_a_page_of_another_site_cannot_make_a_browser_upload(client, driver, api, unique):
    for origin in ("https://example.org", "null", "http://127.0.0.1:1"):
        problem(upload(client, headers={"Origin": origin}), 403, "origin")
    answer = upload(client, document_id=unique, headers={"Origin": api.url})
    assert answer.status_code == 200


def test_an_upload_wants_a_key_that_may_write(start_api, app):
    token = create_key(app.ledger, "newsroom", [Scope.READ], by="ada")[1]
    with start_api(api_keys="true").client() as client:
        problem(upload(client), 401, "key")
        problem(upload(client, headers=bearer(token)), 403, "scope")
