"""Processes that die at the worst moment: nothing is lost, and a key keeps its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys

import httpx
import pytest

from apex_dagster_tests.api.requests import body_of, post
from apex_dagster_tests.applications import assert_whole

pytestmark = pytest.mark.anyio


async def until_opened(app, count=1) -> None:
    async with asyncio.timeout(60):
        while len(app.ledger.list_sagas()) < count:
            await asyncio.sleep(0.02)


async def test_a_killed_api_process_loses_nothing(start_api, idle_driver, app, unique):
    api = start_api()
    async with api.async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique), key=unique))
        await until_opened(app)
        api.kill()
        with pytest.raises(httpx.TransportError):
            await call
    second = start_api()
    async with second.async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique), key=unique))
        await asyncio.sleep(0.5)
        idle_driver.start()
        answer = await call
        again = await post(client, body_of(unique), key=unique)
    assert answer.status_code == 200
    assert again.content == answer.content
    assert [saga.version for saga in app.ledger.list_sagas()] == [1]
    assert_whole(app, unique)


async def test_an_api_process_killed_after_the_end_gives_the_same_saga(
    start_api, idle_driver, app, unique
):
    """The saga ends while nobody waits; whoever asks again is told so at once."""
    api = start_api()
    async with api.async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique), key=unique))
        await until_opened(app)
        api.kill()
        with pytest.raises(httpx.TransportError):
            await call
    idle_driver.drive_once()
    [saga] = app.ledger.list_sagas()
    with start_api().client() as client:
        answer = post(client, body_of(unique), key=unique)
    assert (answer.json()["saga_id"], answer.json()["published"]) == (saga.saga_id, True)


async def test_a_client_that_goes_away_changes_nothing(api, idle_driver, app, unique):
    async with api.async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique)))
        await until_opened(app)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    idle_driver.drive_once()
    assert_whole(app, unique)
    with api.client() as client:
        assert post(client, body_of(unique)).json()["unchanged"]


async def test_a_killed_worker_delays_the_answer_and_no_more(
    start_api, build_application, endpoints, qdrant_collection, redis_prefix, tmp_path, unique
):
    """Its lease runs out, recovery finishes what it left, and the request is answered."""
    app = build_application(lease_s=2.0)
    async with start_api(lease_s=2.0).async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique), key=unique))
        await until_opened(app)
        environment = os.environ | {
            "APEX_HOME": str(tmp_path),
            "APEX_NEO4J_URI": endpoints.neo4j_uri,
            "APEX_NEO4J_USER": endpoints.neo4j_user,
            "APEX_NEO4J_PASSWORD": endpoints.neo4j_password.get_secret_value(),
            "APEX_POSTGRES_URL": endpoints.postgres_url.get_secret_value(),
            "APEX_QDRANT_URL": endpoints.qdrant_url,
            "APEX_QDRANT_API_KEY": endpoints.qdrant_api_key.get_secret_value(),
            "APEX_REDIS_URL": endpoints.redis_url.get_secret_value(),
            "APEX_QDRANT_COLLECTION": qdrant_collection,
            "APEX_REDIS_PREFIX": redis_prefix,
            "APEX_LEASE_S": "2.0",
            "APEX_FAILPOINTS": "written:qdrant_write=kill",
        }
        command = [sys.executable, "-m", "apex_dagster_tests.api.driver_process", "doomed"]
        run = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, timeout=120
        )
        assert run.returncode == -signal.SIGKILL, run.stderr.decode()
        assert not call.done()
        async with asyncio.timeout(60):
            while not call.done():
                await asyncio.to_thread(app.ingestion.recovery.recover, owner="recovery")
                await asyncio.sleep(0.2)
        answer = await call
    assert answer.status_code == 200, answer.text
    assert_whole(app, unique)


async def test_a_lost_listener_is_made_up_for(api, idle_driver, app, unique):
    """Its connection is cut while a request waits; the saga ends before it is back."""
    async with api.async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique)))
        await until_opened(app)
        with app.ledger.transaction() as tx:
            cut = tx.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'listen_%'"
            ).rowcount
        assert cut == 1
        idle_driver.drive_once()
        async with asyncio.timeout(30):
            assert (await call).status_code == 200


async def test_a_stop_lets_requests_end(start_api, idle_driver, app, unique):
    api = start_api()
    async with api.async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique)))
        await until_opened(app)
        ended = asyncio.create_task(asyncio.to_thread(api.terminate))
        await asyncio.sleep(0.5)
        idle_driver.drive_once()
        assert (await call).status_code == 200
        # As uvicorn does when all has ended: it sends itself the signal again, or just returns.
        assert await ended in (-signal.SIGTERM, 0)
