"""`jobs-async health`: an exit code for the probes of containers."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs_async import SqliteStore
from jobs_async.cli.main import main
from jobs_async.core.store import Node
from tests.sqlite.support import change


def invoke(*arguments: object, **environment: str) -> Any:
    return CliRunner().invoke(main, ["health", *map(str, arguments)], env=environment)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of jobs with one live node on this host, one on another, one that is dead."""

    async def prepare() -> None:
        async with SqliteStore(tmp_path / "jobs.db") as store:
            for name, host, ttl in (("a", socket.gethostname(), 3600), ("b", "elsewhere", 3600), ("c", "x", 0)):
                await store.beat(Node(id=name, host=host, queues={"mail": 1}), ttl, join=True)

    asyncio.run(prepare())
    return tmp_path / "jobs.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def test_it_is_up(url: str) -> None:
    result = invoke("--store", url)
    assert (result.exit_code, result.output) == (0, "up, 2 live nodes\n")
    result = invoke("--json", JOBS_STORE=url)
    assert (result.exit_code, json.loads(result.output)) == (0, {"up": True, "detail": "", "nodes": 2})
    assert invoke("--store", "memory://").output == "up, 0 live nodes\n"


def test_an_application_is_asked_for_its_store(tmp_path: Path, url: str) -> None:
    (tmp_path / "probed_app.py").write_text(f"from jobs_async import Supervisor\njobs = Supervisor({url!r})\n")
    result = invoke("probed_app:jobs", "--app-dir", tmp_path, "--role", "worker")
    assert (result.exit_code, result.output) == (0, "up, 2 live nodes\n")
    result = invoke("--app-dir", tmp_path, JOBS_APP="probed_app:jobs", JOBS_STORE="memory://")
    assert result.output == "up, 2 live nodes\n"


def test_a_worker_is_wanted_here_or_anywhere(path: Path, url: str) -> None:
    assert invoke("--store", url, "--role", "worker").exit_code == 0
    assert invoke("--store", url, "--here").output == "up, 1 live node\n"
    change(path, "DELETE FROM jobs_async_nodes WHERE id = 'a'")
    result = invoke("--store", url, "--here")
    assert (result.exit_code, result.output) == (1, f"down: no live node on {socket.gethostname()}\n")
    change(path, "DELETE FROM jobs_async_nodes WHERE id = 'b'")
    result = invoke("--store", url, "--role", "worker", "--json")
    assert (result.exit_code, json.loads(result.output)["detail"]) == (1, "no live node")
    assert invoke("--store", url).exit_code == 0


def test_a_sign_of_life_may_be_too_old(path: Path, url: str) -> None:
    assert invoke("--store", url, "--max-age", 3600).output == "up, 2 live nodes\n"
    change(path, "UPDATE jobs_async_nodes SET beat_at = beat_at - 100000000 WHERE id = 'a'")
    assert invoke("--store", url, "--max-age", 90).output == "up, 1 live node\n"
    change(path, "UPDATE jobs_async_nodes SET beat_at = beat_at - 100000000")
    result = invoke("--store", url, "--max-age", 90)
    assert (result.exit_code, result.output) == (1, "down: no live node with a sign of life in the last 90 s\n")


def test_a_store_that_cannot_be_used_is_down_and_nothing_is_created(tmp_path: Path) -> None:
    result = invoke("--store", f"sqlite:///{tmp_path}/typo.db")
    assert result.exit_code == 1
    assert result.output.startswith("down: the store cannot be used: it has no schema yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text.db").write_text("no database " * 100)
    result = invoke("--store", f"sqlite:///{tmp_path}/text.db")
    assert (result.exit_code, result.output[:6]) == (1, "down: ")
    assert result.output.count("\n") == 1
    assert invoke("--store", f"sqlite:///{tmp_path}").exit_code == 1, "a folder is no database"


@pytest.mark.parametrize(
    "arguments", [["--role", "king"], ["--max-age", "0"], ["--store", "redis://"], ["nowhere:jobs"]]
)
def test_usage_errors_are_told_from_illness(url: str, arguments: list[str]) -> None:
    target = [] if arguments[0] in ("--store", "nowhere:jobs") else ["--store", url]
    assert invoke(*target, *arguments).exit_code == 2


@pytest.fixture(autouse=True)
def forget_modules() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("probed_app", None)
