"""Every call of a store is a point where a fault can strike: which there are, and what happens at some of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

from jobs_async.testing.faults import Fault


class Caller(NamedTuple):
    """Who asked for a call, other than the runtime itself."""

    name: str
    task: asyncio.Task[Any]


caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def call_as(name: str) -> None:
    """What the current task asks of a store is from now on asked by this name."""
    task = asyncio.current_task()
    assert task is not None
    caller.set(Caller(name, task))


class Point(NamedTuple):
    primitive: str
    caller: str | None


Strike = Callable[[], Fault | None]
"""What happens when a call is made, and what becomes of the call."""


class Points:
    """The plan of a FaultyStore: counts the calls made while it is on, and strikes at those that it is to strike at."""

    def __init__(self, strikes: Mapping[int, Strike] | None = None) -> None:
        self.passed: list[Point] = []
        self.is_on = True
        self.strikes = strikes or {}

    def __call__(self, _call: int, primitive: str) -> Fault | None:
        if not self.is_on:
            return None
        who = caller.get()
        self.passed.append(Point(primitive, who and who.name))
        strike = self.strikes.get(len(self.passed))
        return strike and strike()

    @property
    def struck(self) -> list[Point]:
        return [self.passed[at - 1] for at in self.strikes if at <= len(self.passed)]
