"""Homes for servers that these tests start themselves."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest


@pytest.fixture
def home(servers_root: Path) -> Path:
    """An APEX_HOME that is not there yet; what is started in it is stopped with the session."""
    return servers_root / f"home-{os.getpid()}-{secrets.token_hex(4)}"
