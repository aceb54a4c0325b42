"""`apex`: every command by name. A command's module is imported when it is called, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import click

from apex_dagster.cli import exit_codes

# command: (module and object that hold it, its line in `apex --help`)
COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "up": ("apex_dagster.cli.stack:up", "Start the embedded servers, or find them running."),
        "down": ("apex_dagster.cli.stack:down", "Stop the embedded servers; their data stays."),
        "doctor": ("apex_dagster.cli.doctor:doctor", "Say which stores are up, where and how."),
        "demo": ("apex_dagster.cli.demo:demo", "Start everything and ingest the sample corpus."),
        "api": ("apex_dagster.cli.api:api", "Serve POST /documents/ingest."),
        "key": ("apex_dagster.cli.key:key", "Make, list and revoke keys of the HTTP API."),
        "worker": ("apex_dagster.cli.worker:worker", "Keep warm processes that execute runs."),
        "search": ("apex_dagster.cli.search:search", "Find what is live, by words and meaning."),
        "status": ("apex_dagster.cli.status:status", "Show how every document stands."),
        "delete": (
            "apex_dagster.cli.delete:delete",
            "Remove a document from all stores, for good.",
        ),
        "receipt": ("apex_dagster.cli.receipt:receipt", "Show and check receipts of deletions."),
        "saga": ("apex_dagster.cli.saga:saga", "Look at sagas, finish or undo them."),
        "quarantine": (
            "apex_dagster.cli.quarantine:quarantine",
            "Look at documents whose saga cannot succeed, release or drop them.",
        ),
        "audit": (
            "apex_dagster.cli.audit:audit",
            "Prove that audit log, ledger and stores agree.",
        ),
        "reconcile": (
            "apex_dagster.cli.reconcile:reconcile",
            "Compare what stores hold with what they have to hold, and repair it.",
        ),
        "simulate": (
            "apex_dagster.cli.simulate:simulate",
            "Try the saga code under a virtual clock and injected faults.",
        ),
        "bench": ("apex_dagster.cli.bench:bench", "Measure what documents cost, and why."),
        "chaos": (
            "apex_dagster.cli.chaos:chaos",
            "Ingest while servers and processes are killed, and check every promise.",
        ),
        "alert": ("apex_dagster.cli.alert:alert", "See what fires, and test how it is told."),
        "metrics": ("apex_dagster.cli.metrics:metrics", "Print metrics for Prometheus."),
        "migrate": (
            "apex_dagster.cli.migrate:migrate",
            "Bring the ledger's schema to the newest version.",
        ),
    }
)


class LazyGroup(click.Group):
    """A group whose help needs none of its commands imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        return say_errors_plainly(lambda: super(LazyGroup, self).invoke(ctx))


def say_errors_plainly(call: Callable[[], Any]) -> Any:
    """Our own errors, and settings that cannot be used, as a message instead of a traceback."""
    try:
        return call()
    except Exception as error:
        message = plain_message(error)
        if message is None:
            raise
        raise exit_codes.as_click(error, message) from error


def plain_message(error: Exception) -> str | None:
    """What to tell the user; None for an error nobody foresaw, whose traceback is wanted."""
    from pydantic import ValidationError

    from apex_dagster.errors import ApexError

    if isinstance(error, ApexError):
        return str(error)
    if isinstance(error, ValidationError) and error.title == "Settings":
        # Without the input, which may be a password.
        return "; ".join(
            f"APEX_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False)
        )
    return None


@click.group(
    cls=LazyGroup, epilog=exit_codes.HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="apex-dagster")
def main() -> None:
    """Ingest documents into Neo4j, PostgreSQL, Qdrant and Redis: all four, or none."""


if __name__ == "__main__":
    main()
