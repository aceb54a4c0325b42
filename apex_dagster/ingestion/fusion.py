"""Several rankings of the same things made into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from apex_dagster.stores.searching import Candidate, ChunkRef

RRF_K = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one ranker adds to a chunk's score."""

    rank: float  # 1 is best; halves where candidates have the same score
    score: float  # the ranker's own
    rrf: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """A chunk by all rankers that found it."""

    chunk: ChunkRef
    score: float  # the sum of its shares
    shares: Mapping[str, Share]  # by ranker


def fuse(rankings: Mapping[str, Sequence[Candidate]]) -> list[Fused]:
    """Best first; each ranking is sorted by falling score and names no chunk twice.

    Reciprocal rank fusion: a chunk gets 1 / (60 + rank) from every ranker that found it. It needs
    no scores that can be compared, which similarities, full text and counts of mentions cannot.
    Candidates that a ranker cannot tell apart share the mean of their ranks, or the order of their
    ids would decide.
    Source: G. Cormack, C. Clarke, S. Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and
    individual Rank Learning Methods", SIGIR 2009, where k = 60.
    """
    shares: dict[ChunkRef, dict[str, Share]] = {}
    for ranker, candidates in rankings.items():
        for candidate, rank in ranked(candidates):
            share = Share(rank=rank, score=candidate.score, rrf=1 / (RRF_K + rank))
            shares.setdefault(candidate.chunk, {})[ranker] = share
    fused = [
        Fused(chunk=chunk, score=sum(share.rrf for share in own.values()), shares=own)
        for chunk, own in shares.items()
    ]
    return sorted(fused, key=lambda each: (-each.score, each.chunk))


def ranked(candidates: Sequence[Candidate]) -> list[tuple[Candidate, float]]:
    """Each with its rank, counted from 1."""
    ranks: list[tuple[Candidate, float]] = []
    for _, tied in groupby(candidates, key=lambda candidate: candidate.score):
        group = list(tied)
        mean = len(ranks) + (len(group) + 1) / 2
        ranks += [(candidate, mean) for candidate in group]
    return ranks
