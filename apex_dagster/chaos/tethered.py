"""Runs a module as a program that ends when its standard input does, as everything in a run must:
whoever started it may be killed. `python -m apex_dagster.chaos.tethered MODULE ARGUMENT...`"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def end_with_input() -> None:
    """SIGTERM to ourselves once nobody holds our input open any more."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_input, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
