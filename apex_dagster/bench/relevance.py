"""How well searches rank: the sample corpus, questions judged by hand, nDCG@10 of each ranker."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apex_dagster.composition import build
from apex_dagster.errors import TransientError
from apex_dagster.ingestion.sample_drop import FOLDER
from apex_dagster.ingestion.search import RANKERS, Search, Searcher
from apex_dagster.ingestion.sources import SAMPLES
from apex_dagster.samples import JudgedQuestion, judged_questions
from apex_dagster.settings import Endpoints, Settings
from apex_dagster.stores.searching import SearchFilter

DOCUMENTS = 10
_CHUNKS = 100  # enough of them for ten documents
_PATIENCE_S = 60.0  # a ranker that is late must not count as one that finds nothing
WAYS: Mapping[str, Sequence[str]] = {"hybrid": RANKERS} | {name: (name,) for name in RANKERS}


def measure_samples(settings: Settings, servers: Endpoints) -> dict[str, Any]:
    """Ingest the sample corpus, then `measure`."""
    patient = settings.model_copy(update={"search_timeout_s": _PATIENCE_S})
    app = build(patient, servers)
    try:
        app.ingestion.ingest(app.sources.read([SAMPLES]), owner="bench")
        return measure(app.searcher)
    finally:
        app.close()


def measure(searcher: Searcher) -> dict[str, Any]:
    """Mean nDCG@10 over the sample corpus, which has been ingested, for the hybrid and each ranker
    alone: in all, by kind of question, and question by question.

    Raises TransientError when a ranker does not answer.
    """
    questions = judged_questions()
    rows = [
        {
            "kind": question.kind,
            "question": question.question,
            "ndcg10": {name: _judged(searcher, question, way) for name, way in WAYS.items()},
        }
        for question in questions
    ]
    kinds = sorted({question.kind for question in questions})
    return {
        "ndcg10": _means(rows),
        "by_kind": {kind: _means([row for row in rows if row["kind"] == kind]) for kind in kinds},
        "questions": rows,
    }


def ndcg(ranked: Iterable[str], grades: Mapping[str, int], *, at: int = DOCUMENTS) -> float:
    """How near the order is to the best one, in [0, 1]; a grade g gains 2**g - 1.

    Source: C. Burges et al., "Learning to Rank using Gradient Descent", ICML 2005, after
    K. Järvelin, J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
    """
    best = _gain(sorted(grades.values(), reverse=True)[:at])
    return _gain([grades.get(each, 0) for each in ranked][:at]) / best if best else 0.0


def _gain(grades: Sequence[int]) -> float:
    return sum(float(2**grade - 1) / math.log2(n + 1) for n, grade in enumerate(grades, 1))


def _judged(searcher: Searcher, question: JudgedQuestion, way: Sequence[str]) -> float:
    search = Search(
        query=question.question,
        k=_CHUNKS,
        wanted=SearchFilter(collection=FOLDER),
        rankers=way,
    )
    found = searcher.search(search)
    if found.degraded:
        raise TransientError(f"not all rankers answer: {found.degraded}")
    # The first of its chunks is a document's place.
    documents = dict.fromkeys(hit.ref.document_id for hit in found.hits)
    return ndcg([each.removeprefix(f"{FOLDER}/") for each in documents], question.relevant)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: round(statistics.fmean(row["ndcg10"][name] for row in rows), 4) for name in WAYS}
