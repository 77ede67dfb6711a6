"""The package as a newcomer meets it: what it exports, what it loads, where things stand."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jobs_async

ROOT = Path(__file__).parents[2]

HEAVY = ["aiosqlite", "sqlite3", "asyncpg", "rich", "click", "croniter", "starlette", "hypothesis", "pydantic"]


def test_importing_the_package_loads_no_driver_and_no_tool() -> None:
    code = f"import jobs_async, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_exists_and_is_no_submodule() -> None:
    assert sorted(jobs_async.__all__) == jobs_async.__all__
    for name in jobs_async.__all__:
        assert getattr(jobs_async, name) is not None
        if not name.startswith("__"):
            assert importlib.util.find_spec(f"jobs_async.{name}") is None, f"{name} is hidden by a module"
    public = {name for name in vars(jobs_async) if name[0].isalpha()}
    modules = {path.stem for path in (ROOT / "jobs_async").iterdir()}
    assert public - modules <= set(jobs_async.__all__)


def test_every_exported_name_says_what_it_guarantees() -> None:
    undocumented = [
        name
        for name in jobs_async.__all__
        if not name.startswith("__") and not (getattr(jobs_async, name).__doc__ or "").strip()
    ]
    assert undocumented == []


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = jobs_async.Nope


def test_the_version_is_told_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == jobs_async.__version__
    assert (
        f"## [{jobs_async.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
        or "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_no_file_shows_code_from_stored_names() -> None:
    for path in (ROOT / "jobs_async").rglob("*.py"):
        text = path.read_text()
        for banned in ("pickle", "import_module", "__import__", "eval(", "exec("):
            assert banned not in text, f"{path.name} mentions {banned}"


def test_row_67_every_task_has_somebody_who_holds_it() -> None:
    """The event loop keeps no task alive: one that nobody holds may vanish in the middle of its work."""
    seen = 0
    for path in (ROOT / "jobs_async").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("create_task", "asyncio.Task")):
                seen += 1
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func)
                assert not called.endswith(("create_task", "ensure_future", "asyncio.Task")), f"{path}:{node.lineno}"
    assert seen > 5
