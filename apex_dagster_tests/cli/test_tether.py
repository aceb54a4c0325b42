"""Whatever ends first, nothing that was started on a tether stays."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

TETHER = [sys.executable, "-m", "apex_dagster.cli.tether"]
ROOT = Path(__file__).parents[2]

# A family: a child, a grandchild that outlives its parent, and one in a session of its own.
FAMILY = textwrap.dedent(
    """
    import json, os, subprocess, sys, time
    target = sys.argv[1]
    sleep = ["sleep", "600"]
    plain = subprocess.Popen(sleep)
    orphan = int(subprocess.check_output(
        ["bash", "-c", "sleep 600 >/dev/null & echo $!"]))
    session = subprocess.Popen(sleep, start_new_session=True)
    with open(target + ".new", "w") as file:
        json.dump([os.getpid(), plain.pid, orphan, session.pid], file)
    os.rename(target + ".new", target)
    if sys.argv[2] == "stay":
        time.sleep(600)
    sys.exit(7)
    """
)


def family_of(path: Path, starter: subprocess.Popen) -> list[psutil.Process]:
    """The processes that FAMILY has written down."""
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, "the family has not come up"
        with pytest.raises(subprocess.TimeoutExpired):
            starter.wait(0.05)
    return [psutil.Process(pid) for pid in json.loads(path.read_text())]


def assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_starter_that_is_killed_takes_everything_with_it(tmp_path):
    pids = tmp_path / "pids"
    starter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
            "time.sleep(600)",
            *TETHER,
            *(sys.executable, "-c", FAMILY, str(pids), "stay"),
        ],
        cwd=ROOT,
    )
    family = family_of(pids, starter)
    assert all(process.is_running() for process in family)
    starter.kill()
    starter.wait()
    assert_all_end(family)


def test_letting_go_of_the_tether_stops_everything(tmp_path):
    pids = tmp_path / "pids"
    command = [*TETHER, sys.executable, "-c", FAMILY, str(pids), "stay"]
    tether = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    family = family_of(pids, tether)
    tether.stdin.close()
    assert_all_end(family)
    assert tether.wait(30) != 0


def test_a_command_that_ends_leaves_nothing_behind(tmp_path):
    pids = tmp_path / "pids"
    command = [*TETHER, sys.executable, "-c", FAMILY, str(pids), "go"]
    tether = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    assert tether.wait(60) == 7
    left = [pid for pid in json.loads(pids.read_text()) if psutil.pid_exists(pid)]
    tether.stdin.close()
    assert left == []
