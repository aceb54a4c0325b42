"""`apex api`: the HTTP side as a process of its own."""

from __future__ import annotations

import logging
import socket
from contextlib import closing, suppress

import click
import uvicorn
from fastapi import FastAPI

from apex_dagster.access.keys import usable_keys
from apex_dagster.api.app import create_app
from apex_dagster.api.hosts import is_loopback
from apex_dagster.cli.connect import check_postgres, known_endpoints, schema_errors
from apex_dagster.cli.exit_codes import HELP
from apex_dagster.errors import InvalidInput
from apex_dagster.logs import configure_logs
from apex_dagster.migrations.migrate import migrate
from apex_dagster.saga.admission import Admission
from apex_dagster.saga.breaker import BreakerPolicy, Breakers
from apex_dagster.saga.ledger import Ledger
from apex_dagster.settings import Settings

STOP_TIMEOUT_S = 10  # for requests under way; their sagas go on without them
BACKLOG = 2048


@click.command(epilog=HELP)
@click.option("--host", help="Default: APEX_API_HOST, 127.0.0.1. Others need API keys.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="0: a free one. Default: APEX_API_PORT, 8000."
)
def api(host: str | None, port: int | None) -> None:
    """Serve POST /documents/ingest, and what is live, until Ctrl-C.

    Opens sagas and waits for them; Dagster drives them, so it has to run as well (`apex demo`).
    The stores must have been started (`apex up`). GET /docs describes every request.
    """
    settings = Settings()
    host = settings.api_host if host is None else host
    keys = needs_keys(host, settings)
    listening = listen(host, settings.api_port if port is None else port)
    servers = known_endpoints(settings)
    url = servers.postgres_url.get_secret_value()
    check_postgres(url)
    with schema_errors():
        migrate(url)
    log_to_stderr()
    bound_host, bound_port = listening.getsockname()[:2]
    name = f"[{bound_host}]" if ":" in bound_host else bound_host
    click.echo(f"API  http://{name}:{bound_port}  (described at /docs)")
    ledger = Ledger(url)
    with closing(ledger):
        click.echo(f"Keys {_about_keys(ledger, keys)}")
        admit = admission(ledger, settings).check
        serve(create_app(settings, servers, admit=admit, keys=keys), listening)


def needs_keys(host: str, settings: Settings) -> bool:
    """Whether requests have to bring a key. Raises InvalidInput where they would have to."""
    if settings.api_keys is not None and (settings.api_keys or is_loopback(host)):
        return settings.api_keys
    if settings.api_keys is False:
        raise InvalidInput(
            f"--host {host}: only a loopback address can be used with APEX_API_KEYS=false, as"
            " whoever reaches another could write; leave that setting out, and make a key with"
            " `apex key create`"
        )
    return not is_loopback(host)


def _about_keys(ledger: Ledger, keys: bool) -> str:
    if not keys:
        return "off: every program on this machine can read and write; else set APEX_API_KEYS=true"
    count = len(usable_keys(ledger))
    return f"required; {count} can be used" + ("" if count else ", `apex key create` makes one")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InvalidInput for a host or port that cannot be used."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"--host {host} --port {port}: cannot be used: {error}") from error


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until a signal ends it; requests under way then have STOP_TIMEOUT_S to end."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    with suppress(KeyboardInterrupt):  # Ctrl-C is how one leaves
        uvicorn.Server(config).run(sockets=[listening])


def log_to_stderr() -> None:
    """Whole lines, from information upwards."""
    configure_logs()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("apex_dagster").addHandler(handler)


def admission(ledger: Ledger, settings: Settings) -> Admission:
    """By what others find of the stores: this process reaches none but the ledger's."""
    policy = BreakerPolicy(
        timeout_s=settings.probe_timeout_s,
        delay_s=settings.probe_delay_s,
        delay_s_max=settings.probe_delay_s_max,
        ramp_s=settings.admission_ramp_s,
    )
    return Admission(Breakers(ledger, pings={}, policy=policy))
