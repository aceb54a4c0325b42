"""One document from many senders at once, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys

from apex_dagster_tests.api.requests import body_of
from apex_dagster_tests.applications import assert_whole

PROCESSES, POSTS = 4, 50

SENDER = """
import asyncio, json, sys
import httpx

async def main(urls, posts):
    body = sys.stdin.buffer.read()
    limits = httpx.Limits(max_connections=posts)
    async with httpx.AsyncClient(timeout=240, trust_env=False, limits=limits) as client:
        headers = {"Content-Type": "application/json"}
        print("ready", flush=True)
        answers = await asyncio.gather(*[
            client.post(f"{urls[n % len(urls)]}/documents/ingest", content=body, headers=headers)
            for n in range(posts)
        ])
    print(json.dumps([[answer.status_code, answer.json()] for answer in answers]))

asyncio.run(main(sys.argv[2:], int(sys.argv[1])))
"""


def test_fifty_posts_of_one_document_from_four_processes_leave_one_version(
    start_api, driver, app, unique
):
    urls = [start_api().url for _ in range(2)]  # two servers, which know nothing of each other
    counts = [POSTS // PROCESSES + (n < POSTS % PROCESSES) for n in range(PROCESSES)]
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, str(count), *urls],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in counts
    ]
    for sender in senders:  # all of them wait for the body now
        sender.stdin.write(body_of(unique).decode())
    for sender in senders:
        sender.stdin.close()
    outputs = [sender.stdout.read() for sender in senders]
    assert [sender.wait(60) for sender in senders] == [0] * PROCESSES
    answers = [each for output in outputs for each in json.loads(output.splitlines()[-1])]
    assert len(answers) == POSTS
    assert {status for status, _ in answers} == {200}
    assert len({(body["saga_id"], body["version"]) for _, body in answers}) == 1
    [saga] = app.ledger.list_sagas(document_id=unique)
    assert (saga.status, saga.version) == ("completed", 1)
    assert_whole(app, unique)
