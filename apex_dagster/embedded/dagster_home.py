"""Where Dagster's processes find their configuration, and the environment that they run in."""

from __future__ import annotations

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from apex_dagster.settings import Settings

CONFIGURATION = ("dagster.yaml", "workspace.yaml")


def environment(settings: Settings) -> dict[str, str]:
    """Ours, and the home in force by name: Dagster's processes would look beside dagster.yaml."""
    home = str(settings.home.absolute())
    return {**os.environ, "DAGSTER_HOME": str(dagster_home(settings)), "APEX_HOME": home}


def dagster_home(settings: Settings) -> Path:
    """Where dagster.yaml and workspace.yaml stand: the checkout; else a folder below APEX_HOME with
    copies of those that come with the package."""
    package = files("apex_dagster")
    with as_file(package) as folder:
        checkout = folder.parent
        if all((checkout / name).is_file() for name in CONFIGURATION):
            return checkout
    home = settings.home / "dagster"
    home.mkdir(exist_ok=True)
    for name in CONFIGURATION:
        with as_file(package / name) as source:
            shutil.copyfile(source, home / name)
    return home
