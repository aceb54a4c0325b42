"""Which seeds a test session tries: the same ones always, and others every day."""

from __future__ import annotations

from datetime import UTC, datetime

FIXED = range(250)
_FIRST = int(f"{datetime.now(UTC):%Y%m%d}") * 1000
TODAY = range(_FIRST, _FIRST + 200)
