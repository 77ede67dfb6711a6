"""The reliability page names tests: each of them exists, and each test that bears a number is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:\w+/)+\w+\.py)(?:::(\w+))?`", PAGE)))
ROWS = range(1, 78)
ELSEWHERE = {20, 41, 42, 44, *range(46, 50)}
"""Rows about PostgreSQL, and one that says how to build a thing, not what it must not do."""


def names(path: Path) -> set[str]:
    """The tests a file defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_what_the_page_names_exists(file: str, test: str) -> None:
    assert (TESTS / file).is_file()
    assert not test or test in names(TESTS / file)


def test_the_page_names_enough_to_prove_something() -> None:
    assert len(NAMED) > 40


def rows_of(test: str) -> set[int]:
    """The numbers in a test's name: row_5, rows_1_5_38, row_8_and_9."""
    found = re.search(r"rows?_((?:\d+_(?:and_)?)+)", test)
    return {int(number) for number in re.findall(r"\d+", found[1])} if found else set()


def test_every_row_of_the_catalogue_is_in_the_table_with_a_test_that_bears_its_number() -> None:
    tested: dict[int, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for name in names(path):
            for row in rows_of(name):
                tested.setdefault(row, set()).add(name)
    table = {int(row): line for row, line in re.findall(r"^\| (\d+) \|(.*)$", PAGE, re.MULTILINE)}
    wanted = set(ROWS) - ELSEWHERE
    assert wanted <= tested.keys(), f"no test bears {sorted(wanted - tested.keys())}"
    assert wanted <= table.keys(), f"the table lacks {sorted(wanted - table.keys())}"
    for row in wanted:
        assert any(name in table[row] for name in tested[row]), f"row {row} names none of {sorted(tested[row])}"
