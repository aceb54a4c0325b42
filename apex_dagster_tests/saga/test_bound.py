"""How soon left sagas end, from real take-overs, in the shell and for Prometheus."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import Result
from prometheus_client.parser import text_string_to_metric_families

from apex_dagster.composition import Application
from apex_dagster.observability.metrics import render_metrics
from apex_dagster.saga.bound import open_work, overdue_count, recovery_times
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.states import Status
from apex_dagster_tests.cli.conftest import Shell, shell_of
from apex_dagster_tests.documents import submission

BOUND_S = 60.0


@pytest.fixture
def shell(app: Application) -> Shell:
    return shell_of(app)


def leave(app: Application, document_id: str, point: str = "written:redis_write") -> str:
    """A saga whose owner, run:x, dies on the way; its lease runs still."""
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.ingest([submission(document_id)], owner="run:x")
    [saga] = app.ledger.list_sagas(document_id=document_id)
    return saga.saga_id


def let_pass(app: Application, saga_id: str, time: timedelta) -> None:
    """Since its lease ran out, by the database's clock."""
    with app.ledger.transaction() as tx:
        tx.execute(
            "UPDATE apex.saga_state SET lease_expires_at = clock_timestamp() - %s"
            " WHERE saga_id = %s",
            [time, saga_id],
        )


def test_a_saga_that_its_owner_ends_is_no_recovery(app: Application, unique: str) -> None:
    app.ingestion.ingest([submission(unique)], owner="test")
    [saga] = app.ingestion.open([submission(unique, edition=2)], owner="test").alive
    app.compensation.compensate([saga.saga_id], owner="test")
    times = recovery_times(app.ledger, bound_s=BOUND_S)
    assert (times.recoveries, times.p50_s, times.max_s) == (0, None, None)


@pytest.mark.parametrize(
    "point", ["opened", "written:redis_write", "pivoted", "undone:redis_write"]
)
def test_a_recovery_lasts_from_the_end_of_the_lease_to_the_end_of_the_saga(
    app: Application, unique: str, point: str
) -> None:
    refused = "sent:redis_write=reject;" if point.startswith("undone") else ""
    saga_id = leave(app, unique, f"{refused}{point}")
    let_pass(app, saga_id, timedelta(seconds=50))
    app.ingestion.recovery.recover(owner="recovery")
    times = recovery_times(app.ledger, bound_s=BOUND_S)
    assert times.recoveries == 1
    assert times.p50_s == times.p90_s == times.max_s == times.total_s
    assert 50 <= times.total_s < 50 + 240  # and what this machine takes
    assert times.within[30.0] == 0
    assert times.within[300.0] == times.within[3600.0] == 1


def test_of_two_takeovers_the_last_counts(app: Application, unique: str) -> None:
    saga_id = leave(app, unique)
    let_pass(app, saga_id, timedelta(hours=2))
    with armed("staged=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.recovery.recover(owner="first")
    let_pass(app, saga_id, timedelta(seconds=1))
    app.ingestion.recovery.recover(owner="second")
    assert recovery_times(app.ledger, bound_s=BOUND_S).within[3600.0] == 1


def test_an_undo_for_a_sensor_lasts_from_the_end_of_the_run(app: Application, unique: str) -> None:
    """Whose lease runs still."""
    saga_id = leave(app, unique)
    begun = app.compensation.begin(
        [saga_id],
        owner="run:y",
        dead_owners=["run:x"],
        left_at=datetime.now(UTC) - timedelta(minutes=10),
    )
    app.compensation.finish(begun)
    times = recovery_times(app.ledger, bound_s=BOUND_S)
    assert (times.recoveries, times.over_bound) == (1, 1)
    assert (times.within[300.0], times.within[3600.0]) == (0, 1)


def test_percentiles_are_of_all_recoveries(app: Application, unique: str) -> None:
    for minutes in range(10):
        saga_id = leave(app, f"{unique}-{minutes}", "opened")
        let_pass(app, saga_id, timedelta(minutes=100 * minutes))
        app.ingestion.recovery.recover(owner="recovery")
    times = recovery_times(app.ledger, bound_s=BOUND_S)
    assert times.recoveries == 10
    assert times.over_bound >= 9
    assert times.p50_s is not None
    assert times.p90_s is not None
    assert times.max_s is not None
    assert [round(t / 6000) for t in (times.p50_s, times.p90_s, times.max_s)] == [4, 8, 9]


def test_what_is_open_is_counted_by_status_and_age(app: Application, unique: str) -> None:
    leave(app, f"{unique}-1", "written:redis_write")
    leave(app, f"{unique}-2", "pivoted")
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET created_at = created_at - interval '1 hour'")
    work = open_work(app.ledger)
    assert {status: each.sagas for status, each in work.items()} == {
        Status.PENDING: 0,
        Status.IN_PROGRESS: 1,
        Status.COMPENSATING: 0,
        Status.COMPLETED: 1,
    }
    assert 3600 <= work[Status.IN_PROGRESS].oldest_s < 3600 + 240


def test_overdue_sagas_are_named_until_they_end(
    app: Application, shell: Shell, unique: str
) -> None:
    saga_id = leave(app, unique)
    let_pass(app, saga_id, timedelta(seconds=59 - 50))
    assert overdue_count(app.ledger, bound_s=BOUND_S) == 0
    let_pass(app, saga_id, timedelta(hours=1))
    assert overdue_count(app.ledger, bound_s=BOUND_S) == 1
    assert shell.json("saga", "bound", exit_code=1)["overdue"] == [saga_id]
    assert saga_id in shell("saga", "bound").stdout
    app.ingestion.recovery.recover(owner="recovery")
    figures = shell.json("saga", "bound")
    assert figures["overdue"] == []
    assert (figures["bound_s"], figures["recoveries"], figures["over_bound"]) == (60.0, 1, 1)
    assert figures["p50_s"] == figures["p90_s"] == figures["max_s"] >= 3600
    assert "1 sagas were left by their owner" in shell("saga", "bound").stdout


def test_metrics_are_what_prometheus_reads(app: Application, shell: Shell, unique: str) -> None:
    let_pass(app, leave(app, f"{unique}-1"), timedelta(minutes=10))
    app.ingestion.recovery.recover(owner="recovery")
    let_pass(app, leave(app, f"{unique}-2", "pivoted"), timedelta(minutes=10))
    samples = sampled(
        render_metrics(app.ledger, bound_s=BOUND_S, window_s=300.0, down=app.breakers.down).decode()
    )
    assert samples["apex_overdue_sagas", ""] == 1
    assert samples["apex_open_sagas", "unpublished"] == 1
    assert samples["apex_open_sagas", "in_progress"] == 0
    assert samples["apex_oldest_open_saga_age_seconds", "unpublished"] > 0
    assert samples["apex_saga_recovery_seconds_bucket", "300.0"] == 0
    assert samples["apex_saga_recovery_seconds_bucket", "+Inf"] == 1
    assert samples["apex_saga_recovery_seconds_count", ""] == 1
    assert samples["apex_saga_recovery_seconds_sum", ""] >= 600
    printed: Result = shell("metrics")
    assert printed.exit_code == 0
    assert set(sampled(printed.stdout)) == set(samples)


def test_the_index_serves_the_query(app: Application) -> None:
    """At every scrape, among all events of all sagas."""
    with app.ledger.transaction() as tx:
        tx.execute("SET LOCAL enable_seqscan = off")
        [row] = tx.execute(
            "EXPLAIN (FORMAT json) SELECT DISTINCT ON (saga_id) saga_id, detail ->> 'left_at'"
            " FROM apex.saga_event WHERE detail ? 'left_at' ORDER BY saga_id, seq DESC"
        ).fetchall()
    assert "saga_event_left" in json.dumps(row)


def sampled(text: str) -> dict[tuple[str, str], float]:
    """Value by name and by the one label that there may be."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
