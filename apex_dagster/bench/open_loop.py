"""HTTP load: arrivals that do not wait for answers, and clients that do.

An open loop sends each request at its own time, whatever became of those before it, and counts
latency from that time: a stall is felt by all who arrive during it. Waiting for one answer before
the next request would hide it.
Source: G. Tene, "How NOT to Measure Latency", 2013 (coordinated omission).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp
import numpy as np
import orjson

REQUEST_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a load led to."""

    seconds: float  # from the first arrival to the last answer
    latencies_s: list[float] = field(repr=False)  # of the requests answered with 200
    statuses: dict[str, int]  # HTTP status, or the name of the client's error -> requests

    @property
    def succeeded(self) -> int:
        """Requests answered with 200."""
        return len(self.latencies_s)

    def summary(self) -> dict[str, object]:
        """Rates and percentiles, for people and programs."""
        percentiles = np.percentile(self.latencies_s or [float("nan")], (50, 90, 99, 100))
        names = ("p50_s", "p90_s", "p99_s", "max_s")
        return {
            "documents": self.succeeded,
            "documents_per_s": self.succeeded / self.seconds,
            **{name: float(value) for name, value in zip(names, percentiles, strict=True)},
            "statuses": self.statuses,
        }


class Poster:
    """Posts bodies to one address and keeps what came of it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url
        self.latencies_s: list[float] = []
        self.statuses: Counter[str] = Counter()

    async def post(self, body: bytes, due: float) -> None:
        """Send one; its latency counts from `due`, on the clock of time.perf_counter."""
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                await response.read()
                status = str(response.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        self._note(status, due)

    async def post_lines(self, bodies: Sequence[bytes], due: float) -> None:
        """Send all in one request, and note the answer of each line as it comes."""
        headers, lines = {"Content-Type": "application/x-ndjson"}, b"\n".join(bodies)
        async with self._session.post(self._url, data=lines, headers=headers) as response:
            response.raise_for_status()
            async for line in response.content:
                self._note(str(orjson.loads(line)["status"]), due)

    def _note(self, status: str, due: float) -> None:
        self.statuses[status] += 1
        if status == "200":
            self.latencies_s.append(time.perf_counter() - due)

    def load(self, begun: float) -> Load:
        """All of it so far."""
        return Load(
            seconds=time.perf_counter() - begun,
            latencies_s=self.latencies_s,
            statuses=dict(self.statuses),
        )


def arrivals(
    url: str, bodies: Iterator[bytes], *, rate_per_s: float, seconds: float, seed: int
) -> Load:
    """Open loop: a Poisson stream of `rate_per_s` for `seconds`, until the last answer."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate_per_s, int(rate_per_s * seconds))

    async def run(poster: Poster) -> Load:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            for offset in np.cumsum(gaps).tolist():
                due = begun + offset
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                requests.create_task(poster.post(next(bodies), due))
        return poster.load(begun)

    return asyncio.run(_with_session(url, run))


def saturated(url: str, bodies: Iterator[bytes], *, clients: int, seconds: float) -> Load:
    """Closed loop: each client sends its next request when the last is answered."""

    async def run(poster: Poster) -> Load:
        begun = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() - begun < seconds:
                await poster.post(next(bodies), time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        return poster.load(begun)

    return asyncio.run(_with_session(url, run))


def one_request(url: str, bodies: Iterator[bytes], *, documents: int) -> Load:
    """All of them as lines of one request; latencies count from its begin to a line's answer."""

    async def run(poster: Poster) -> Load:
        begun = time.perf_counter()
        await poster.post_lines(list(itertools.islice(bodies, documents)), begun)
        return poster.load(begun)

    return asyncio.run(_with_session(url, run))


async def _with_session(url: str, run: Callable[[Poster], Awaitable[Load]]) -> Load:
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)  # a client that queues would hide what it measures
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        return await run(Poster(session, url))
