"""Write the table of settings in docs/settings.md from apex_dagster/settings.py.

.venv/bin/python scripts/document_settings.py           brings the table up to date
.venv/bin/python scripts/document_settings.py --check   fails when it is not
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from apex_dagster.settings import Settings

DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"
START, END = "<!-- table: scripts/document_settings.py -->\n", "<!-- end of table -->\n"
# What a factory computes, in words; a name that is missing here fails.
COMPUTED = {"home": "`.apex` in `DAGSTER_HOME`, else in the working directory"}


def table() -> str:
    """One row a setting, in the order of the class."""
    rows = [row(name, field) for name, field in Settings.model_fields.items()]
    return "| Variable | Default | Meaning |\n| --- | --- | --- |\n" + "".join(rows)


def row(name: str, field: FieldInfo) -> str:
    assert field.description, f"Settings.{name} has no description"
    secret = " (secret)" if SecretStr in (field.annotation, *get_args(field.annotation)) else ""
    return f"| `APEX_{name.upper()}` | {default(name, field)} | {field.description}{secret} |\n"


def default(name: str, field: FieldInfo) -> str:
    if field.default_factory is not None:
        return COMPUTED[name]
    value: Any = field.default
    return "" if value in (None, "") else f"`{value}`"


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = before + START + "\n" + table() + "\n" + END + after
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        sys.exit(f"{DOCUMENT.name} is not up to date: run scripts/document_settings.py")


if __name__ == "__main__":
    main()
