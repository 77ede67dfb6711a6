"""Looks at the store now and then, and at the event loop, for what no event tells."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

from jobs_async.core import limits
from jobs_async.core.errors import OptionError, StoreError
from jobs_async.observe.lag import LagMeter
from jobs_async.observe.sampling import Picture, is_speaker, look

if TYPE_CHECKING:
    from jobs_async.core.limits import Seconds
    from jobs_async.observe.metrics import Metrics
    from jobs_async.observe.observability import Observability
    from jobs_async.observe.sampling import Watched

SAMPLE_SECONDS = 10.0
"""How long one look at the store may take."""
CLOSE_SECONDS = 1.0
"""How long an end waits for a look that is under way."""

logger = logging.getLogger("jobs_async.observe")


class Gauges:
    """Measures queues, nodes and the event loop every `interval` seconds, inside `async with`.

        async with jobs, Gauges(jobs, observability):
            ...

    Of the processes that share a store only one tells of queues and nodes, so that sums over all are right: the one
    that has the live node of the smallest id. A Supervisor without queues is no node; `always` makes it tell all the
    same. Where the store is closed or fails, nothing is told of queues and nodes, rather than something old. A failure
    is logged once.

    Raises:
        OptionError: the interval is no duration.
    """

    def __init__(
        self, jobs: Watched, observability: Observability, interval: Seconds = 15.0, *, always: bool = False
    ) -> None:
        self._jobs = jobs
        self._observability = observability
        self._interval = limits.seconds(interval, "interval", exclusive=True)
        self._always = always
        self._lag = LagMeter()
        self._task: asyncio.Task[None] | None = None
        self._is_failing = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._jobs!r}>"

    async def __aenter__(self) -> Self:
        """Begin to look; nothing to do where the Observability is off.

        Raises:
            OptionError: these gauges are in use.
        """
        if self._task is not None:
            raise OptionError("these gauges are in use; make others")
        metrics = self._observability.metrics
        if metrics is not None:
            self._lag.start()
            self._task = asyncio.get_running_loop().create_task(self._live(metrics), name="jobs_async gauges")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Look no more, and tell nothing."""
        task, self._task = self._task, None
        if task is not None:
            self._lag.close()
            task.cancel()
            await asyncio.wait({task}, timeout=CLOSE_SECONDS)

    async def sample(self) -> None:
        """Look at the store once, now.

        Raises:
            StoreError, TimeoutError: it could not say.
        """
        metrics = self._observability.metrics
        if metrics is not None:
            await self._look(metrics)

    async def _live(self, metrics: Metrics) -> None:
        try:
            while True:
                metrics.loop_lag.put(self, {(): self._lag.take()})
                await self._try(metrics)
                await asyncio.sleep(self._interval)
        except asyncio.CancelledError:
            if self._task is not None:
                logger.error("the gauges were cancelled by a stranger; they tell nothing from now on")
            raise
        finally:
            metrics.loop_lag.put(self, {})
            Picture().hang(self, metrics)

    async def _try(self, metrics: Metrics) -> None:
        try:
            await self._look(metrics)
        except Exception as error:
            Picture().hang(self, metrics)
            if not self._is_failing:
                self._is_failing = True
                trace = None if isinstance(error, (StoreError, OSError)) else error  # neither looks like a bug
                what = "queues and nodes cannot be measured (%s: %s); trying again"
                logger.warning(what, type(error).__name__, error, exc_info=trace)
        else:
            if self._is_failing:
                self._is_failing = False
                logger.warning("queues and nodes can be measured again")

    async def _look(self, metrics: Metrics) -> None:
        picture = Picture()
        async with asyncio.timeout(SAMPLE_SECONDS):
            if self._jobs.store.is_open:
                nodes = await self._jobs.store.nodes()
                if self._always or is_speaker(nodes, self._jobs.node):
                    picture = await look(self._jobs, nodes)
        picture.hang(self, metrics)
