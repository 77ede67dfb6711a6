"""A store that misbehaves on purpose: what do your handlers do while theirs is slow, away, or silent?

    store = FaultyStore(MemoryStore(), odds(Random(7), fail=0.1, slow=0.2))      # the same faults in every run
    store = FaultyStore(SqliteStore("jobs.db"), at_call(3, Fault(hangs=True)))   # one fault, at the third call
    store.calm()                                                                 # and from now on none
    store.cut()                                                                  # or no answer ever again

A plan says which call meets which fault: any function of the call's number, from 1, and the primitive's name. Faults
are met by the store's primitives, of which its other verbs are made. To give a primitive odds of its own, put one
faulty store around another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from jobs_async.core.errors import OptionError, StoreBusy
from jobs_async.core.store import MAX_PAGE, PRIMITIVES, Store
from jobs_async.tasks import finish_anyway

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
    from datetime import datetime
    from random import Random

    from jobs_async.core.job import Job, JobState
    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.limits import Seconds
    from jobs_async.core.options import NewJob
    from jobs_async.core.store import Beat, Clock, Fetched, JobQuery, Node, QueueInfo, Tick

T = TypeVar("T")


class Fault(Struct, frozen=True, kw_only=True):
    """What happens to one call on its way to the store and back.

    Fault(before=2)                            does it two seconds late
    Fault(after=2)                             does it at once, and answers two seconds late
    Fault(error=StoreBusy)                     raises, and has done nothing
    Fault(error=ConnectionError, done=True)    does it, and raises all the same: the answer got lost
    Fault(hangs=True)                          does nothing, and never answers
    Fault(hangs=True, done=True)               does it, and never answers
    Fault(before=20, goes_on=True)             does it late, even where the caller has given up long before

    Who waits for a call that hangs waits until it is cancelled. An `error` is an exception, or a class to make one of.
    """

    before: float = 0.0
    after: float = 0.0
    error: BaseException | type[BaseException] | None = None
    hangs: bool = False
    done: bool = False
    goes_on: bool = False


Plan = Callable[[int, str], Fault | None]
"""From the number of a call, counted from 1, and the name of the primitive to what it meets; None for nothing."""


def at_call(number: int, fault: Fault) -> Plan:
    """One fault, at the call of this number, whichever primitive it is."""
    return lambda call, _primitive: fault if call == number else None


def odds(
    rng: Random,
    *,
    slow: float = 0.0,
    fail: float = 0.0,
    lose: float = 0.0,
    hang: float = 0.0,
    seconds: float = 1.0,
    errors: Sequence[type[BaseException]] = (StoreBusy, ConnectionError),
    only: Collection[str] | None = None,
) -> Plan:
    """Faults by chance: each of the first four is a probability from 0 to 1, and their sum is one of any fault.

    A call that is to be `slow` takes up to `seconds` before it does what it was asked, and as long again before it
    answers; one that is to `fail` does nothing and raises one of `errors`; one that is to `lose` its answer does what
    it was asked and raises; one that is to `hang` never answers, having done it or not. `only` names the primitives
    concerned.

    Raises:
        OptionError: these are no probabilities, or `only` names what is no primitive.
    """

    if min(slow, fail, lose, hang) < 0 or slow + fail + lose + hang > 1:
        raise OptionError("slow, fail, lose and hang are probabilities, and their sum is at most 1")
    unknown = sorted(set(only or ()) - set(PRIMITIVES))
    if unknown:
        raise OptionError(f"{unknown[0]!r} is no primitive of a store; those are {', '.join(PRIMITIVES)}")

    def plan(_call: int, primitive: str) -> Fault | None:
        if only is not None and primitive not in only:
            return None
        dice = rng.random()
        if dice < slow:
            return Fault(before=rng.uniform(0, seconds), after=rng.uniform(0, seconds))
        if dice < slow + fail:
            return Fault(error=rng.choice(errors))
        if dice < slow + fail + lose:
            return Fault(error=rng.choice(errors), done=True)
        if dice < slow + fail + lose + hang:
            return Fault(hangs=True, done=rng.random() < 0.5)
        return None

    return plan


class FaultyStore(Store):
    """Any store, and what a plan has in mind for each call; without a plan it changes nothing.

    `plan` may be changed at any time. `calls` counts the calls of primitives, from which a test learns where a fault
    can be put; `faults` counts those that met one. Opening and closing meet none. There is no lifeline: a lease is
    renewed by calls, or not at all.
    """

    def __init__(self, inner: Store, plan: Plan | None = None) -> None:
        self.inner = inner
        self.calls = 0
        self.faults = 0
        self.plan = plan
        self._is_cut = False
        self._never = asyncio.Event()

    def calm(self) -> None:
        """No fault from now on. A call that hangs already goes on hanging."""
        self.plan = None

    def cut(self) -> None:
        """No answer from now on, for ever, as for a process that was killed: who calls or waits for an answer hangs.

        What a call under way has not done yet stays undone, unless its fault `goes_on`.
        """
        self._is_cut = True

    async def _meet(self, primitive: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One call of a primitive."""
        self.calls += 1
        number = self.calls
        fault = self.plan(number, primitive) if self.plan is not None else None
        self.faults += fault is not None
        await self._gate()
        try:
            if fault is None:
                answer = await work()
            else:
                trip = self._trip(fault, f"on purpose: call {number}, {primitive}", work)
                answer = await (finish_anyway(trip) if fault.goes_on else trip)
        except Exception:
            await self._gate()
            raise
        await self._gate()
        return answer

    async def _trip(self, fault: Fault, text: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """To the store and back, with a fault on the way."""
        if fault.before:
            await asyncio.sleep(fault.before)
        if not fault.goes_on:
            await self._gate()
        if not fault.done:
            await self._strike(fault, text)
        answer = await work()
        if fault.after:
            await asyncio.sleep(fault.after)
        await self._strike(fault, text)
        return answer

    async def _strike(self, fault: Fault, text: str) -> None:
        if fault.hangs:
            await self._never.wait()
        if fault.error is not None:
            raise fault.error(text) if isinstance(fault.error, type) else fault.error

    async def _gate(self) -> None:
        """Lets nobody through once the line is cut."""
        if self._is_cut:
            await self._never.wait()

    # --- the primitives ---

    async def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None, **options: Any) -> list[Job[Any]]:
        return await self._meet("insert", lambda: self.inner.insert(new, tick=tick, **options))

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        return await self._meet("fetch", lambda: self.inner.fetch(queue, limit, node=node))

    async def apply(self, steps: Sequence[Transition], **options: Any) -> list[Job[Any] | None]:
        return await self._meet("apply", lambda: self.inner.apply(steps, **options))

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        return await self._meet("select", lambda: self.inner.select(query))

    async def delete(self, ids: Sequence[int], *, states: Iterable[JobState] | None = None) -> int:
        return await self._meet("delete", lambda: self.inner.delete(ids, states=states))

    async def purge(self, states: Iterable[JobState], older_than: Seconds | datetime, limit: int = MAX_PAGE) -> int:
        return await self._meet("purge", lambda: self.inner.purge(states, older_than, limit))

    async def tally(self) -> Mapping[tuple[str, JobState], int]:
        return await self._meet("tally", self.inner.tally)

    async def set_queue(self, name: str, *, paused: bool | None = None, limit: int | None = None) -> bool:
        return await self._meet("set_queue", lambda: self.inner.set_queue(name, paused=paused, limit=limit))

    async def queues(self) -> Mapping[str, QueueInfo]:
        return await self._meet("queues", self.inner.queues)

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        return await self._meet("beat", lambda: self.inner.beat(node, ttl, join=join))

    async def nodes(self) -> list[Node]:
        return await self._meet("nodes", self.inner.nodes)

    # --- life time ---

    async def open(self) -> None:
        await self._gate()
        await self.inner.open()

    async def close(self) -> None:
        await self._gate()
        await self.inner.close()

    @property
    def is_open(self) -> bool:
        return self.inner.is_open

    @property
    def shared_clock(self) -> Clock | None:
        return getattr(self.inner, "shared_clock", None)
