"""The sample corpus on its way through an inbox."""

import pytest

from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.ingestion.sample_drop import SampleDrop
from apex_dagster.ingestion.sources import SAMPLES
from apex_dagster.saga.states import Status
from apex_dagster.samples import sample_files

LECTURE = "okafor-lecture.txt"


def test_dropped_or_launched_the_corpus_is_the_same_documents(app):
    samples = SampleDrop(app.inbox, app.ledger)
    samples.drop()
    expected = {d.document_id: d.content_hash for d in samples.documents}
    for path in (SAMPLES, "inbox:"):
        read = [submission.document for submission in app.sources.read([path])]
        assert {document.document_id: content_hash(document) for document in read} == expected


def test_whole_files_appear_in_the_inbox_and_nothing_else(app):
    assert SampleDrop(app.inbox, app.ledger).drop() == len(sample_files())
    folder = app.inbox.folder / "samples"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in sample_files()
    }


def test_dropping_again_keeps_what_waits_and_spares_what_is_not_ours(app):
    samples = SampleDrop(app.inbox, app.ledger)
    samples.drop()
    before = app.inbox.files()
    samples.drop()
    assert app.inbox.files() == before
    mine = app.inbox.folder / "samples" / LECTURE
    mine.write_text("My own lecture.")
    with pytest.raises(InvalidInput, match=LECTURE):
        samples.drop()
    assert mine.read_text() == "My own lecture."


def test_a_document_has_ended_when_its_saga_has_and_its_file_is_gone(app):
    samples = SampleDrop(app.inbox, app.ledger)
    samples.drop()
    document_id = f"samples/{LECTURE}"
    assert set(samples.progress().statuses.values()) == {None}

    app.ingestion.ingest(app.sources.read([f"inbox:samples/{LECTURE}"]), owner="test")
    progress = samples.progress()
    assert progress.statuses[document_id] is Status.COMPLETED
    assert document_id in progress.unfinished

    app.inbox.settle(app.ledger)
    unfinished = set(samples.document_ids) - {document_id}
    assert set(samples.progress().unfinished) == unfinished

    samples.drop()  # the next demo: the same content, not settled yet
    assert document_id in samples.progress().unfinished
