"""What counts as a lost acknowledgement, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apex_dagster.chaos.callers import Answer, Submission
from apex_dagster.chaos.census import Live
from apex_dagster.chaos.offers import Offer, Offers
from apex_dagster.chaos.verdict import lost_of_document
from apex_dagster_tests.applications import version_ref

OFFER = Offers(seed=1, embedding_dim=8).next()


def offer(content: str, *, poison: bool = False) -> Offer:
    return replace(OFFER, content_hash=content, fingerprints=None if poison else {"postgres": "x"})


def told(
    content: str,
    arrival: int,
    *,
    sent: float,
    opened: float,
    status: str = "completed",
    unanswered: int = 0,
    poison: bool = False,
) -> Submission:
    """A submission whose caller knows its outcome; saga "s7" for arrival 7."""
    answer = Answer(
        at=opened, saga_id=f"s{arrival}", version=arrival, arrival=arrival, status="in_progress"
    )
    return Submission(
        offer=offer(content, poison=poison),
        due=sent,
        first_sent=sent,
        attempts=1 + unanswered,
        unanswered=unanswered,
        opened=[answer],
        ended=[replace(answer, at=opened + 1.0, status=status)],
    )


def live(content: str, arrival: int) -> Live:
    ref = version_ref("d", arrival, f"s{arrival}")
    return Live(ref=ref, arrival=arrival, content_hash=content, extraction=None)


def ledger(**statuses: str) -> dict[str, dict[str, str]]:
    return {saga_id: {"status": status} for saga_id, status in statuses.items()}


A = told("a", 1, sent=10.0, opened=11.0)
B = told("b", 2, sent=20.0, opened=21.0)
UNDONE = told("c", 3, sent=30.0, opened=31.0, status="compensated")
BOTH = ledger(s1="completed", s2="completed", s3="compensated")

GOOD = {
    "the last one is live": ([A, B], live("b", 2), BOTH),
    "what was undone changes nothing": ([A, B, UNDONE], live("b", 2), BOTH),
    "nothing promised, nothing live": ([UNDONE], None, BOTH),
    "completed although its caller never heard": ([A, replace(B, ended=[])], live("b", 2), BOTH),
    "the first content again": (
        [A, B, told("a", 3, sent=30.0, opened=31.0)],
        live("a", 3),
        ledger(s1="completed", s2="completed", s3="completed"),
    ),
}
BAD = {
    "nothing is live": ([A], None, BOTH, "nothing is live"),
    "an earlier arrival is live": ([A, B], live("a", 1), BOTH, "arrival 1 is live"),
    "content that nobody sent": ([A], live("z", 9), BOTH, "never sent"),
    "other content under its arrival": ([A, B], live("a", 2), BOTH, "other content"),
    "undone after all": ([B], live("b", 2), ledger(s2="compensated"), "is compensated"),
    "a saga nobody knows": ([A], live("a", 1), ledger(), "does not know"),
    "an old answer to a new submission": (
        [A, B, replace(A, first_sent=30.0)],
        live("b", 2),
        BOTH,
        "opened before it was sent",
    ),
    # The ledger may call it arrival 9: its caller sent and opened it long before the other one.
    "back in time by the callers' clock": (
        [A, B],
        live("a", 9),
        BOTH,
        "opened before it was sent",
    ),
    "poison is live": (
        [told("p", 1, sent=1.0, opened=2.0, poison=True)],
        live("p", 1),
        BOTH,
        "poison",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_kept_promise_passes(name: str) -> None:
    submissions, now, sagas = GOOD[name]
    assert list(lost_of_document(submissions, now, sagas)) == []


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_is_found_out(name: str) -> None:
    submissions, now, sagas, message = BAD[name]
    assert any(message in fault for fault, _ in lost_of_document(submissions, now, sagas))


def test_a_front_door_need_not_say_the_arrival() -> None:
    """It is looked up in the ledger then."""
    silent = [replace(answer, arrival=None) for answer in B.ended]
    sagas = {"s2": {"status": "completed", "arrival": 2}}
    told_less = replace(B, ended=silent, opened=silent)
    assert list(lost_of_document([told_less], live("b", 2), sagas)) == []
    found = list(lost_of_document([told_less], live("b", 1), sagas))
    assert found == [("acknowledged with arrival 2, but arrival 1 is live", "s2")]


def test_a_caller_who_was_told_of_an_error_that_nobody_foresaw_is_reported() -> None:
    def refused(why: str) -> Submission:
        return replace(A, opened=[], ended=[], refused=why)

    assert list(lost_of_document([refused("422 invalid")], None, {})) == []
    [(fault, _)] = lost_of_document([refused("500 unexpected")], None, {})
    assert "500 unexpected" in fault


def test_an_attempt_without_an_answer_may_have_landed_late() -> None:
    in_doubt = told("a", 1, sent=10.0, opened=11.0, unanswered=1)
    assert list(lost_of_document([in_doubt, B], live("a", 9), BOTH)) == []
