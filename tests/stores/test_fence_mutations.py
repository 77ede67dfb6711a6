"""Every term that guards a write is needed: take one away, and a conformance check fails.

Terms are found, not listed: in SQL each line that begins with WHERE, ON or AND, and the first line of a block that is
a condition; in the memory store each operand of `lifecycle.fits`. A new term that no check needs fails here.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from jobs_async.core import lifecycle
from jobs_async.core.job import Job
from jobs_async.core.store import Store
from jobs_async.stores.memory import MemoryStore
from jobs_async.stores.postgres.dialect import SQL as POSTGRES
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.stores.sqlite.writer import SQL as SQLITE
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance import CHECKS, Check
from jobs_async.testing.machine import store_machine
from tests.cluster import VERSIONS, PgServer
from tests.postgres.support import EmptiedStore

FIRST = {
    "insert": "insert unique",
    "twins": "a_second_life_needs_a_free_key unique fence",
    "spend_tick": "insert",
    "stage": "the_record_is_what_claimed_computes a_queue_hands_out_its_own_jobs due_jobs_become_available fetch",
    "claim": "only_a_live_node_claims a_paused_queue_hands_out_nothing a_queue_hands_out_its_own_jobs fetch",
    "apply": "each_job_of_a_batch_takes_its_own_step fence",
    "end": "fence",
    "in_queues": "select",
    "has_worker": "select",
    "has_external_id": "a_name_is_one_or_several",
    "has_error": "an_error_is_a_text_within_the_latest",
    "is_orphaned": "orphans_are_the_executing_jobs_of_dead_nodes",
    "has_tags": "conditions",
    "has_args": "conditions",
    "is_due": "conditions",
    "is_due_in": "conditions",
    "delete": "delete_keeps_what_is_in_another_state queues",
    "purge": "purge_removes_what_ended_strictly_before purge_removes_only_the_states_it_names queues",
    "join_node": "nodes",
    "renew_node": "a_lease_that_ran_out_stays_out nodes_live_each_for_itself nodes",
    "prolong_node": "nodes",
    "forget_nodes": "nodes",
    "put_record": "records",
    "get_records": "records",
    "drop_records": "records",
}
"""Which checks, or modules of checks, to try first, for speed alone; the others follow."""


Make = Callable[[FakeClock], Store]
Mutated = Callable[[], AbstractContextManager[object]]
Mutant = tuple[str, str, str]
NO_SQL = re.compile(
    "syntax error|incomplete input|no such column|ambiguous column|unrecognized token"
    "|SyntaxError|UndefinedColumn|UndefinedFunction|AmbiguousColumn|IndeterminateDatatype|DatatypeMismatch"
)


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


def _mutants(statements: Mapping[str, str]) -> list[Mutant]:
    return [(name, term, mutant) for name, text in statements.items() for term, mutant in _terms(text)]


IN_SQLITE, IN_POSTGRES = _mutants(SQLITE), _mutants(POSTGRES)

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
    # and whoever asks looks at the states himself, for elsewhere a row may end while it is waited for
    ("twins", "AND state IN (0, 1, 3, 6)"),
    # the query asks for the same queues beside it; without these the jobs of all others would be gathered as well
    ("is_due_in", "WHERE queue IN (SELECT value FROM json_each(:queues))"),
}
"""Terms that are there for speed, in SQLite."""

EQUIVALENT_IN_POSTGRES = {
    # implied by the comparison of the first characters; leads to the keys' order
    ("get_records", "AND key >= :prefix"),
    # implied by the terms beside them; without these the partial index would not be used
    ("twins", "AND unique_key IS NOT NULL"),
    ("twins", "AND idempotency_key IS NOT NULL"),
    ("purge", "WHERE completed_at IS NOT NULL"),
    # implied by the join with the batch, which alone might be made by reading the whole table
    ("apply", "AND job.id = ANY($1)"),
    ("end", "AND job.id = ANY($1)"),
    # a question: more rows than asked for are looked up by key and by state all the same; they would be locked as well
    ("twins", next(term for name, term, _ in IN_POSTGRES if name == "twins")),
    ("twins", "WHERE unique_key = ANY(ARRAY(SELECT jsonb_array_elements_text(:unique_keys::text::jsonb)))"),
    ("twins", "AND state IN (0, 1, 3, 6)"),
    ("twins", "WHERE idempotency_key = wanted ->> 1"),
    ("twins", "AND worker = wanted ->> 0"),
    # the query asks for the same queues beside it; without these the jobs of all others would be gathered as well
    ("is_due_in", "WHERE queue = ANY(ARRAY(SELECT jsonb_array_elements_text(:queues::jsonb)))"),
}
"""The same of PostgreSQL."""

GUARDS = ("claim", "apply", "end", "stage", "delete", "purge", "join_node", "renew_node")
"""The statements of PostgreSQL whose terms are tried each time; the rest takes long."""


def _ordered(name: str) -> list[Check]:
    """The checks, those that are likely to notice first."""
    wanted = FIRST.get(name, "").split()

    def place(check: Check) -> int:
        names = (check.__name__, check.__module__.rpartition(".")[2])
        return min((wanted.index(one) for one in names if one in wanted), default=len(wanted))

    return sorted(CHECKS, key=place)


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


async def _survives(make: Make, checks: list[Check], mutated: Mutated) -> bool:
    """Do all checks pass that pass without the mutation, too?"""
    for check in checks:
        with mutated():
            passed = await _passes(make, check)
        if not passed and await _passes(make, check):
            return False
    return True


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Make]:
    """A new file for each check, in memory where the system has such a folder."""
    files, shared = count(), Path("/dev/shm")
    folder = Path(mkdtemp(dir=shared)) if shared.is_dir() else tmp_path
    yield lambda clock: SqliteStore(folder / f"{next(files)}.db", clock=clock)
    rmtree(folder)


@pytest.fixture(scope="module")
def postgres(pg_versions: Callable[[int], PgServer]) -> Iterator[Make]:
    """A database whose tables are emptied for each check."""
    with pg_versions(VERSIONS[-1]).database() as dsn:
        yield lambda clock: EmptiedStore(dsn, clock)


@pytest.mark.parametrize(
    ("mutants", "excused"), [(IN_SQLITE, EQUIVALENT), (IN_POSTGRES, EQUIVALENT_IN_POSTGRES)], ids=["sqlite", "postgres"]
)
def test_terms_are_found(mutants: list[Mutant], excused: set[tuple[str, str]]) -> None:
    names = [name for name, *_ in mutants]
    assert {"apply", "claim", "delete", "is_orphaned", "purge", "renew_node", "stage"} <= set(names)
    assert names.count("apply") >= 4
    assert {(name, term) for name, term, _ in mutants} >= excused, "an excuse for a term that is gone"


def _named(mutant: Mutant, *marks: Any) -> Any:
    name, term, _ = mutant
    return pytest.param(*mutant, id=f"{name}: {term[:60]}", marks=marks)


def _tier(mutant: Mutant, quick: bool) -> Any:
    """What is excused passes every check, which takes long."""
    return _named(mutant, *([] if quick else [pytest.mark.soak]))


@pytest.mark.parametrize(
    ("name", "term", "mutant"), [_tier(mutant, mutant[:2] not in EQUIVALENT) for mutant in IN_SQLITE]
)
async def test_sqlite_needs_each_term(name: str, term: str, mutant: str, sqlite: Make) -> None:
    survives = await _survives(sqlite, _ordered(name), lambda: mock.patch.dict(SQLITE, {name: mutant}))
    assert survives is ((name, term) in EQUIVALENT), f"{name!r} works as well without {term!r}"


@pytest.mark.parametrize(
    ("name", "term", "mutant"),
    [_tier(mutant, mutant[0] in GUARDS and mutant[:2] not in EQUIVALENT_IN_POSTGRES) for mutant in IN_POSTGRES],
)
async def test_postgres_needs_each_term(name: str, term: str, mutant: str, postgres: Make) -> None:
    survives = await _survives(postgres, _ordered(name), lambda: mock.patch.dict(POSTGRES, {name: mutant}))
    assert survives is ((name, term) in EQUIVALENT_IN_POSTGRES), f"{name!r} works as well without {term!r}"


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
async def test_memory_needs_each_term_of_the_fence(term: str) -> None:
    def memory(clock: FakeClock) -> Store:
        return MemoryStore(clock=clock)

    survives = await _survives(memory, _ordered("apply"), lambda: mock.patch.object(lifecycle, "fits", FENCE[term]))
    assert survives is (term == LOOKED_UP), f"the fence works as well without {term!r}"


@pytest.mark.parametrize("term", sorted(FENCE.keys() - {LOOKED_UP}))
def test_the_model_sees_a_fence_without_a_term(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 200 examples the state machine finds what the checks find."""
    monkeypatch.setattr(lifecycle, "fits", FENCE[term])
    machine = store_machine(lambda clock: MemoryStore(clock=clock))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=EXAMPLES)
