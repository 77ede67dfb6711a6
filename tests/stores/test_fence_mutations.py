"""Every term that guards a write is needed: take one away, and a conformance check fails.

Terms are found, not listed: in SQL each line that begins with WHERE, ON or AND, and the first line of a block that is
a condition; in the memory store each operand of `lifecycle.fits`. A new term that no check needs fails here.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from jobs_async.core import lifecycle
from jobs_async.core.job import Job
from jobs_async.core.store import Store
from jobs_async.stores.memory import MemoryStore
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.stores.sqlite.writer import SQL
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance import CHECKS, Check
from jobs_async.testing.machine import store_machine

STATEMENTS = dict(SQL)

EQUIVALENT = {
    # implied by the comparison of the first characters; leads to the keys' order
    ("get_records", "AND key >= :prefix"),
    # implied by the terms beside them; without these SQLite would not use the partial index
    ("twins", "AND unique_key IS NOT NULL"),
    ("twins", "AND idempotency_key IS NOT NULL"),
    ("purge", "WHERE completed_at IS NOT NULL"),
    # a question: more rows than asked for are looked up by key all the same
    ("twins", "WHERE unique_key IN (SELECT value FROM json_each(:unique_keys))"),
    ("twins", "ON idempotency_key = wanted.value ->> 1"),
    ("twins", "AND worker = wanted.value ->> 0"),
    # the query asks for the same queues beside it; without these the jobs of all others would be gathered as well
    ("is_due_in", "WHERE queue IN (SELECT value FROM json_each(:queues))"),
}
"""Terms that are there for speed."""

FIRST = {
    "insert": "insert unique",
    "twins": "unique fence",
    "spend_tick": "insert",
    "stage": "fetch",
    "claim": "fetch",
    "apply": "fence",
    "is_orphaned": "select",
    "has_tags": "conditions",
    "has_args": "conditions",
    "is_due": "conditions",
    "is_due_in": "conditions",
    "delete": "queues",
    "purge": "queues",
    "renew_node": "nodes",
    "forget_nodes": "nodes",
    "put_record": "records",
    "get_records": "records",
    "drop_records": "records",
}
"""Which checks to try first, for speed alone; the others follow."""


Make = Callable[[FakeClock], Store]
SOUND: dict[str, frozenset[Check]] = {}
NO_SQL = re.compile("syntax error|incomplete input|no such column|ambiguous column|unrecognized token")


def _terms(statement: str) -> Iterator[tuple[str, str]]:
    """Each guarding term of a statement, in one line, and the statement without it."""
    lines = statement.splitlines()
    for number, line in enumerate(lines):
        opens = re.match(r"\s*(WHERE|AND|ON)\b(?! CONFLICT)", line)
        bare = number == 0 and not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", line)
        if not opens and not bare:
            continue
        end = number
        while (text := "\n".join(lines[number : end + 1])).count("(") > text.count(")"):
            end += 1
        stands_for = f"{opens[1]} true" if opens else "true"
        trail = ")" * (text.count(")") - text.count("("))
        without = [*lines[:number], stands_for + trail, *lines[end + 1 :]]
        term = " ".join(text.split())
        if term.lower() != "where true":
            yield term, "\n".join(without)


MUTANTS = [(name, term, mutant) for name, text in STATEMENTS.items() for term, mutant in _terms(text)]


def _ordered(checks: frozenset[Check], name: str) -> list[Check]:
    wanted = FIRST.get(name, "").split()
    return sorted(checks, key=lambda check: (check.__module__.rpartition(".")[2] not in wanted, CHECKS.index(check)))


async def _passes(make: Make, check: Check) -> bool:
    clock = FakeClock()
    try:
        async with make(clock) as store:
            await check(store, clock)
    except Exception as error:
        if NO_SQL.search(str(error)):
            pytest.fail(f"the mutant is no SQL: {error}")
        return False
    return True


async def _sound(make: Make, kind: str) -> frozenset[Check]:
    """The checks that pass without a mutation: only these can tell."""
    if kind not in SOUND:
        SOUND[kind] = frozenset([check for check in CHECKS if await _passes(make, check)])
    return SOUND[kind]


async def _survives(make: Make, checks: list[Check]) -> bool:
    """Do all checks pass?"""
    for check in checks:
        if not await _passes(make, check):
            return False
    return True


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Make]:
    """A new file for each check, in memory where the system has such a folder."""
    files, shared = count(), Path("/dev/shm")
    folder = Path(mkdtemp(dir=shared)) if shared.is_dir() else tmp_path
    yield lambda clock: SqliteStore(folder / f"{next(files)}.db", clock=clock)
    rmtree(folder)


def test_terms_are_found() -> None:
    names = [name for name, *_ in MUTANTS]
    assert {"apply", "claim", "delete", "is_orphaned", "purge", "renew_node", "stage"} <= set(names)
    assert names.count("apply") >= 4
    assert {(name, term) for name, term, _ in MUTANTS} >= EQUIVALENT, "an excuse for a term that is gone"


@pytest.mark.parametrize(("name", "term", "mutant"), MUTANTS, ids=[f"{name}: {term[:60]}" for name, term, _ in MUTANTS])
async def test_sqlite_needs_each_term(
    name: str, term: str, mutant: str, sqlite: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = await _sound(sqlite, "sqlite")
    monkeypatch.setitem(SQL, name, mutant)
    survives = await _survives(sqlite, _ordered(sound, name))
    assert survives is ((name, term) in EQUIVALENT), f"{name!r} works as well without {term!r}"


def _fence_terms() -> Iterator[tuple[str, Callable[[Job, Job], bool]]]:
    """Each operand of `lifecycle.fits`, and the fence without it."""
    function = ast.parse(inspect.getsource(lifecycle.fits)).body[0]
    [condition] = [node for node in ast.walk(function) if isinstance(node, ast.BoolOp)]
    for term in list(condition.values):
        rest = [ast.unparse(other) for other in condition.values if other is not term]
        fits: Callable[[Job, Job], bool] = eval(f"lambda row, base: {' and '.join(rest)}")
        yield ast.unparse(term), fits


FENCE = dict(_fence_terms())
EXAMPLES = settings(
    max_examples=200,
    stateful_step_count=30,
    phases=[Phase.generate],
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
LOOKED_UP = "row.id == base.id"
"""The memory store finds a row by its id: this term cannot be untrue there."""


def test_the_fence_has_its_terms() -> None:
    assert len(FENCE) >= 4
    assert LOOKED_UP in FENCE


@pytest.mark.parametrize("term", FENCE)
async def test_memory_needs_each_term_of_the_fence(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(clock: FakeClock) -> Store:
        return MemoryStore(clock=clock)

    sound = await _sound(memory, "memory")
    monkeypatch.setattr(lifecycle, "fits", FENCE[term])
    survives = await _survives(memory, _ordered(sound, "apply"))
    assert survives is (term == LOOKED_UP), f"the fence works as well without {term!r}"


@pytest.mark.parametrize("term", sorted(FENCE.keys() - {LOOKED_UP}))
def test_the_model_sees_a_fence_without_a_term(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 200 examples the state machine finds what the checks find."""
    monkeypatch.setattr(lifecycle, "fits", FENCE[term])
    machine = store_machine(lambda clock: MemoryStore(clock=clock))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=EXAMPLES)
