"""Two tests that note which server they met, each once the other has begun: under `-n 2` both workers are needed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

SEEN = Path(os.environ["SEEN"])


@pytest.mark.parametrize("me", ["one", "other"])
def test_whose(me: str, pg_dsn: str) -> None:
    (SEEN / f"{me}.{os.getpid()}").write_text(pg_dsn)
    while len(list(SEEN.iterdir())) < int(os.environ["UNTIL"]):
        time.sleep(0.01)
