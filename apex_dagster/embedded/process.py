"""One operating-system process that outlives the command that started it, and can be found again.

A server is known by a state file (pid, creation time, port, identity) and by an environment
variable that names its directory. The variable finds what the file cannot: a process whose starter
was killed between starting it and writing that down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

DIRECTORY_MARK = "APEX_SERVER_DIR"

# A child gets these and nothing else of our environment, which may hold other servers' passwords.
INHERITED = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "DYLD_LIBRARY_PATH")

LOG_BYTES_MAX = 16 * 1024 * 1024  # a log larger than this is put aside at the next start

# Children of this very process have to be reaped by it, or they stay zombies after their end: to a
# PostgreSQL that is started anew, its dead predecessor then seems to run still.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What one server's state file holds. A stopped server keeps its port for the next start."""

    port: int
    identity: str  # a server on this port that does not show it is not ours
    pid: int | None = None
    created_at: float | None = None  # seconds since 1970, as psutil.Process.create_time has it
    ready: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start one server. Never a secret in `argv`: every user of the machine can read it."""

    argv: Sequence[str]
    cwd: Path
    uid: int | None = None  # None: as ourselves
    gid: int | None = None


def read_state(path: Path) -> ServerState | None:
    """The state file's content, or None where there is none that can be read."""
    try:
        return ServerState(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_state(path: Path, state: ServerState) -> None:
    """Replace the state file."""
    write_private(path, json.dumps(asdict(state)))


def write_private(path: Path, text: str, *, uid: int = -1, gid: int = -1) -> None:
    """Write a file that its owner alone can read, so that no reader ever sees half of it."""
    # mkstemp creates with mode 600: there is no moment at which others could open the file.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchown(file.fileno(), uid, gid)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def start_detached(launch: Launch, *, directory: Path, log: Path) -> psutil.Process:
    """Start a server in a session of its own, so that Ctrl-C in this one's terminal spares it."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= {"LC_ALL": "C.UTF-8", "TZ": "UTC", DIRECTORY_MARK: str(directory)}
    with log.open("ab") as output:
        child = subprocess.Popen(
            list(launch.argv),
            cwd=launch.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=launch.uid,
            group=launch.gid,
            extra_groups=None if launch.uid is None else [],
        )
    _children[child.pid] = child
    process = psutil.Process(child.pid)  # while it cannot be gone without a trace
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()
    return process


def find(state: ServerState | None, directory: Path) -> psutil.Process | None:
    """The process that `state` speaks of, if it has not ended and is that one."""
    if state is None or state.pid is None:
        return None
    if state.pid in _children and _children[state.pid].poll() is not None:
        return None
    try:
        process = psutil.Process(state.pid)
        if has_ended(process):
            return None
        # Creation times are derived from the wall clock, which can be set; the mark cannot move.
        same_time = state.created_at is not None and (
            abs(process.create_time() - state.created_at) < 0.5
        )
        return process if same_time or is_marked(process, directory) else None
    except psutil.NoSuchProcess:
        return None


def is_marked(process: psutil.Process, directory: Path) -> bool:
    """Whether `process` was started as the server of `directory`."""
    try:
        return process.environ().get(DIRECTORY_MARK) == str(directory)
    except (psutil.Error, OSError):
        return False  # gone, or another user's: not ours either way


def find_strays(directory: Path) -> Iterator[psutil.Process]:
    """Processes of `directory` that its state file does not know."""
    for process in psutil.process_iter():
        if process.pid != os.getpid() and is_marked(process, directory):
            yield process


def stop(process: psutil.Process, *, signal_number: int, timeout_s: float) -> None:
    """Ask a process to end, wait, then kill it. Returns when it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)
        process.send_signal(signal.SIGCONT)  # a stopped process would not see the first one
        if not wait_ended(process, timeout_s):
            process.kill()
            wait_ended(process, timeout_s)
    if child := _children.pop(process.pid, None):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout_s)


def wait_ended(process: psutil.Process, timeout_s: float) -> bool:
    """Wait until a process has ended; False if it has not by then.

    Not psutil's wait: of a process that another one started, it waits until that one has taken
    note of the end, which a parent that is busy may never do.
    """
    deadline = time.monotonic() + timeout_s
    while not has_ended(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, with all its threads and therefore its port."""
    try:
        if not process.is_running():
            return True
        # A killed JVM is a zombie while its other threads still hold its sockets.
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; False while it is dying, too."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, or a note that there are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        text = ""
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
