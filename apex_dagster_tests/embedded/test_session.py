"""The test session itself leaves nothing behind, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TEST = """
import os, signal
from pathlib import Path
from apex_dagster.embedded.stack import Stack

def test_starts_a_server(servers_root):
    Stack(servers_root / "home").ensure(["redis"])
    pid = Stack(servers_root / "home").redis.known().pid
    Path({report!r}).write_text(f"{{servers_root}} {{pid}}")
    {ending}
"""

ENDINGS = {
    "ends": "",
    "is interrupted": "os.kill(os.getpid(), signal.SIGINT)",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_no_server_is_left_when_the_session(ending, workers, tmp_path):
    report = tmp_path / "report"
    report.touch()
    test = tmp_path / "test_inner.py"
    test.write_text(TEST.format(report=str(report), ending=ENDINGS[ending]))
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
    session = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "apex_dagster_tests.conftest"),
            *("-p", "no:cacheprovider", f"--rootdir={tmp_path}", *workers, str(test)),
        ],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if workers and ending == "is killed":  # the controller; a killed worker alone is replaced
        wait_until(lambda: report.read_text() != "")
        session.send_signal(signal.SIGKILL)
    session.wait(120)
    root, pid = report.read_text().split()
    wait_until(lambda: not Path(root).exists())
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie"


def wait_until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)
