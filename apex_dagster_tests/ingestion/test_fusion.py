"""Reciprocal rank fusion by hand."""

from __future__ import annotations

import pytest

from apex_dagster.ingestion.fusion import fuse
from apex_dagster.stores.searching import Candidate, ChunkRef
from apex_dagster_tests.applications import version_ref


def ranking(**scores: float) -> list[Candidate]:
    """Chunks of documents of these names, by these scores."""
    return [
        Candidate(chunk=ChunkRef(ref=version_ref(name, 1, f"s-{name}"), ordinal=0), score=score)
        for name, score in scores.items()
    ]


def scores(**rankings: list[Candidate]) -> dict[str, float]:
    return {each.chunk.ref.document_id: each.score for each in fuse(rankings)}


def test_every_ranker_adds_one_over_sixty_and_the_rank() -> None:
    fused = scores(text=ranking(a=9.0, b=3.0), vector=ranking(b=0.8, c=0.7))
    assert fused == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62})
    assert list(fused) == ["b", "a", "c"]


def test_scores_of_different_rankers_are_never_compared() -> None:
    assert list(scores(text=ranking(a=1e9), vector=ranking(b=2e-9, a=1e-9))) == ["a", "b"]


def test_candidates_of_one_score_share_the_mean_of_their_ranks() -> None:
    [first, *tied, last] = fuse({"graph": ranking(d=3.0, c=2.0, b=2.0, a=2.0, e=1.0)})
    assert first.shares["graph"].rank == 1
    assert {each.shares["graph"].rank for each in tied} == {3}
    assert [each.chunk.ref.document_id for each in tied] == ["a", "b", "c"]  # always the same order
    assert last.shares["graph"].rank == 5


def test_chunks_of_two_versions_are_two_chunks() -> None:
    old, new = (
        Candidate(chunk=ChunkRef(ref=version_ref("a", n, f"s{n}"), ordinal=0), score=1.0)
        for n in (1, 2)
    )
    assert len(fuse({"text": [old], "vector": [new]})) == 2


def test_nothing_fused_is_nothing() -> None:
    assert fuse({}) == []
    assert fuse({"text": []}) == []
