"""Write apex_dagster/embedded/neo4j_jars.txt: every jar of one Neo4j release, with its sha256.

Run `python scripts/lock_neo4j.py 5.26.30` to move to another release. jgo resolves the tree from
the POM files, which takes about a minute; with this list a first start needs the jars only, and
refuses one that differs from what was tested.
"""

import argparse
import hashlib
from pathlib import Path

from jgo.maven import MavenContext

LOCK = Path(__file__).parents[1] / "apex_dagster" / "embedded" / "neo4j_jars.txt"


def lock(version: str) -> list[str]:
    """One line a jar: sha256, size in bytes, group:artifact:version[:classifier]."""
    context = MavenContext()
    neo4j = context.create_dependency(f"org.neo4j:neo4j:{version}")
    _, transitive = context.resolver.resolve([neo4j])
    needed = [dependency for dependency in transitive if dependency.scope in {"compile", "runtime"}]
    lines = []
    for artifact in [neo4j.artifact, *(dependency.artifact for dependency in needed)]:
        if artifact.packaging != "jar":
            continue
        jar = artifact.resolve().read_bytes()
        name = ":".join(
            part
            for part in (
                artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier,
            )
            if part
        )  # fmt: skip
        lines.append(f"{hashlib.sha256(jar).hexdigest()} {len(jar)} {name}")
    return sorted(set(lines), key=lambda line: line.split()[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version")
    LOCK.write_text("\n".join(lock(parser.parse_args().version)) + "\n")
