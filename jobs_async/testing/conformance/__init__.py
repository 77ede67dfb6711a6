"""What every store promises, as checks that need no test framework.

A check is `async def check(store, clock)`. It gets a fresh, open store that was built with that clock, states one
promise in its docstring and asserts it. Run them all, for instance with pytest:

    @pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
    async def test_my_store(check: Check) -> None:
        clock = FakeClock()
        async with MyStore(clock=clock) as store:
            await check(store, clock)

They are plain `assert` statements: run them without `python -O`, and call `pytest.register_assert_rewrite` with this
module's name before it is imported to see the values of one that fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from jobs_async.core.store import Store
from jobs_async.testing.clock import FakeClock
from jobs_async.testing.conformance import (
    apply,
    conditions,
    fence,
    fetch,
    insert,
    load,
    nodes,
    queues,
    records,
    select,
    unique,
    values,
    verbs,
)

if TYPE_CHECKING:
    from types import ModuleType

Check = Callable[[Store, FakeClock], Coroutine[Any, Any, None]]


def _checks(module: ModuleType) -> Iterator[Check]:
    """The public coroutine functions that a module defines itself, in its order."""
    for name, value in vars(module).items():
        if inspect.iscoroutinefunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
            yield value


_MODULES = (insert, unique, fetch, fence, apply, select, conditions, queues, records, nodes, verbs, values, load)
CHECKS: tuple[Check, ...] = tuple(check for module in _MODULES for check in _checks(module))
