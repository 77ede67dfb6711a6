"""Every page of the documentation runs as it is printed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster import PgServer
from tests.docs.pages import ROOT, pages

PAGES = [page for page in pages() if page.name != "README.md"]
Ran = subprocess.CompletedProcess[str]


def run(page: Path, folder: Path, more: dict[str, str]) -> Ran:
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "docs" / "pages.py"), str(page)]
    return subprocess.run(
        command, check=False, cwd=folder, env=os.environ | more, capture_output=True, text=True, timeout=100
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pg_cluster: PgServer) -> Iterator[dict[Path, Future[Ran]]]:
    """All pages, each in a process and a folder of its own, a few at a time: mostly they wait.

    A page that asks for a DATABASE_URL has an empty PostgreSQL database.
    """
    with ExitStack() as databases, ThreadPoolExecutor(4) as pool:
        more = {
            page: {"DATABASE_URL": databases.enter_context(pg_cluster.database())}
            for page in PAGES
            if "DATABASE_URL" in page.read_text(encoding="utf-8")
        }
        yield {page: pool.submit(run, page, tmp_path_factory.mktemp(page.stem), more.get(page, {})) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_code_of_a_page_runs_and_prints_what_it_shows(page: Path, runs: dict[Path, Future[Ran]]) -> None:
    ran = runs[page].result()
    assert ran.returncode == 0, ran.stderr
