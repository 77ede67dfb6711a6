"""What the long tests measured stands in one table below them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.chaos.scenario import ROOT

TESTS = """
import pytest

@pytest.mark.soak
def test_long(measured):
    measured("F1", "100 kills", "lost 0")
    measured("F18", "10 bad", "all good")

def test_short(measured):
    measured("F6", "a little", "not told")
"""


def test_long_tests_leave_a_table_and_short_ones_no_row(tmp_path: Path) -> None:
    file = tmp_path / "test_them.py"
    file.write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(tmp_path), "-o", "markers=soak"]
    command += ["-p", "tests.conftest", "-p", "no:cacheprovider", "--disable-plugin-autoload", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, table = re.split("=+ measured =+\n", done.stdout)
    head, *rows = [line for line in table.splitlines() if line][:-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d, Python [\d.]+\S*, SQLite [\d.]+, \d+ cores", head)
    assert rows == ["fault  load       result", "F1     100 kills  lost 0", "F18    10 bad     all good"]
