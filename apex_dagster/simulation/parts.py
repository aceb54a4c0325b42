"""What a simulated world is made of; a test replaces one part by a broken one."""

from __future__ import annotations

from dataclasses import dataclass

from apex_dagster.saga.compensation import Compensation
from apex_dagster.saga.scheduled_retry import RetrySchedule
from apex_dagster.simulation.cache import ModelCache
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.graph import ModelGraph
from apex_dagster.simulation.ledger import SimulatedLedger
from apex_dagster.simulation.relational import ModelRelational
from apex_dagster.simulation.vectors import ModelVectors

SCHEDULE = RetrySchedule(attempts_max=2, delay_s=3.0, delay_s_max=20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The real code, over models that keep to the rules."""

    database: type[Database] = Database
    ledger: type[SimulatedLedger] = SimulatedLedger
    compensation: type[Compensation] = Compensation
    graph: type[ModelGraph] = ModelGraph
    relational: type[ModelRelational] = ModelRelational
    vectors: type[ModelVectors] = ModelVectors
    cache: type[ModelCache] = ModelCache
    grace_s: float = 60.0
    schedule: RetrySchedule = SCHEDULE
