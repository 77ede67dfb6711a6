"""Every statement that a store makes is a point where a fault can strike, in the place of the database itself."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import pytest

from jobs_async.stores.sqlite.writer import SQL, Session

Do = Callable[[], Awaitable[Any]]
Fault = Callable[[Do], Awaitable[Any]]

STARTS = {text.partition(":rows")[0][:60]: name for name, text in SQL.items()}


def name_of(sql: str) -> str:
    """What our SQL calls a statement, otherwise its first words."""
    known = next((name for start, name in STARTS.items() if sql.startswith(start)), None)
    return known or " ".join(sql.split()[:2])


class Statement(NamedTuple):
    """The nth of its name, while the scene is played or while it is brought to its end."""

    phase: str
    name: str
    nth: int


class Statements:
    """Counts the statements of one scene, on whichever connection, and lets `fault` have the one that is `target`."""

    def __init__(self, target: Statement | None = None, fault: Fault | None = None) -> None:
        self.passed: Counter[tuple[str, str]] = Counter()
        self.phase = "play"
        self.struck = asyncio.Event()
        self.is_on = True
        self.target = target
        self.fault = fault

    @property
    def is_awaited(self) -> bool:
        """Whether the target may still come up in this phase."""
        return self.target is not None and self.target.phase == self.phase

    async def pass_by(self, name: str, do: Do) -> Any:
        if not self.is_on:
            return await do()
        kind = self.phase, name
        self.passed[kind] += 1
        if self.fault is None or Statement(*kind, self.passed[kind]) != self.target:
            return await do()
        self.struck.set()
        return await self.fault(do)


current: ContextVar[Statements] = ContextVar("statements")
"""Those of the scene that a task belongs to, for several are played at the same time."""


@contextmanager
def watched() -> Iterator[None]:
    """Have the statements that SQLite is asked for in every scene pass by."""
    original = Session.rows

    async def rows(self: Session, sql: str, params: Any = ()) -> Any:
        statements = current.get(None)
        if statements is None:
            return await original(self, sql, params)
        return await statements.pass_by(name_of(sql), lambda: original(self, sql, params))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "rows", rows)
        yield


def raising(name: str, *, done: bool = False) -> Fault:
    """An error that bears this name in SQLite, in place of the statement or after it."""

    async def fault(do: Do) -> Any:
        if done:
            await do()
        error = sqlite3.OperationalError(f"{name}, on purpose")
        error.sqlite_errorname, error.sqlite_errorcode = name, getattr(sqlite3, name)
        raise error

    return fault


def meanwhile(act: Callable[[], object], seconds: float = 0.0) -> Fault:
    """Something happens while a statement is under way, which may be slow to begin."""

    async def fault(do: Do) -> Any:
        act()
        if seconds:
            await asyncio.sleep(seconds)
        return await do()

    return fault
