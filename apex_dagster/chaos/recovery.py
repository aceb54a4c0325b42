"""What `recovery_sensor` does, in a loop: `python -m apex_dagster.chaos.recovery`"""

from __future__ import annotations

import logging
import threading
import time

import structlog

from apex_dagster.chaos.processes import say_ready, wait_for_end_of_input
from apex_dagster.chaos.worker import application_over_known_servers
from apex_dagster.composition import Application
from apex_dagster.errors import ApexError
from apex_dagster.logs import configure_logs
from apex_dagster.saga import audit
from apex_dagster.saga.breaker import POSTGRES

log = structlog.get_logger(__name__)

_EVERY_S = 1.0
_TICK_S = 20.0
_ANCHOR_EVERY_S = 10.0


def main() -> None:
    """Recover, sweep and anchor until standard input ends."""
    configure_logs(level=logging.WARNING)
    app = application_over_known_servers()
    over = threading.Event()
    threading.Thread(target=wait_for_end_of_input, args=[over], daemon=True).start()
    say_ready()
    while not over.wait(_EVERY_S):
        try:
            tick(app)
        except ApexError as error:  # a store is down: the next turn may succeed
            log.warning("recovery_tick_failed", error=str(error))


def tick(app: Application) -> None:
    """Take over expired leases, a few at a time while the tick may last; then sweep and anchor."""
    refusal = app.admission.refusal()
    if refusal and refusal.store == POSTGRES:
        return
    owner, deadline = f"recovery:{time.time_ns()}", time.monotonic() + _TICK_S
    while time.monotonic() < deadline and app.ingestion.recovery.recover(owner=owner):
        pass
    if not app.breakers.down():
        app.ingestion.sweep(limit=100)
    audit.anchor(app.ledger, every_s=_ANCHOR_EVERY_S)


if __name__ == "__main__":
    main()
