"""The example of a tested application, run as its author would; and that its tests find what they are there to find."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHOP = Path(__file__).parents[2] / "examples" / "testing"


def run(folder: Path) -> tuple[int, str]:
    """Its exit code and what it prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A copy to be tampered with."""
    return Path(shutil.copytree(SHOP, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__")))


def test_its_tests_pass_and_leave_no_file(shop: Path) -> None:
    before = {path.name for path in shop.iterdir()}
    code, output = run(shop)
    assert code == 0, output
    assert "9 passed" in output
    assert {path.name for path in shop.iterdir()} - {"__pycache__"} == before


@pytest.mark.parametrize(
    ("was", "becomes", "fails"),
    [
        ("if key not in self._seen", "if True", "test_a_charge_that_dies_on_the_way_charges_once"),
        ('send_receipt.options(idempotency_key=f"order:{order}")', "send_receipt", "test_a_charge_that_dies"),
        ('@worker(queue="mail")\nasync def send', "@worker\nasync def send", "test_a_job_from_its_arguments"),
        ("await send_receipt", "send_receipt", "test_an_order_with_all_that_follows"),
    ],
    ids=["charges twice", "mails twice", "another queue", "forgets an await"],
)
def test_they_fail_where_the_shop_does_wrong(shop: Path, was: str, becomes: str, fails: str) -> None:
    tasks = shop / "tasks.py"
    sound = tasks.read_text(encoding="utf-8")
    assert sound.count(was) == 1
    tasks.write_text(sound.replace(was, becomes), encoding="utf-8")
    code, output = run(shop)
    assert code == 1, output
    assert f"FAILED test_shop.py::{fails}" in output
