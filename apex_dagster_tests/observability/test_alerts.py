"""Each alert begins and ends by what really happens to sagas, and is told once each time."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from apex_dagster.composition import Application
from apex_dagster.errors import StoreUnavailable
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.observability.alerts import Notice
from apex_dagster.observability.delivery import to_slack, to_webhook
from apex_dagster_tests.applications import BuildApplication, expire_leases
from apex_dagster_tests.cli.conftest import shell_of
from apex_dagster_tests.cli.test_saga import fail_to_undo
from apex_dagster_tests.documents import submission, submissions
from apex_dagster_tests.saga.test_bound import leave, let_pass


@dataclass
class Told:
    """What a way of telling was told."""

    notices: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, notice: Notice) -> None:
        assert notice.summary
        self.notices.append((notice.name, notice.severity, notice.status))

    def take(self) -> list[tuple[str, str, str]]:
        taken, self.notices = self.notices, []
        return taken


def evaluate(app: Application) -> list[tuple[str, str, str]]:
    told = Told()
    app.alerts.evaluate([told])
    return told.take()


def ingest(app: Application, some: Sequence[Submission]) -> None:
    """All of them as quickly as a machine with nothing else to do would."""
    app.ingestion.ingest(some, owner="test")
    with app.ledger.transaction() as tx:
        tx.execute(
            "UPDATE apex.saga_state SET created_at = published_at - interval '0.1 seconds'"
            " WHERE document_id = ANY (%s)",
            [[each.document.document_id for each in some]],
        )


@pytest.fixture
def redis_down(build_application: BuildApplication) -> Application:
    """As an application sees it; its Redis answers, but nobody looks soon."""
    app = build_application(probe_delay_s=3600.0, probe_delay_s_max=3600.0)
    app.breakers.note("redis", StoreUnavailable("redis", "it was said to be gone"))
    return app


def forget_window(app: Application) -> None:
    """As if all that there is had been opened an hour ago."""
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET created_at = created_at - interval '1 hour'")


def test_nothing_is_told_while_all_is_well(app: Application, unique: str) -> None:
    ingest(app, submissions(unique, 25))
    assert evaluate(app) == []
    assert app.alerts.firing() == []


def test_a_saga_that_could_not_be_undone_is_critical_until_somebody_helps(
    app: Application, unique: str
) -> None:
    saga = fail_to_undo(app, unique)
    assert ("compensation_failed", "critical", "firing") in evaluate(app)
    forget_window(app)  # it waits however long
    evaluate(app)
    assert "compensation_failed" in {notice.name for notice in app.alerts.firing()}
    app.compensation.compensate([saga.saga_id], owner="test")
    assert ("compensation_failed", "critical", "resolved") in evaluate(app)
    assert "compensation_failed" not in {notice.name for notice in app.alerts.firing()}


def test_compensations_and_failures_are_told_by_rate_until_the_rate_is_well_again(
    app: Application, unique: str
) -> None:
    bad = [submission(f"{unique}-bad-{number}", dim=7) for number in range(3)]
    app.ingestion.ingest(bad, owner="test")
    ingest(app, submissions(unique, 16))
    assert evaluate(app) == [("step_failed:extract:permanent", "low", "firing")]  # 19 say nothing
    ingest(app, [submission(f"{unique}-one-more")])
    assert evaluate(app) == [
        ("compensation_rate", "high", "firing"),
        ("success_rate", "medium", "firing"),
    ]
    ingest(app, submissions(f"{unique}-good", 50))
    assert evaluate(app) == [
        ("compensation_rate", "high", "resolved"),
        ("success_rate", "medium", "resolved"),
    ]
    forget_window(app)
    assert evaluate(app) == [("step_failed:extract:permanent", "low", "resolved")]


def test_slow_sagas_are_told_by_their_p90(app: Application, unique: str) -> None:
    ingest(app, submissions(unique, 20))
    with app.ledger.transaction() as tx:
        tx.execute(
            "UPDATE apex.saga_state SET created_at = created_at - interval '30 seconds'"
            " WHERE document_id IN (SELECT document_id FROM apex.saga_state LIMIT 3)"
        )
    assert evaluate(app) == [("latency_p90", "medium", "firing")]
    ingest(app, submissions(f"{unique}-quick", 40))
    assert evaluate(app) == [("latency_p90", "medium", "resolved")]


def test_a_store_that_is_down_is_told_until_it_answers(redis_down: Application) -> None:
    assert evaluate(redis_down) == [("store_down:redis", "high", "firing")]
    redis_down.breakers.probe(at_once=True)
    assert evaluate(redis_down) == [("store_down:redis", "high", "resolved")]


def test_sagas_that_nobody_ends_in_time_are_told(app: Application, unique: str) -> None:
    let_pass(app, leave(app, unique), timedelta(hours=1))
    assert evaluate(app) == [("sagas_overdue", "high", "firing")]
    app.ingestion.recovery.recover(owner="recovery")
    assert evaluate(app) == [("sagas_overdue", "high", "resolved")]


# -- how it is told ------------------------------------------------------------------------------


def test_it_is_told_once_and_again_only_after_a_while(
    redis_down: Application, build_application: BuildApplication
) -> None:
    assert len(evaluate(redis_down)) == 1
    assert evaluate(redis_down) == []
    impatient = build_application(alert_repeat_s=1e-9)
    assert evaluate(impatient) == [("store_down:redis", "high", "firing")]


def test_what_could_not_be_told_is_told_again(redis_down: Application) -> None:
    app = redis_down
    reached = Told()

    def refuses(notice: Notice) -> None:
        raise RuntimeError("the webhook answered 500")

    assert app.alerts.evaluate([refuses, reached]) == []
    assert len(reached.take()) == 1  # one way that fails does not keep the others from telling
    assert app.alerts.evaluate([reached]) == []  # whoever failed holds it still
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.alert SET claimed_until = '-infinity'")
    assert [notice.name for notice in app.alerts.evaluate([reached])] == ["store_down:redis"]
    assert app.alerts.evaluate([reached]) == []


def test_what_was_over_before_anybody_was_told_is_not_told(redis_down: Application) -> None:
    def refuses(notice: Notice) -> None:
        raise RuntimeError("no")

    redis_down.alerts.evaluate([refuses])
    redis_down.breakers.probe(at_once=True)
    assert evaluate(redis_down) == []


def test_two_evaluators_tell_it_once_between_them(redis_down: Application) -> None:
    told, both = Told(), threading.Barrier(4)

    def look() -> None:
        both.wait()
        redis_down.alerts.evaluate([told])

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.take() == [("store_down:redis", "high", "firing")]


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any], list[int]]]:
    """Its address, what it has got, and what it will answer (200 when that is used up)."""
    got: list[Any] = []
    answers: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(answers.pop() if answers else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/services/secret", got, answers
    server.shutdown()


def test_webhook_and_chat_get_it_as_json(
    redis_down: Application, webhook: tuple[str, list[Any], list[int]]
) -> None:
    url, got, answers = webhook
    [notice] = redis_down.alerts.evaluate([to_webhook(url), to_slack(url)])
    plain, chat = got
    assert (plain["name"], plain["severity"], plain["status"]) == (
        "store_down:redis",
        "high",
        "firing",
    )
    assert plain["since"].startswith(f"{notice.since:%Y-%m-%dT}")
    assert chat["text"] == chat["blocks"][0]["text"]["text"]
    assert "store_down:redis" in chat["text"]
    answers.append(500)
    with pytest.raises(RuntimeError, match="answered 500") as caught:
        to_webhook(url)(notice)
    assert "secret" not in str(caught.value)
    with pytest.raises(RuntimeError) as caught:
        to_slack("http://127.0.0.1:9/services/secret")(notice)
    assert "secret" not in str(caught.value)


# -- where it is seen ----------------------------------------------------------------------------


def test_the_shell_lists_checks_and_tests(
    build_application: BuildApplication,
    webhook: tuple[str, list[Any], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    unique: str,
) -> None:
    url, got, answers = webhook
    app = build_application(probe_delay_s=3600.0, probe_delay_s_max=3600.0)
    shell = shell_of(app)
    monkeypatch.setenv("APEX_ALERT_WEBHOOK_URL", url)
    assert shell.json("alert", "list") == {"alerts": []}
    fail_to_undo(app, unique)
    told = shell.json("alert", "check")["alerts"]
    assert told[0]["name"] == "compensation_failed"
    assert [each["name"] for each in got] == [alert["name"] for alert in told]
    assert shell.json("alert", "check") == {"alerts": []}
    listed = shell.json("alert", "list", exit_code=1)["alerts"]
    assert [alert["name"] for alert in listed] == [alert["name"] for alert in told]
    assert "told in 2 ways" in shell("alert", "test").stdout
    assert got[-1]["name"] == "test"
    answers.append(404)
    refused = shell("alert", "test", "--resolved")
    assert refused.exit_code == 1
    assert got[-1]["status"] == "resolved"


def test_metrics_tell_outcomes_latencies_failures_and_stores(app: Application, unique: str) -> None:
    app.ingestion.ingest(
        [*submissions(unique, 3), submission(f"{unique}-bad", dim=7)], owner="test"
    )
    app.breakers.note("redis", StoreUnavailable("redis", "it was said to be gone"))
    text = shell_of(app)("metrics").stdout
    for line in (
        'apex_recent_sagas{outcome="completed"} 3.0',
        'apex_recent_sagas{outcome="compensated"} 1.0',
        "apex_saga_success_ratio 0.75",
        "apex_saga_compensation_ratio 0.25",
        'apex_saga_failures{error_class="permanent",step="extract"} 1.0',
        'apex_store_up{store="redis"} 0.0',
        'apex_store_up{store="qdrant"} 1.0',
    ):
        assert line in text.splitlines()
    assert 'apex_saga_latency_seconds{quantile="0.9"}' in text


def test_the_sensor_tells_and_says_what_fires(
    app: Application, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apex_dagster.definitions import defs
    from apex_dagster.defs.resources import resources_from_environment

    for name, value in shell_of(app).environment.items():
        monkeypatch.setenv(name, value)
    fail_to_undo(app, unique)
    expire_leases(app)

    def tick() -> str:
        resources = {"sagas": resources_from_environment()["sagas"]}
        with dg.build_sensor_context(definitions=defs, resources=resources) as context:
            sensor = defs.resolve_sensor_def("alert_sensor")
            return str(sensor.evaluate_tick(context).skip_message)

    assert "compensation_failed" in tick()
    assert "compensation_failed" in {notice.name for notice in app.alerts.firing()}
