"""A Supervisor in a thread and an event loop of its own: what blocks it, or cuts it off, does so to nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self

from jobs_async import Event, Supervisor, Telemetry
from jobs_async.stores.postgres import PostgresStore

GUARD = 100.0


class Node:
    """Alive from the begin of an `async with` to its end. `register` says what it can do, in its thread."""

    def __init__(
        self,
        dsn: str,
        register: Callable[[Supervisor], object],
        *,
        enter: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> None:
        """`enter` is called first, in the thread."""
        self.events: list[Event] = []
        self._dsn, self._register, self._enter, self._options = dsn, register, enter, options
        self._ready, self._enough = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._live, name="node", daemon=True)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def __aenter__(self) -> Self:
        self._thread.start()
        await asyncio.to_thread(self._ready.wait, GUARD)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._enough.set()
        await asyncio.to_thread(self._thread.join, GUARD)
        assert self._error is None, repr(self._error)

    def _live(self) -> None:
        try:
            self._enter()
            asyncio.run(self._main())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        telemetry = Telemetry()
        telemetry.attach(self.events.append)
        pace: dict[str, Any] = {"queues": {"default": 8}, "poll_interval": 0.1, "shutdown_timeout": 2}
        jobs = Supervisor(PostgresStore(self._dsn), telemetry=telemetry, **(pace | self._options))
        self._register(jobs)
        async with jobs:
            self._ready.set()
            while not self._enough.is_set():
                await asyncio.sleep(0.02)


def pace(lease: float) -> dict[str, Any]:
    """Of a node with such a lease."""
    return {"lease": lease, "heartbeat": lease / 4, "rescue_interval": lease / 4}
