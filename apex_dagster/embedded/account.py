"""The unprivileged account that runs PostgreSQL where we are root, as `postgres` refuses to.

Neither the machine's accounts nor the permissions of existing folders are changed for it.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

from apex_dagster.errors import InvalidInput

# The account that a PostgreSQL of the system would use, where there is one. initdb insists on an
# account with a name, so a made-up uid would not do.
CANDIDATES = ("postgres", "nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who runs a server; all None: we ourselves."""

    name: str | None = None
    uid: int | None = None
    gid: int | None = None

    def owns(self, path: Path) -> None:
        """Give `path` to the account."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def can(self, test: str, path: Path) -> bool:
        """Whether the account has access to `path`: `test` is -r, -w or -x, as in test(1)."""
        # Asked of the kernel rather than worked out from mode bits: groups, ACLs and mounts count.
        command = ["test", test, str(path)]
        return self.run(command, check=False).returncode == 0

    def run(self, command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as this account."""
        return subprocess.run(
            command,
            check=check,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            cwd="/",
            capture_output=True,
            text=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        )


def server_account() -> Account:
    """Ourselves, or an unprivileged account if we are root."""
    if os.geteuid() != 0:
        return Account()
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise InvalidInput(
        "PostgreSQL does not run as root, and this machine has no account named "
        f"{' or '.join(CANDIDATES)}: run apex as an ordinary user, or set APEX_POSTGRES_URL"
    )
