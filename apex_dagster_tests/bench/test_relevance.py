"""How well searches rank the sample corpus, by questions judged by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from apex_dagster.bench.relevance import WAYS, measure_samples, ndcg
from apex_dagster.ingestion.sample_drop import FOLDER, SampleDrop
from apex_dagster.ingestion.search import RANKERS
from apex_dagster.samples import judged_questions


def test_the_hybrid_ranks_better_than_each_ranker_alone(app, endpoints):
    found = measure_samples(app.settings, endpoints)
    print(found["ndcg10"], found["by_kind"])
    alone = {name: found["ndcg10"][name] for name in RANKERS}
    assert found["ndcg10"]["hybrid"] > max(alone.values())
    assert min(alone.values()) > 0.2  # each of them finds something
    # It is no ranker with two that are ignored: no kind of question is much worse than without.
    best_of = {"lexical": "text", "paraphrased": "vector", "entities": "text"}
    for kind, ranker in best_of.items():
        means = found["by_kind"][kind]
        assert means["hybrid"] > means[ranker] - 0.1, kind
    assert len(found["questions"]) == len(judged_questions())
    assert set(found["questions"][0]["ndcg10"]) == set(WAYS)


def test_questions_are_of_all_kinds_and_name_documents_that_exist(app):
    questions = judged_questions()
    known = {
        each.removeprefix(f"{FOLDER}/") for each in SampleDrop(app.inbox, app.ledger).document_ids
    }
    assert len({question.question for question in questions}) == len(questions) >= 30
    for question in questions:
        assert question.relevant, question
        assert set(question.relevant) <= known, question
        assert set(question.relevant.values()) <= {1, 2, 3}, question
        assert 3 in question.relevant.values(), question
    kinds = Counter(question.kind for question in questions)
    assert kinds.keys() == {"lexical", "paraphrased", "entities"}
    assert min(kinds.values()) >= 10


def test_ndcg_is_that_of_the_literature():
    """By hand: gains 7, 3, 1 at the discounts 1, log2(3), 2."""
    grades = {"a": 3, "b": 2, "c": 1}
    best = 7 + 3 / 1.584962500721156 + 1 / 2
    assert ndcg(["a", "b", "c"], grades) == 1
    assert ndcg(["c", "b", "a"], grades) == pytest.approx(
        (1 + 3 / 1.584962500721156 + 7 / 2) / best
    )
    assert ndcg(["x", "a"], grades) == pytest.approx(7 / 1.584962500721156 / best)
    assert ndcg([], grades) == ndcg(["x"], grades) == 0
    assert ndcg([*"xxxxxxxxxx", "a"], grades) == 0  # the eleventh does not count
    assert ndcg([f"d{n}" for n in range(20)], {f"d{n}": 3 for n in range(20)}) == 1
