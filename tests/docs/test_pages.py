"""Every page of the documentation runs as it is printed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, pages

PAGES = [page for page in pages() if page.name != "README.md"]
Ran = subprocess.CompletedProcess[str]


def run(page: Path, folder: Path) -> Ran:
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "docs" / "pages.py"), str(page)]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future[Ran]]]:
    """All pages, each in a process and a folder of its own, a few at a time: mostly they wait."""
    with ThreadPoolExecutor(4) as pool:
        yield {page: pool.submit(run, page, tmp_path_factory.mktemp(page.stem)) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page: Path, runs: dict[Path, Future[Ran]]) -> None:
    ran = runs[page].result()
    assert ran.returncode == 0, ran.stderr
