"""Real processes that share a clock and a file, killed when their clock strikes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.scenario import play
from tests.conftest import Measured


@pytest.mark.parametrize(
    "load", [{"kills": 10}, pytest.param({"kills": 200, "seed": 2}, marks=pytest.mark.soak)], ids=["short", "full"]
)
def test_f16_row_30_nodes_killed_at_their_ticks_neither_lose_nor_double_one(
    tmp_path: Path, measured: Measured, load: dict[str, int]
) -> None:
    report = play("clockwork", tmp_path, **load)
    assert report["ticks"] >= report["kills"] == load["kills"]
    measured(
        "F16",
        f"5 processes, {report['kills']} × kill -9 of the one that fired last, within 50 ms of a tick",
        f"missing 0, double 0 of {report['ticks']} ticks, {report['killed_unheard']} stored by the dying",
    )
