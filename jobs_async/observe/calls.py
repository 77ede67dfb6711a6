"""Every call of a store, with its duration and its outcome (nidus-jobs: store telemetry)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.core.query import MAX_PAGE
from jobs_async.core.records import records_of
from jobs_async.core.store import Store
from jobs_async.observe.adapters import OperationSpan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping, Sequence
    from datetime import datetime

    from jobs_async.core.health import Finding
    from jobs_async.core.hint import Hint
    from jobs_async.core.job import Job, JobState
    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.limits import Seconds
    from jobs_async.core.options import NewJob
    from jobs_async.core.query import JobQuery
    from jobs_async.core.records import Record
    from jobs_async.core.store import Beat, Clock, Fetched, Lifeline, Node, QueueInfo, Tick
    from jobs_async.inprocess import SpanFactory

T = TypeVar("T")

logger = logging.getLogger("jobs_async")


class StoreCall(Struct, frozen=True):
    """One call that has come back: what it was, how many seconds it took, and the kind of its error, if it raised."""

    operation: str
    seconds: float
    error: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.error is None


CallObserver = Callable[[StoreCall], object]
"""Called after each call, in line: it must be quick."""


class ObservedStore(Store):
    """Any store, and whoever watches its calls: `Supervisor(ObservedStore(SqliteStore("jobs.db"), seen.append))`.

    Observers are called in their order, each after every call. One that raises is logged, and neither the call nor
    the others notice. `span` makes a span `adapter.operation` around each call; `adapter` is its `adapter.name`.

    Raises:
        OptionError: an observer or `span` cannot be called, or `adapter` is not 1 to 255 bytes of text.
    """

    def __init__(
        self, inner: Store, *observers: CallObserver, span: SpanFactory | None = None, adapter: str = "store"
    ) -> None:
        for one in observers:
            if not callable(one):
                raise OptionError(f"an observer must be callable, a {limits.type_name(one)} is not")
        if span is not None and not callable(span):
            raise OptionError(f"span must be a function that makes one, not a {limits.type_name(span)}")
        self.inner = inner
        self._observers = observers
        self._span = span
        self._adapter = limits.name(adapter, "adapter")

    def __repr__(self) -> str:
        return f"ObservedStore({self.inner!r})"

    async def _observed(self, operation: str, call: Awaitable[T]) -> T:
        around = OperationSpan(self._span, self._adapter, operation)
        try:
            with around:
                return await call
        finally:
            self._tell(StoreCall(operation, around.seconds, around.error))

    def _tell(self, call: StoreCall) -> None:
        for one in self._observers:
            try:
                one(call)
            except Exception:
                logger.exception("an observer of store calls failed")

    async def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None, **more: Any) -> list[Job[Any]]:
        insert: Any = self.inner.insert  # a SQL store takes a connection as well
        jobs: list[Job[Any]] = await self._observed("insert", insert(new, tick=tick, **more))
        return jobs

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        return await self._observed("fetch", self.inner.fetch(queue, limit, node=node))

    async def apply(self, steps: Sequence[Transition], **more: Any) -> list[Job[Any] | None]:
        apply: Any = self.inner.apply  # as with `insert`
        jobs: list[Job[Any] | None] = await self._observed("apply", apply(steps, **more))
        return jobs

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        return await self._observed("select", self.inner.select(query))

    async def delete(self, ids: Sequence[int], *, states: Iterable[JobState] | None = None) -> int:
        return await self._observed("delete", self.inner.delete(ids, states=states))

    async def purge(self, states: Iterable[JobState], older_than: Seconds | datetime, limit: int = MAX_PAGE) -> int:
        return await self._observed("purge", self.inner.purge(states, older_than, limit))

    async def tally(self) -> Mapping[tuple[str, JobState], int]:
        return await self._observed("tally", self.inner.tally())

    async def set_queue(self, name: str, *, paused: bool | None = None, limit: int | None = None) -> bool:
        return await self._observed("set_queue", self.inner.set_queue(name, paused=paused, limit=limit))

    async def queues(self) -> Mapping[str, QueueInfo]:
        return await self._observed("queues", self.inner.queues())

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        return await self._observed("beat", self.inner.beat(node, ttl, join=join))

    async def nodes(self) -> list[Node]:
        return await self._observed("nodes", self.inner.nodes())

    async def put_records(self, records: Sequence[Record], *, only_new: bool = False) -> list[bool]:
        return await self._observed("put_records", records_of(self.inner).put_records(records, only_new=only_new))

    async def get_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = MAX_PAGE,
    ) -> list[Record]:
        found = records_of(self.inner).get_records(kind, keys=keys, prefix=prefix, after=after, limit=limit)
        return await self._observed("get_records", found)

    async def drop_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        older_than: Seconds | datetime | None = None,
        limit: int = MAX_PAGE,
    ) -> int:
        dropped = records_of(self.inner).drop_records(kind, keys=keys, older_than=older_than, limit=limit)
        return await self._observed("drop_records", dropped)

    def lifeline(self) -> Lifeline | None:
        return self.inner.lifeline()

    @property
    def shared_clock(self) -> Clock | None:
        return getattr(self.inner, "shared_clock", None)

    def wakes(self, tell: Callable[[Hint], None]) -> Callable[[], None]:
        return self.inner.wakes(tell)

    async def diagnose(self) -> list[Finding]:
        return await self._observed("diagnose", self.inner.diagnose())

    async def open(self) -> None:
        await self._observed("open", self.inner.open())

    async def close(self) -> None:
        await self._observed("close", self.inner.close())

    @property
    def is_open(self) -> bool:
        return self.inner.is_open
