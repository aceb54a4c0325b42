"""The simulation finds nothing in the real code, and something in broken code."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from apex_dagster.cli.main import main
from apex_dagster.simulation.draw import draw_plan
from apex_dagster.simulation.many import Tally, simulate_many
from apex_dagster.simulation.minimise import minimise, relevant_lines
from apex_dagster.simulation.parts import Parts
from apex_dagster.simulation.scenario import play, simulate
from apex_dagster_tests.simulation.broken import BROKEN, SEEDS_MAX
from apex_dagster_tests.simulation.seeds import FIXED, TODAY


def test_no_seed_breaks_a_promise() -> None:
    outcomes = [simulate(seed) for seed in FIXED]
    assert {o.seed: o.violation for o in outcomes if o.violation} == {}
    ended = {status for outcome in outcomes for status in outcome.sagas}
    assert ended == {"completed", "compensated"}, "the trouble must leave some of both"
    # What a store without transactions cannot prevent has to be among it, or its bound is untested.
    assert any(outcome.residual_s for outcome in outcomes)
    planned = {trap.at for seed in FIXED for trap in draw_plan(seed).traps}
    sprung = {place for outcome in outcomes for place in outcome.sprung}
    assert len(planned - sprung) < 0.2 * len(planned), "traps name places that nobody passes"
    assert {"ledger pivot", "ledger _end", "ledger take_over", "qdrant set_payload"} <= sprung


def test_no_seed_of_today_breaks_a_promise() -> None:
    outcomes = [simulate(seed) for seed in TODAY]
    assert {o.seed: o.violation for o in outcomes if o.violation} == {}


@pytest.mark.parametrize("parts", BROKEN.values(), ids=BROKEN)
def test_a_mechanism_that_is_switched_off_is_missed(parts: Parts) -> None:
    found = next((s for s in range(SEEDS_MAX) if simulate(s, parts).violation), None)
    assert found is not None
    assert simulate(found).violation is None, "it must be the mutation that was found"


def test_a_seed_replays_exactly_also_in_another_process() -> None:
    code = [sys.executable, "-m", "apex_dagster.cli.main", "simulate", "--seed", "7"]
    told = [subprocess.run(code, capture_output=True, text=True, check=True) for _ in range(2)]
    traces = [one.stdout.splitlines()[:-1] for one in told]  # the last line has the time it took
    assert traces[0] == traces[1]
    assert traces[0][-len(simulate(7).trace) :] == list(simulate(7).trace)
    assert simulate(8).trace_hash != simulate(7).trace_hash


def test_the_number_of_jobs_changes_nothing() -> None:
    one, two = (sum(simulate_many(0, 50, jobs=jobs), Tally()) for jobs in (1, 2))
    assert one == two
    assert one.seeds == 50


def test_a_violation_is_cut_down_to_what_it_takes() -> None:
    parts = BROKEN["pivot ignores the expected version"]
    seed = next(seed for seed in range(SEEDS_MAX) if simulate(seed, parts).violation)
    plan, outcome = minimise(draw_plan(seed), parts)
    assert outcome.violation
    assert minimise(draw_plan(seed), parts) == (plan, outcome)
    assert not any(play(less, parts).violation for less in plan.parts())
    lines = relevant_lines(outcome)
    assert 0 < len(lines) < len(outcome.trace)
    assert any("in_progress -> completed" in line for line in lines)


def test_the_command_prints_the_figures_last() -> None:
    result = CliRunner().invoke(main, ["simulate", "--seeds", "3", "--seed", "1", "--jobs", "1"])
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "seeds 1 to 3"
    assert result.output.splitlines()[-1].startswith("3 seeds in ")
    assert result.output.splitlines()[-1].endswith("; 0 violations")


def test_the_command_tells_what_was_broken_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = BROKEN["the cache serves what is staged"]
    monkeypatch.setattr("apex_dagster.simulation.scenario.Parts", lambda: parts)
    result = CliRunner().invoke(main, ["simulate", "--seeds", "3", "--seed", "0", "--jobs", "1"])
    assert result.exit_code == 1
    assert "redis shows ingest_d" in result.output
    assert "apex simulate --seed 0" in result.output
    assert re.search(r"; [1-3] violations$", result.output.splitlines()[-1])
