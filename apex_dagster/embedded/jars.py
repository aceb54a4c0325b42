"""Neo4j's jars from Maven Central, into the local Maven repository that other tools use as well.

`neo4j_jars.txt` lists them with their sha256 (`scripts/lock_neo4j.py` writes it). jgo
resolved the tree when the list was written: that is a minute of small requests.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from filelock import FileLock

from apex_dagster.embedded.server import OnProgress, Progress
from apex_dagster.errors import ServerNotStarted

DOWNLOADS = 8  # at once; the line is rarely the limit, the round trip is
DOWNLOAD_ATTEMPTS = 4
DOWNLOAD_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Jar:
    """One line of the list."""

    sha256: str
    size: int  # bytes
    coordinate: str  # group:artifact:version[:classifier]

    @property
    def relative_path(self) -> Path:
        """Where a Maven repository keeps it."""
        group, artifact, version, *classifier = self.coordinate.split(":")
        name = "-".join([artifact, version, *classifier]) + ".jar"
        return Path(*group.split("."), artifact, version, name)


@cache
def locked_jars() -> tuple[Jar, ...]:
    """All jars of the Neo4j release that is pinned."""
    text = (files("apex_dagster.embedded") / "neo4j_jars.txt").read_text()
    lines = (line.split() for line in text.splitlines())
    return tuple(
        Jar(sha256=sha256, size=int(size), coordinate=name) for sha256, size, name in lines
    )


def fetch_jars(report: OnProgress) -> list[Path]:
    """Paths of all jars, downloading those that are missing. Raises ServerNotStarted."""
    repository = local_repository()
    missing = [jar for jar in locked_jars() if not is_there(repository, jar)]
    if missing:
        repository.mkdir(parents=True, exist_ok=True)
        with FileLock(repository / ".apex-dagster.lock"):
            _download_all(repository, report)
    return [repository / jar.relative_path for jar in locked_jars()]


def is_there(repository: Path, jar: Jar) -> bool:
    """By name and size: files get their name only once their hash was checked, or came from
    another tool, whose broken downloads are shorter."""
    path = repository / jar.relative_path
    return path.exists() and path.stat().st_size == jar.size


def local_repository() -> Path:
    """~/.m2/repository, or what M2_REPO or jgo's own settings name instead."""
    from jgo.config import GlobalSettings

    return Path(GlobalSettings.load().repo_cache)


def _download_all(repository: Path, report: OnProgress) -> None:
    missing = [jar for jar in locked_jars() if not is_there(repository, jar)]
    total, done = sum(jar.size for jar in missing), 0
    with (
        tempfile.TemporaryDirectory(dir=repository, prefix=".apex-dagster-") as folder,
        ThreadPoolExecutor(DOWNLOADS) as pool,
    ):
        source = Source()
        downloads = [
            pool.submit(_download, source, Path(folder), repository, jar) for jar in missing
        ]
        try:
            for download in as_completed(downloads):
                done += download.result().size
                report(Progress(server="neo4j", phase="downloading", done=done, total=total))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _download(source: Source, folder: Path, repository: Path, jar: Jar) -> Jar:
    import requests

    problem = ""
    for _ in range(DOWNLOAD_ATTEMPTS):
        try:
            content = source.get(jar)
        except requests.RequestException as error:
            problem = str(error)
            continue
        if hashlib.sha256(content).hexdigest() == jar.sha256:
            # Under its name at once or not at all, as other tools read this repository too.
            temporary, target = folder / jar.sha256, repository / jar.relative_path
            temporary.write_bytes(content)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(target)
            return jar
        problem = "its sha256 is not the one that was tested"
    raise ServerNotStarted(
        "neo4j",
        f"{jar.coordinate} could not be downloaded from Maven Central: check the network, or name "
        "a mirror as `central` in the [repositories] of jgo's settings, or set APEX_NEO4J_URI",
        problem,
    )


class Source:
    """Maven Central, or the mirror that jgo's settings name `central`; one connection a thread.

    jgo itself opens a connection for each file, which made 140 MB take 52 s instead of one.
    """

    def __init__(self) -> None:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL

        self.address = GlobalSettings.load().repositories.get("central", MAVEN_CENTRAL_URL)
        self.threads = threading.local()

    def get(self, jar: Jar) -> bytes:
        """The jar's content. Raises requests.RequestException."""
        import requests

        if not hasattr(self.threads, "session"):
            self.threads.session = requests.Session()
        url = f"{self.address.rstrip('/')}/{jar.relative_path.as_posix()}"
        response = self.threads.session.get(url, timeout=DOWNLOAD_TIMEOUT_S)
        response.raise_for_status()
        content: bytes = response.content
        return content
