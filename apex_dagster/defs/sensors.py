"""Sensors: files that arrive start runs, and what dead runs left is finished."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import dagster as dg

from apex_dagster.defs.jobs import ingest_documents
from apex_dagster.defs.resources import SagasResource
from apex_dagster.defs.run import REFUSED_TAG, tag_ended_by_others
from apex_dagster.ingestion.inbox import QUARANTINE, DroppedFile, Inbox
from apex_dagster.ingestion.interventions import RETRIES_A_BATCH
from apex_dagster.ingestion.overdue import report_overdue
from apex_dagster.ingestion.sidecar import body_hash
from apex_dagster.saga import audit
from apex_dagster.saga.breaker import POSTGRES
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.submissions import forget_keys
from apex_dagster.settings import Settings

# More runs would only queue; the next tick asks for the rest.
_RUNS_A_TICK = 10
_RUN_KEY_TAG = "dagster/run_key"
# A tick that lasts longer than a minute is given up by the daemon.
_RECOVERY_TICK_S = 20.0
# Files of a run are read at once.
_BYTES_A_RUN = 64 * 1024 * 1024
# What workers have not claimed when its lease is over, this sensor has to drive, one by one.
_RETRIES_A_TICK = 250
# A file that its run did not take in waits this long times 2^(attempts - 1), at most an hour.
_RETRY_AFTER_S = 15.0
_RETRY_AFTER_S_MAX = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the sensor remembers of one file between ticks."""

    signature: str
    run_key: str | None = None  # of the run last asked for, None: not asked yet
    attempts: int = 0
    refused: int = 0  # runs that took nothing in, as a store was down: these are no attempts
    content_hash: str | None = None


@dg.sensor(
    job=ingest_documents,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ingests files dropped into the inbox, once they have stopped changing.",
)
def inbox_sensor(context: dg.SensorEvaluationContext, sagas: SagasResource) -> dg.SensorResult:
    """Ask for runs of files that are the same as at the last tick.

    Once a run has taken a file in, the ledger sees to it, retries included; the sensor asks again
    for those only that their run did not take in, and gives them up after so many runs. The run key
    holds content and attempt, because Dagster remembers it for ever. While a store is down it asks
    for nothing and counts nothing, and says why.
    """
    app = sagas.application()
    if refusal := app.admission.refusal():
        return dg.SensorResult(skip_reason=str(refusal), cursor=context.cursor)
    app.inbox.settle(app.ledger)
    seen = {uri: _Seen(**entry) for uri, entry in json.loads(context.cursor or "{}").items()}
    in_hand = app.inbox.in_hand(app.ledger)
    now: dict[str, _Seen] = {}
    ready: list[DroppedFile] = []
    for file in app.inbox.files():
        entry = seen.get(file.uri)
        if entry is None or entry.signature != file.signature:
            now[file.uri] = _Seen(signature=file.signature)  # new or still changing: look again
            continue
        entry = now[file.uri] = _after_refusal(context.instance, _known_hash(file, entry, in_hand))
        if (file.uri, entry.content_hash) in in_hand:
            continue
        if entry.run_key is None or _may_try_again(context.instance, entry):
            if entry.attempts >= app.settings.file_attempts:
                _give_up(app.inbox, file, entry)
            else:
                ready.append(file)
    ready = ready[: _RUNS_A_TICK * app.settings.batch_documents]
    granted = app.admission.grant(len(ready)) if ready else 0
    requests = list(_requests(ready[:granted], now, app.settings))
    held = sum((uri, entry.content_hash) in in_hand for uri, entry in now.items())
    waiting = sum(entry.run_key is None for entry in now.values())
    reason = f"{waiting} files are new or changing, {held} under way, none is ready"
    if ready:
        reason = f"{len(ready)} files wait: a store is back since a moment, or down again"
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else reason,
        cursor=json.dumps({uri: asdict(entry) for uri, entry in now.items()}),
    )


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Finishes sagas whose owner died, tries files again that failed for a passing"
    " cause, and removes what is over: superseded versions, idempotency keys that nobody repeats.",
)
def recovery_sensor(context: dg.SensorEvaluationContext, sagas: SagasResource) -> dg.SkipReason:
    """Take over expired leases, a few at a time while the tick may last; it starts no runs."""
    app = sagas.application()
    refusal = app.admission.refusal()
    if refusal and refusal.store == POSTGRES:
        return dg.SkipReason(str(refusal))  # the ledger's server: nothing can be done without it
    owner, deadline = f"recovery:{time.time_ns()}", time.monotonic() + _RECOVERY_TICK_S
    finished: list[Saga] = []
    while time.monotonic() < deadline:
        some = app.ingestion.recovery.recover(owner=owner)
        finished += some
        if not some:
            break
    tag_ended_by_others(context.instance, app.ledger, finished)
    # Pending: warm workers drive them in runs of their own, this sensor where there are none.
    retried: list[Saga] = []
    while len(retried) < _RETRIES_A_TICK and time.monotonic() < deadline:
        some = app.ingestion.recovery.retry_due(limit=RETRIES_A_BATCH)
        retried += some
        if not some:
            break
    swept = 0 if app.breakers.down() else app.ingestion.sweep(limit=100)
    forget_keys(app.ledger, after_s=app.settings.idempotency_keep_s)
    app.inbox.settle(app.ledger)
    if anchor := audit.anchor(app.ledger):
        context.log.info(f"audit anchor {anchor.anchor_seq}: {anchor.hash}")
    for saga in finished:
        context.log.warning(f"{saga.saga_id} was left by its owner and is now {saga.status}")
    overdue = report_overdue(app.ledger, bound_s=app.settings.saga_bound_s)
    for saga in overdue:
        context.log.error(
            f"{saga.saga_id} is {saga.status} still, {app.settings.saga_bound_s:g} s after its "
            "lease ran out: `apex saga recover` shows why"
        )
    down = "".join(f"; {breaker.refusal()}" for breaker in app.breakers.down())
    return dg.SkipReason(
        f"{len(finished)} sagas finished, {len(retried)} files tried again, "
        f"{swept} old versions removed, "
        f"{len(overdue)} overdue{down}"
    )


def _requests(
    files: list[DroppedFile], now: dict[str, _Seen], settings: Settings
) -> Iterator[dg.RunRequest]:
    for group in _groups(files, settings.batch_documents):
        batch = _hashed(group)
        if not batch:
            continue
        attempts = {file.uri: now[file.uri].attempts + 1 for file in batch}
        # The signature as well: the same content dropped again is a new request, not a repeat that
        # Dagster would skip until its attempts are used up.
        parts = [
            [file.uri, content, file.signature, attempts[file.uri], now[file.uri].refused]
            for file, content in batch.items()
        ]
        run_key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        for file, content in batch.items():
            now[file.uri] = replace(
                now[file.uri],
                run_key=run_key,
                attempts=attempts[file.uri],
                content_hash=content,
            )
        paths = [file.uri for file in batch]
        yield dg.RunRequest(
            run_key=run_key,
            run_config={"ops": {"extract": {"config": {"paths": paths}}}},
            tags={"saga/source": "inbox", "saga/files": str(len(batch))},
        )


def _groups(files: list[DroppedFile], files_max: int) -> Iterator[list[DroppedFile]]:
    """Runs of files, bounded in number and size; a file larger than the bound has its own."""
    group: list[DroppedFile] = []
    for file in files:
        full = len(group) >= files_max or sum(f.size for f in group) + file.size > _BYTES_A_RUN
        if group and full:
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def _hashed(files: list[DroppedFile]) -> dict[DroppedFile, str]:
    hashed = {}
    for file in files:
        try:
            hashed[file] = body_hash(file.path)
        except FileNotFoundError:
            continue  # taken away since it was listed
    return hashed


def _known_hash(file: DroppedFile, entry: _Seen, in_hand: set[tuple[str, str]]) -> _Seen:
    """With the hash of a file that the ledger may have taken in before this sensor's time."""
    if entry.content_hash or all(uri != file.uri for uri, _ in in_hand):
        return entry
    return replace(entry, content_hash=_hashed([file]).get(file))


def _after_refusal(instance: dg.DagsterInstance, entry: _Seen) -> _Seen:
    """As if it had not been asked for, where its run came to a closed door: that is no attempt."""
    records = _runs_of(instance, entry)
    if records and REFUSED_TAG in records[0].dagster_run.tags:
        attempts, refused = entry.attempts - 1, entry.refused + 1
        return replace(entry, run_key=None, attempts=attempts, refused=refused)
    return entry


def _runs_of(instance: dg.DagsterInstance, entry: _Seen) -> Sequence[dg.RunRecord]:
    if entry.run_key is None:
        return []
    return instance.get_run_records(dg.RunsFilter(tags={_RUN_KEY_TAG: entry.run_key}), limit=1)


def _may_try_again(instance: dg.DagsterInstance, entry: _Seen) -> bool:
    """Whether the last run has ended, long enough ago, and yet the file is still here."""
    records = _runs_of(instance, entry)
    if not records or not records[0].dagster_run.is_finished:
        return False
    wait_s = min(_RETRY_AFTER_S_MAX, _RETRY_AFTER_S * 2.0 ** (entry.attempts - 1))
    return time.time() - (records[0].end_time or 0.0) > wait_s


def _give_up(inbox: Inbox, file: DroppedFile, entry: _Seen) -> None:
    reason = {
        "file": file.path.name,
        "reason": f"{entry.attempts} runs have ended without taking it in; the last one says why",
        "what_now": "Look at its runs in the Dagster UI, then drop it into the inbox again.",
    }
    inbox.put_away(file.uri, entry.content_hash or body_hash(file.path), QUARANTINE, reason)
