"""A store goes away under two processes that write as fast as they can, and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from apex_dagster.composition import Application
from apex_dagster.errors import ApexError
from apex_dagster.migrations.migrate import migrate
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import BuildApplication, assert_whole
from apex_dagster_tests.conftest import PrivateServerFactory
from apex_dagster_tests.ingestion.test_stores_down import down, with_own
from apex_dagster_tests.ingestion.writers import PATIENCE_S, writing

RAMP_S = 12.0  # from a store's return until as much as ever comes in
SEEN_WITHIN_S = 2.0  # a breaker that has opened or closed, by every process: a second, and some
LEDGER_GIVEN_UP_WITHIN_S = 20.0  # by a writer in the middle of a batch, with the time-outs below

# When sagas of new submissions were opened: seconds from the store's loss, and from its return.
OPENED = """
SELECT extract(epoch FROM s.created_at - b.opened_at)::float8 AS after_loss_s,
       extract(epoch FROM s.created_at - b.closed_at)::float8 AS after_return_s
FROM apex.saga_state s, apex.breaker b
WHERE b.store = %s AND s.predecessor_saga_id IS NULL
"""


@pytest.mark.parametrize(
    ("store", "outage"),
    [
        ("neo4j", "killed"),
        ("postgres", "killed"),
        ("postgres", "frozen"),
        ("qdrant", "killed"),
        ("qdrant", "frozen"),
        ("redis", "killed"),
    ],
)
def test_an_outage_under_load_heals_by_itself_and_without_a_herd(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
    store: str,
    outage: str,
) -> None:
    server = private_server(store)
    servers = with_own(endpoints, server)
    if store == "postgres":
        migrate(servers.postgres_url.get_secret_value())
    own = {"admission_ramp_s": RAMP_S, "lease_s": 5.0, "step_timeout_s": 3.0}
    app = build_application(servers, **own)
    batches = [[f"{unique}-{writer}-{number}" for number in range(12)] for writer in range(2)]
    with writing(servers, app.settings.model_dump(), batches):
        recover_until(app, lambda: completed(app) > 30)
        with down(server, outage):
            if store == "postgres":  # which cannot say so of itself, and is tried again for long
                time.sleep(LEDGER_GIVEN_UP_WITHIN_S)
            else:
                recover_until(app, lambda: is_down(app, store))
            time.sleep(2 * SEEN_WITHIN_S)
        recover_until(app, lambda: not is_down(app, store))
        before = completed(app)
        recover_until(app, lambda: completed(app) > before + 60)
    # Whoever was at the ledger when its server froze may just have waited, and noticed nothing.
    if (store, outage) != ("postgres", "frozen"):
        assert_no_herd(app, store)
    recover_until(app, lambda: counts(app).keys() <= {"completed", "compensated"})
    app.ingestion.sweep(limit=10_000)
    for document_id in [*batches[0], *batches[1]]:
        assert_whole(app, document_id)


def recover_until(app: Application, condition: Callable[[], bool]) -> None:
    """Recover, as the sensor does, until something holds."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            app.ingestion.recovery.recover(owner=f"tick-{time.monotonic_ns()}", limit=10)
            if condition():
                return
        except ApexError:  # the ledger itself is down
            pass
        time.sleep(0.1)
    raise AssertionError(f"{counts(app)}, {app.breakers.all()}")


def is_down(app: Application, store: str) -> bool:
    return store in {breaker.store for breaker in app.breakers.down()}


def completed(app: Application) -> int:
    return counts(app).get("completed", 0)


def counts(app: Application) -> dict[str, int]:
    """Sagas by status; those that are completed, but not published yet, are unpublished."""
    query = """
    SELECT CASE WHEN status = 'completed' AND published_at IS NULL THEN 'unpublished'
                ELSE status END AS status, count(*) AS count
    FROM apex.saga_state GROUP BY 1"""
    with app.ledger.transaction() as tx:
        return {row["status"]: row["count"] for row in tx.execute(query).fetchall()}


def assert_no_herd(app: Application, store: str) -> None:
    """Nothing was opened while the store was known to be down, and after its return ever more."""
    with app.ledger.transaction() as tx:
        rows = tx.execute(OPENED, [store]).fetchall()
    assert rows
    known_down = [r for r in rows if r["after_loss_s"] > SEEN_WITHIN_S and r["after_return_s"] < 0]
    assert known_down == []
    for after_s in (0.2, 0.5, 1.0, 2.0, 4.0):
        opened = sum(0 <= row["after_return_s"] <= after_s for row in rows)
        assert opened <= 10 * 2 ** (6 * after_s / RAMP_S)
