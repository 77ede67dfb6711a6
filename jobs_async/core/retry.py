"""How long to wait before the next attempt: five strategies, each a pure function of index and dice.

The index counts retries from 0, so the first retry of an exponential back-off waits its base
(zzz_jobs: retry-strategies; nidus-jobs: full jitter).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Protocol, cast

from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.core.limits import Seconds

if TYPE_CHECKING:
    from random import Random

MAX_EXPONENT = 31
MAX_DELAY = 366 * 86_400.0
"""A year: the longest wait a strategy may ask for."""


class Backoff(Protocol):
    """Seconds to wait before retry number `index` (0 is the first); dice and the Unix time are handed in."""

    def delay(self, index: int, rng: Random, now: float) -> float: ...


CustomBackoff = Callable[[int], Seconds | Awaitable[Seconds]]
RetryStrategy = Backoff | CustomBackoff
"""A back-off, or any function, sync or async, from the retry's index to seconds or a timedelta."""


@dataclass(frozen=True, slots=True)
class ExponentialBackoff:
    """base, 2·base, 4·base … seconds, capped; jitter then adds less than a quarter, so it may pass the cap.

    `jitter="deterministic"` takes it from the time and the index instead of the dice: equal inputs, equal waits.
    """

    base_seconds: float = 15.0
    max_seconds: float = 3600.0
    jitter: bool | Literal["deterministic"] = True

    def __post_init__(self) -> None:
        _positive(self.base_seconds, "base_seconds")
        _positive(self.max_seconds, "max_seconds")

    def delay(self, index: int, rng: Random, now: float) -> float:
        wait = _doubled(self.base_seconds, index, self.max_seconds)
        if self.jitter == "deterministic":
            return wait + (index * 7 + int(now)) % max(int(wait) // 4, 1)
        return wait + rng.random() * wait / 4 if self.jitter else wait


@dataclass(frozen=True, slots=True)
class LinearBackoff:
    """One step, two steps, three steps …, at most a year."""

    delay_seconds: float = 60.0

    def __post_init__(self) -> None:
        _positive(self.delay_seconds, "delay_seconds")

    def delay(self, index: int, rng: Random, now: float) -> float:
        return min(self.delay_seconds * min(index + 1, MAX_DELAY), MAX_DELAY)


@dataclass(frozen=True, slots=True)
class ConstantBackoff:
    """The same wait each time; 0 retries immediately."""

    delay_seconds: float = 30.0

    def __post_init__(self) -> None:
        limits.seconds(self.delay_seconds, "delay_seconds")

    def delay(self, index: int, rng: Random, now: float) -> float:
        return self.delay_seconds


@dataclass(frozen=True, slots=True)
class FullJitterBackoff:
    """Anything from 0 to a doubling, capped bound, spread evenly (nidus-jobs: retry policy)."""

    base_seconds: float = 0.25
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        _positive(self.base_seconds, "base_seconds")
        _positive(self.max_seconds, "max_seconds")
        if self.max_seconds < self.base_seconds:
            raise OptionError("max_seconds must be at least base_seconds")

    def cap(self, index: int) -> float:
        """The longest wait before retry number `index`."""
        return _doubled(self.base_seconds, index, self.max_seconds)

    def delay(self, index: int, rng: Random, now: float) -> float:
        return rng.random() * self.cap(index)


def ask(strategy: RetryStrategy, index: int, rng: Random, now: float) -> Seconds | Awaitable[Seconds]:
    """Put the question to either kind of strategy; what it raises passes through."""
    method = getattr(strategy, "delay", None)
    if method is not None:
        return cast("Backoff", strategy).delay(index, rng, now)
    return cast("Callable[[int], Seconds | Awaitable[Seconds]]", strategy)(index)


def bounded(answer: object) -> float:
    """Hold an answer to 0 seconds … a year.

    Raises:
        OptionError: it is no duration at all.
    """
    if isinstance(answer, timedelta):
        answer = answer.total_seconds()
    if (
        isinstance(answer, bool)
        or not isinstance(answer, (int, float))
        or (isinstance(answer, float) and math.isnan(answer))
    ):
        raise OptionError(f"a retry strategy must return seconds or a timedelta, not {limits.type_name(answer)}")
    return float(min(max(answer, 0.0), MAX_DELAY))


def _doubled(base: float, times: int, cap: float) -> float:
    """base · 2^times, the exponent clamped first: a large index neither overflows nor goes round."""
    return min(base * 2.0 ** min(times, MAX_EXPONENT), cap)


def _positive(value: float, what: str) -> None:
    limits.seconds(value, what, exclusive=True)


DEFAULT_STRATEGY = ExponentialBackoff()
