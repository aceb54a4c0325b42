"""Neo4j's jars: what is on disk is what was tested, whatever happens on the way."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from apex_dagster.embedded import jars
from apex_dagster.embedded.jars import fetch_jars, local_repository, locked_jars
from apex_dagster.errors import ServerNotStarted


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def some_jars(monkeypatch):
    """The five smallest, so that a test takes no time."""
    chosen = tuple(sorted(locked_jars(), key=lambda jar: jar.size)[:5])
    monkeypatch.setattr(jars, "locked_jars", lambda: chosen)
    return chosen


@pytest.fixture
def mirror(stack, tmp_path, some_jars, monkeypatch):
    """A Maven repository on this machine, which jgo's settings name; empty is the local one.

    `stack` has put the true jars into the real local repository."""
    folder = tmp_path / "mirror"
    for jar in some_jars:
        (folder / jar.relative_path).parent.mkdir(parents=True, exist_ok=True)
        (folder / jar.relative_path).write_bytes(
            (local_repository() / jar.relative_path).read_bytes()
        )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = tmp_path / "jgo.conf"
    settings.write_text(f"[repositories]\ncentral = http://127.0.0.1:{server.server_port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    yield folder
    server.shutdown()
    server.server_close()


def test_missing_jars_are_downloaded_with_progress(mirror, some_jars, tmp_path):
    events = []
    paths = fetch_jars(events.append)
    assert [path.stat().st_size for path in paths] == [jar.size for jar in some_jars]
    total = sum(jar.size for jar in some_jars)
    assert (events[-1].done, events[-1].total) == (total, total)
    left = [path.name for path in (tmp_path / "m2").rglob("*") if path.is_file()]
    assert sorted(left) == sorted([".apex-dagster.lock", *(path.name for path in paths)])


def test_second_start_downloads_nothing(mirror):
    fetch_jars(lambda event: None)
    events = []
    fetch_jars(events.append)
    assert events == []


def test_download_that_was_cut_off_is_repeated(mirror, some_jars):
    broken = fetch_jars(lambda event: None)[2]
    os.truncate(broken, 10)
    fetch_jars(lambda event: None)
    assert broken.stat().st_size == some_jars[2].size


def test_jar_that_is_not_the_tested_one_is_refused(mirror, some_jars, tmp_path):
    forged = mirror / some_jars[1].relative_path
    forged.write_bytes(forged.read_bytes()[:-1] + b"x")
    with pytest.raises(ServerNotStarted, match="sha256 is not the one that was tested") as caught:
        fetch_jars(lambda event: None)
    assert some_jars[1].coordinate in str(caught.value)
    assert not (tmp_path / "m2" / some_jars[1].relative_path).exists()


def test_no_network_says_what_to_do(mirror, some_jars):
    for jar in some_jars:
        (mirror / jar.relative_path).unlink()
    with pytest.raises(ServerNotStarted, match="APEX_NEO4J_URI"):
        fetch_jars(lambda event: None)
