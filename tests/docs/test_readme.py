"""The README's code runs, alone and as printed; what it links to exists; its length is bounded."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks

README = ROOT / "README.md"
BLOCKS = blocks(README)
QUICK_START, WEB_APP = BLOCKS


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_runs_in_a_fresh_interpreter_and_prints_what_is_shown(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "docs" / "pages.py"), str(README), str(number)]
    ran = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_the_quick_start_is_short_shows_its_output_and_needs_nothing_around_it(tmp_path: Path) -> None:
    assert len(QUICK_START.code.strip().splitlines()) < 20
    program = tmp_path / "app.py"
    program.write_text(QUICK_START.code, encoding="utf-8")
    for _ in range(2):  # the second on the file that the first has left
        ran = subprocess.run([sys.executable, program], check=True, cwd=tmp_path, capture_output=True, text=True)
        assert ran.stdout == QUICK_START.output
        assert ran.stderr == ""


def test_the_web_app_answers_and_its_job_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(WEB_APP.code, names)
    app, jobs = names["app"], names["jobs"]
    with TestClient(app) as client:
        answer = client.post("/images/7")
        assert answer.status_code == 202
        assert client.portal is not None
        job = client.portal.call(partial(jobs.wait, answer.json()["job"], timeout=20))
    assert job.result == "7-small.png"


def test_its_length_is_bounded() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)(?=`|  )", README.read_text(encoding="utf-8"))) <= targets
