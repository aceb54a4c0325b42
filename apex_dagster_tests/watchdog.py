"""Stops the test session's servers once the session is gone, however it ended.

Reads standard input, whose other end the session holds and nobody inherits: it closes when pytest
ends, is interrupted, or is killed. `python -m apex_dagster_tests.watchdog ROOT`
"""

import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from apex_dagster.embedded.stack import Stack


def remove_home(home: Path) -> None:
    """Stop what runs below one APEX_HOME and delete it."""
    stack = Stack(home)
    stack.down()
    # May be a link to elsewhere, where pytest runs as root below a folder that is closed to others.
    shutil.rmtree(stack.postgres.data.resolve(), ignore_errors=True)
    shutil.rmtree(home)


def main(root: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    homes = [path for path in root.iterdir() if path.is_dir()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remove_home, homes))
    shutil.rmtree(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
