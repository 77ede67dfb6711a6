"""Asking a worker's retry strategy, which is code of the user's, and going on where it fails."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from jobs_async.core import retry

if TYPE_CHECKING:
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.host import Host

STRATEGY_SECONDS = 5.0
"""How long an async strategy may take."""

logger = logging.getLogger("jobs_async")


async def retry_delay(worker: WorkerDef, index: int, host: Host) -> float:
    """Seconds until the retry of this index, from 0, as the worker's strategy says; where it fails, the default one."""
    rng, now = host.rng, host.clock.now().timestamp()
    task = asyncio.current_task()
    try:
        answer = retry.ask(worker.retry_strategy, index, rng, now)
        if not isinstance(answer, (int, float, timedelta)):
            async with asyncio.timeout(STRATEGY_SECONDS):
                answer = await answer
        return retry.bounded(answer)
    except BaseException:
        if task is not None and task.cancelling():
            raise
        logger.warning("the retry strategy of %s failed; using the default", worker.name, exc_info=True)
        return default_delay(index, host)


def default_delay(index: int, host: Host) -> float:
    """What the default strategy says."""
    return retry.DEFAULT_STRATEGY.delay(index, host.rng, host.clock.now().timestamp())
