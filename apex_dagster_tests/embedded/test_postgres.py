"""PostgreSQL where the account that runs it cannot reach our folders."""

import os
import shutil
import stat

import psycopg
import pytest

from apex_dagster.embedded.postgres import Postgres
from apex_dagster.embedded.stack import ignore

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change accounts")


@pytest.fixture
def closed_home(tmp_path):
    """Below a folder that only root can enter, like /root."""
    assert stat.S_IMODE(tmp_path.parent.stat().st_mode) & 0o011 == 0
    server = Postgres(tmp_path / "apex")
    yield tmp_path / "apex"
    server.stop()
    shutil.rmtree(server.moved, ignore_errors=True)


@as_root
def test_closed_folder_is_left_closed_and_the_data_put_elsewhere(closed_home):
    before = {path: path.stat().st_mode for path in closed_home.parents}
    server = Postgres(closed_home)
    state = server.ensure(ignore)
    assert {path: path.stat().st_mode for path in closed_home.parents} == before
    assert server.data.is_symlink()
    assert stat.S_IMODE(server.data.resolve().stat().st_mode) == 0o700
    with psycopg.connect(server.url(state)) as connection:
        connection.execute("CREATE TABLE proof ()")
    server.stop()
    with psycopg.connect(server.url(server.ensure(ignore))) as connection:
        connection.execute("SELECT FROM proof")


@pytest.fixture(scope="module")
def running(servers_root):
    server = Postgres(servers_root / "postgres-settings")
    yield server.ensure(ignore), server
    server.stop()


def test_settings_in_force(running):
    state, server = running
    with psycopg.connect(server.url(state)) as connection:

        def show(name):
            return connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0]

        assert int(show("max_connections")) == 200
        assert show("fsync") == show("full_page_writes") == show("synchronous_commit") == "on"
        assert show("listen_addresses") == "127.0.0.1"
        assert show("unix_socket_directories") == ""
        assert show("data_checksums") == "on"
        names = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert {"apex", "dagster"} <= names


def test_without_the_password_there_is_no_way_in(running):
    state, server = running
    url = server.url(state).replace(server.password(), "wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)
    assert server.password() not in server.log.read_text()


def test_initialisation_that_was_cut_off_starts_over(servers_root):
    """initdb's half-written folder is there, PG_VERSION is not."""
    server = Postgres(servers_root / "postgres-cut-off")
    server.make_directory()
    (server.data / "new").mkdir(parents=True)
    (server.data / "new" / "PG_VERSION").write_text("18\n")
    (server.data / "base").mkdir()
    try:
        if os.geteuid() == 0:
            from apex_dagster.embedded.account import server_account

            server_account().owns(server.data)
        server.data.chmod(0o700)
        assert server.ensure(ignore).ready
    finally:
        server.stop()


def test_lost_password_file_is_named(servers_root):
    server = Postgres(servers_root / "postgres-lost-password")
    try:
        server.ensure(ignore)
        server.stop()
        server.password_path.unlink()
        from apex_dagster.errors import ServerNotStarted

        with pytest.raises(ServerNotStarted, match="refuses the password in"):
            server.ensure(ignore)
    finally:
        server.stop()
