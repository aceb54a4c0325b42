"""The file path: documents dropped into the inbox, until all of them are live."""

from __future__ import annotations

import itertools
import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from apex_dagster.bench.timeline import POLL_S, Timeline
from apex_dagster.errors import ServerNotStarted
from apex_dagster.samples import sample_files

TEXT_SUFFIXES = (".txt", ".md")
FIRST_TIMEOUT_S = 180.0  # the daemon loads the project, then sees a file twice
TIMEOUT_S = 1800.0


def measure_files(
    inbox: Path, timeline: Timeline, daemon_log: Path, *, documents: int
) -> dict[str, Any]:
    """Drop the sample corpus' texts over and over, each with a line of its own, all at once.

    They are parsed, chunked, searched for entities and embedded here, unlike the prepared documents
    of the other loads. The daemon has to run; one file goes first, as its start does not count.
    Raises ServerNotStarted when nothing becomes of them.
    """
    files = _Files(inbox / f"bench-{secrets.token_hex(4)}")
    begun_at = timeline.now()
    files.drop(1)
    if not _wait(timeline, begun_at, documents=1, timeout_s=FIRST_TIMEOUT_S):
        raise ServerNotStarted("daemon", "it took in no file", daemon_log.read_text()[-2000:])
    begun_at, begun = timeline.now(), time.perf_counter()
    files.drop(documents)
    _wait(timeline, begun_at, documents=1, timeout_s=TIMEOUT_S)
    first_s = time.perf_counter() - begun
    live = _wait(timeline, begun_at, documents=documents, timeout_s=TIMEOUT_S)
    seconds = time.perf_counter() - begun
    return {
        "documents": live,
        "seconds": seconds,
        "documents_per_s": live / seconds,
        "first_s": first_s,
        "ms_by_part": timeline.parts(begun_at),
    }


class _Files:
    """Files of one folder, none twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True)
        samples = [file for file in sample_files() if Path(file.name).suffix in TEXT_SUFFIXES]
        texts = [(Path(file.name), file.read_text("utf-8")) for file in samples]
        self._texts = enumerate(itertools.cycle(texts))

    def drop(self, files: int) -> None:
        """Under another name first, as a well-behaved writer does."""
        for number, (name, text) in itertools.islice(self._texts, files):
            hidden = self._folder / f".{number}"
            hidden.write_text(f"Copy {number}.\n\n{text}", "utf-8")
            hidden.rename(self._folder / f"{name.stem}-{number:06d}{name.suffix}")


def _wait(timeline: Timeline, since: datetime, *, documents: int, timeout_s: float) -> int:
    """How many sagas opened since have completed and are published: all, else those by the end."""
    deadline = time.monotonic() + timeout_s
    while (live := timeline.completed(since)) < documents and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return live
