"""Breakers and admission on a real ledger, as several processes share them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from apex_dagster.errors import OutcomeUnknown, StoreConflict, StoreUnavailable, Unavailable
from apex_dagster.saga.admission import Admission
from apex_dagster.saga.breaker import BreakerPolicy, Breakers
from apex_dagster.saga.ledger import Ledger
from apex_dagster_tests.conftest import PrivateServerFactory

SLOW = BreakerPolicy(timeout_s=2.0, delay_s=600.0, delay_s_max=6000.0, ramp_s=600.0)
REFUSED = StoreUnavailable("qdrant", "connection refused")

BuildBreakers = Callable[..., Breakers]


class Door:
    """Answers pings or not, and counts them."""

    def __init__(self) -> None:
        self.opens, self.knocks, self.most_at_once, self._inside = False, 0, 0, 0
        self.answer_s = 0.0
        self._lock = threading.Lock()

    def ping(self) -> None:
        with self._lock:
            self.knocks += 1
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        time.sleep(self.answer_s)
        with self._lock:
            self._inside -= 1
        if not self.opens:
            raise REFUSED


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
def ledger(postgres_database: str):
    made = Ledger(postgres_database)
    yield made
    made.close()


@pytest.fixture
def process(ledger: Ledger, door: Door) -> BuildBreakers:
    """The breakers as one more process has them."""

    def build(policy: BreakerPolicy = SLOW) -> Breakers:
        return Breakers(ledger, {"qdrant": door.ping, "postgres": door.ping}, policy=policy)

    return build


def pass_time(ledger: Ledger, **spent: float) -> None:
    """Let time pass for the breakers, by the database's clock."""
    columns = ("opened_at", "closed_at", "next_probe_at", "probe_expires_at")
    changes = ", ".join(f"{column} = {column} - %(by)s" for column in columns)
    with ledger.transaction() as tx:
        tx.execute(f"UPDATE apex.breaker SET {changes}", {"by": timedelta(**spent)})


def test_what_one_process_finds_down_no_process_admits_anything_for(ledger, process):
    finder, other = process(), process()
    assert Admission(other).refusal() is None
    assert finder.note("qdrant", REFUSED) == "qdrant"
    with pytest.raises(Unavailable) as refused:
        Admission(process()).check()
    assert (refused.value.store, "connection refused" in refused.value.reason) == ("qdrant", True)
    assert 1.0 <= refused.value.retry_after_s <= 600.0
    time.sleep(1.1)  # what another process has seen may be a second old
    assert Admission(other).grant(5) == 0
    with pytest.raises(Unavailable):
        other.refuse("qdrant")
    other.refuse("neo4j")  # only nothing new: what needs the others goes on


@pytest.mark.parametrize(
    ("error", "opens"),
    [(StoreConflict("qdrant", "deadlock"), False), (ValueError("a bug"), False), (REFUSED, True)],
)
def test_only_a_store_that_is_down_opens_its_breaker(process, error, opens):
    breakers = process()
    assert breakers.note("qdrant", error) == ("qdrant" if opens else None)
    assert [breaker.store for breaker in breakers.down()] == (["qdrant"] if opens else [])


@pytest.mark.parametrize("answers", [True, False])
def test_a_time_out_opens_it_only_where_the_store_does_not_answer_either(process, door, answers):
    door.opens, breakers = answers, process()
    down = breakers.note("qdrant", OutcomeUnknown("qdrant", after_s=30))
    assert down == (None if answers else "qdrant")


def test_the_ledgers_own_trouble_is_postgres_being_down(process):
    assert process().note("neo4j", StoreUnavailable("ledger", "shutting down")) == "postgres"


def test_of_two_that_open_it_at_once_the_first_says_why(ledger, process):
    with ThreadPoolExecutor(8) as pool:
        errors = [StoreUnavailable("qdrant", f"reason {number}") for number in range(8)]
        list(pool.map(lambda error: process().note("qdrant", error), errors))
    [breaker] = process().all()
    assert breaker.failed_probes == 0
    assert breaker.closed_at is None


def test_one_probe_at_a_time_whoever_asks(ledger, process, door):
    process().note("qdrant", REFUSED)
    pass_time(ledger, hours=1)
    door.answer_s, processes = 0.3, [process() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda breakers: breakers.probe(), processes))
    assert (door.knocks, door.most_at_once) == (1, 1)
    assert process().all()[0].failed_probes == 1
    assert process().probe() == []  # the next is not due
    assert door.knocks == 1


def test_a_prober_that_died_is_replaced_and_its_late_word_counts_for_nothing(ledger, process, door):
    process().note("qdrant", REFUSED)
    pass_time(ledger, hours=1)
    door.answer_s, door.opens, late = 1.0, True, process()
    died = threading.Thread(target=late.probe)
    died.start()
    wait_for(lambda: door.knocks == 1)
    assert process().probe() == []  # it is claimed
    pass_time(ledger, minutes=1)
    door.answer_s, door.opens = 0.0, False
    assert process().probe() == []
    assert door.knocks == 2
    before = process().all()
    door.opens = True
    died.join()
    assert door.knocks == 2
    # Same state: the word of a prober whose claim had expired closed nothing.
    assert [replace(b, probe_in_s=0) for b in process().all()] == [
        replace(b, probe_in_s=0) for b in before
    ]


def test_probes_become_rarer_and_a_store_that_flaps_keeps_its_long_delays(ledger, process, door):
    breakers, longest = process(), []
    breakers.note("qdrant", REFUSED)
    for _ in range(4):
        pass_time(ledger, hours=3)
        breakers.probe()
        longest.append(breakers.all()[0].failed_probes)
    assert longest == [1, 2, 3, 4]
    door.opens = True
    pass_time(ledger, hours=3)
    assert breakers.probe() == ["qdrant"]
    breakers.note("qdrant", REFUSED)
    assert breakers.all()[0].failed_probes == 5
    pass_time(ledger, hours=3)
    breakers.probe()
    pass_time(ledger, hours=1)  # well for an hour
    breakers.note("qdrant", REFUSED)
    assert breakers.all()[0].failed_probes == 0


def test_delays_are_drawn_from_a_range_that_doubles_up_to_its_limit():
    policy = BreakerPolicy(delay_s=1.0, delay_s_max=30.0)
    for failed, bound_s in ((0, 1.0), (3, 8.0), (5, 30.0), (2000, 30.0)):
        drawn = [policy.delay_after_s(failed) for _ in range(500)]
        assert 0.0 <= min(drawn) < 0.2 * bound_s
        assert 0.8 * bound_s < max(drawn) <= bound_s


def test_admission_restarts_step_by_step_for_all_processes_together(ledger, process, door):
    process().note("qdrant", REFUSED)
    door.opens = True
    process().probe(at_once=True)
    first, second = Admission(process()), Admission(process())
    assert first.grant(7) == 7
    assert second.grant(7) == 3
    with pytest.raises(Unavailable, match="back since a moment"):
        second.check()
    assert second.refusal() is None  # no store is down
    second.check(0)
    pass_time(ledger, seconds=200)  # a third of the ramp: two doublings
    assert 29 <= Admission(process()).grant(1000) <= 31
    pass_time(ledger, seconds=401)
    assert Admission(process()).grant(1000) == 1000


def test_a_check_takes_all_or_nothing(process, door):
    process().note("qdrant", REFUSED)
    door.opens = True
    process().probe(at_once=True)
    admission = Admission(process())
    with pytest.raises(Unavailable):
        admission.check(11)
    admission.check(10)


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_postgres_down_refuses_at_once_after_the_first_look_and_heals(
    private_server: PrivateServerFactory, door: Door, outage: str
) -> None:
    from apex_dagster.migrations.migrate import migrate

    server = private_server("postgres")
    url = server.endpoints.postgres_url.get_secret_value()
    migrate(url)
    ledger = Ledger(url)
    policy = BreakerPolicy(timeout_s=2.0, delay_s=0.2, delay_s_max=0.5, ramp_s=60.0)
    admission = Admission(Breakers(ledger, {}, policy=policy))
    assert admission.refusal() is None
    (server.freeze if outage == "frozen" else server.kill)()
    try:
        wait_for(lambda: admission.refusal() is not None)
        begun = time.monotonic()
        refusals = [admission.refusal() for _ in range(50)]
        # Of fifty callers in a row at most a few look; the others are told at once.
        assert time.monotonic() - begun < 20.0
        assert {refusal.store for refusal in refusals if refusal} == {"postgres"}
        assert None not in refusals
    finally:
        (server.thaw if outage == "frozen" else server.start)()
    wait_for(lambda: admission.refusal() is None)
    # The outage is on record for all, so admission restarts step by step for others, too.
    assert Admission(Breakers(ledger, {}, policy=policy)).grant(1000) < 1000
    ledger.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
