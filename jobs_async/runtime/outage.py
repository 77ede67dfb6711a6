"""Whether the store does what it is asked: said once when it stops, and once when it is back."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from jobs_async.core.errors import StoreError
from jobs_async.core.events import StoreFailing, StoreRecovered

if TYPE_CHECKING:
    from jobs_async.runtime.herald import Herald

TOLD_AFTER = 1.0
"""Seconds of failing after which it is an event; shorter ones are a line in the log."""

logger = logging.getLogger("jobs_async")


class Outage:
    """What is asked again until it works reports here how it went, each under a name of its own."""

    def __init__(self, herald: Herald) -> None:
        self._herald = herald
        self._failing: dict[str, float] = {}
        self._since: float | None = None
        self._is_told = False

    def failed(self, what: str, error: Exception, since: float) -> None:
        """Something failed that was asked at `since`, in the time of the loop."""
        now = asyncio.get_running_loop().time()
        if what not in self._failing:
            trace = None if isinstance(error, (StoreError, OSError)) else error  # neither looks like a bug
            logger.warning("%s failed (%s: %s); trying again", what, type(error).__name__, error, exc_info=trace)
        self._failing.setdefault(what, since)
        self._since = since if self._since is None else self._since
        if not self._is_told and now - self._failing[what] >= TOLD_AFTER:
            self._is_told = True
            text = f"{what}: {error}" if isinstance(error, StoreError) else f"{what}: {type(error).__name__}"
            self._herald.tell_soon(lambda at: StoreFailing(error_msg=text, at=at))

    def worked(self, what: str) -> None:
        if what not in self._failing:
            return
        del self._failing[what]
        if self._failing or self._since is None:
            return
        seconds = asyncio.get_running_loop().time() - self._since
        self._since = None
        logger.warning("the store works again after %.1f s", seconds)
        if self._is_told:
            self._is_told = False
            self._herald.tell_soon(lambda at: StoreRecovered(seconds=seconds, at=at))
