"""Named queries kept in .sql and .cypher files, where editors and database people can read them;
and the question whether a connection still works."""

from __future__ import annotations

import re
import select
from importlib import resources
from typing import Any, LiteralString, cast

import psycopg

_HEADER = re.compile(r"^(?:-- (\w+) --|// (\w+) //)$", re.MULTILINE)


def load_queries(package: str, file_name: str) -> dict[str, LiteralString]:
    """Read `file_name` of `package` and return {name: query}.

    A line `-- name --`, or `// name //` in Cypher, starts each query; what stands before the first
    is the file's own comment.
    """
    text = resources.files(package).joinpath(file_name).read_text(encoding="utf-8")
    parts = _HEADER.split(text)
    # Shipped with the package, so as good as a literal: no part of it comes from a user.
    return {
        sql_name or cypher_name: cast(LiteralString, query.strip())
        for sql_name, cypher_name, query in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


def check_not_hung_up(connection: psycopg.Connection[Any]) -> None:
    """A pool's question whether an idle connection still works, without asking the server.

    Nothing is due on it, so something to read is the server's farewell; a round trip would cost
    as much as a short query, and with a server that is silent, all the time there is.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        connection.close()
        raise psycopg.OperationalError("the server has closed the connection")
