"""Named queries kept in .sql files, where editors and database people can read them."""

from __future__ import annotations

import re
from importlib import resources
from typing import LiteralString, cast

_HEADER = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def load_queries(package: str, file_name: str) -> dict[str, LiteralString]:
    """Read `file_name` of `package` and return {name: SQL}.

    A line `-- name --` starts each query; what stands before the first is the file's own comment.
    """
    text = resources.files(package).joinpath(file_name).read_text(encoding="utf-8")
    parts = _HEADER.split(text)
    # Shipped with the package, so as good as a literal: no part of it comes from a user.
    return {
        name: cast(LiteralString, query.strip())
        for name, query in zip(parts[1::2], parts[2::2], strict=True)
    }
