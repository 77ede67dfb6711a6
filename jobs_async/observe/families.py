"""Families of numbers that differ in their labels: counted in memory, read at any time, from any thread.

A key holds the values of a family's labels, in their order. First come `names`, which anybody can invent (a queue, a
worker, a job), then `kinds`, of which there are a few (a state, an outcome). Of names a family takes `max_series`
different ones; what comes beyond is counted under `<overflow>`, while those that are known go on as before.

Counters and histograms may share a lock. Who has much to count holds it once, and changes cells and series itself.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Key = tuple[str, ...]
V = TypeVar("V")

OVERFLOW = "<overflow>"
"""What stands for all names beyond `max_series`."""


class Sample(NamedTuple):
    """One number of a family: what its name has at the end, its labels, its value."""

    suffix: str
    labels: dict[str, str]
    value: float


class Family(Generic[V]):
    """What all families have; `help` says in one line what the numbers mean."""

    type: ClassVar[str]

    def __init__(
        self,
        name: str,
        help: str,
        names: Key = (),
        kinds: Key = (),
        *,
        max_series: int | None = None,
        lock: threading.Lock | None = None,
    ) -> None:
        self.name = name
        self.help = help
        self.labels = (*names, *kinds)
        self._width = len(names)
        self._max_series = max_series
        self._known: set[Key] = set()
        self._values: dict[Key, V] = {}
        self._lock = threading.Lock() if lock is None else lock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{{{', '.join(self.labels)}}}>"

    def samples(self) -> Iterator[Sample]:
        """The numbers as they are now, in the order of their labels' values."""
        raise NotImplementedError

    def _admitted(self, key: Key) -> Key:
        """Where a new key is counted: under itself, or under `<overflow>`. Called with the lock held."""
        names = key[: self._width]
        if self._max_series is None or not names or names in self._known:
            return key
        if len(self._known) < self._max_series:
            self._known.add(names)
            return key
        return self._overflowed(key)

    def _overflowed(self, key: Key) -> Key:
        return (OVERFLOW,) * self._width + key[self._width :]

    def _labelled(self, key: Key) -> dict[str, str]:
        """A lone surrogate in one of them would cost the whole page, for it cannot be encoded."""
        return {label: value.encode("utf-8", "replace").decode() for label, value in zip(self.labels, key, strict=True)}


class Cell:
    """One number of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Counter(Family[Cell]):
    """Numbers that only grow. One without labels is there from the beginning."""

    type = "counter"

    def add(self, key: Key = ()) -> None:
        """One more."""
        with self._lock:
            self.cell(key).value += 1.0

    def cell(self, key: Key = ()) -> Cell:
        """The number of a key, which is there from now on: so a scraper sees its first increase.

        To be called, and the cell to be changed, with the lock held.
        """
        cell = self._values.get(key)
        return self._values.setdefault(self._admitted(key), Cell()) if cell is None else cell

    def samples(self) -> Iterator[Sample]:
        with self._lock:
            values = sorted((key, cell.value) for key, cell in self._values.items())
        if not self.labels and not values:
            values = [((), 0.0)]
        for key, value in values:
            yield Sample("", self._labelled(key), value)


class Series:
    """What one histogram has seen: how often in each bucket, the one without bound last, and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more value; a bucket takes in its bound."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Histogram(Family[Series]):
    """How often a value was at most so much, for each of `bounds`, ascending; rendered with `le`.

    One without labels is there from the beginning.
    """

    type = "histogram"

    def __init__(
        self,
        name: str,
        help: str,
        names: Key = (),
        kinds: Key = (),
        *,
        bounds: Sequence[float],
        le: Callable[[float], str] = repr,
        max_series: int | None = None,
        lock: threading.Lock | None = None,
    ) -> None:
        super().__init__(name, help, names, kinds, max_series=max_series, lock=lock)
        self._bounds = tuple(bounds)
        self._le = (*map(le, bounds), "+Inf")
        if not self.labels:
            self.series(())

    def observe(self, key: Key, value: float) -> None:
        """One more value."""
        with self._lock:
            self.series(key).observe(value)

    def series(self, key: Key = ()) -> Series:
        """What was seen under a key. To be called, and the series to be changed, with the lock held."""
        series = self._values.get(key)
        return self._values.setdefault(self._admitted(key), Series(self._bounds)) if series is None else series

    def samples(self) -> Iterator[Sample]:
        """For each key the buckets, each with those below it, then the count and the sum, to a millionth."""
        with self._lock:
            values = sorted((key, tuple(accumulate(one.counts)), one.sum) for key, one in self._values.items())
        for key, counts, total in values:
            labels = self._labelled(key)
            for le, count in zip(self._le, counts, strict=True):
                yield Sample("_bucket", {**labels, "le": le}, count)
            yield Sample("_count", labels, counts[-1])
            yield Sample("_sum", labels, round(total, 6))


class Gauge(Family[float]):
    """Numbers that are as they are. Each owner says all of its own at once; where two say the same, the larger counts.

    `merge` makes one number of those that share `<overflow>`.
    """

    type = "gauge"

    def __init__(
        self,
        name: str,
        help: str,
        names: Key = (),
        kinds: Key = (),
        *,
        merge: Callable[[Iterable[float]], float] = max,
        max_series: int | None = None,
    ) -> None:
        super().__init__(name, help, names, kinds, max_series=max_series)
        self._merge = merge
        self._owners: dict[object, Mapping[Key, float]] = {}

    def put(self, owner: object, values: Mapping[Key, float]) -> None:
        """What `owner` says from now on, in place of what it said before; {} takes it back."""
        with self._lock:
            self._owners.pop(owner, None)
            if values:
                self._owners[owner] = dict(values)

    def samples(self) -> Iterator[Sample]:
        with self._lock:
            values = sorted(self._gathered().items())
        for key, value in values:
            yield Sample("", self._labelled(key), value)

    def _gathered(self) -> dict[Key, float]:
        """What all owners say, those names first that were there the last time, for a family holds `max_series`."""
        said: dict[Key, float] = {}
        for values in self._owners.values():
            for key, value in values.items():
                said[key] = max(value, said.get(key, value))
        before, self._known = self._known, set[Key]()
        shared: dict[Key, list[float]] = {}
        for key in sorted(said, key=lambda key: (key[: self._width] not in before, key)):
            shared.setdefault(self._admitted(key), []).append(said[key])
        return {key: self._merge(values) if len(values) > 1 else values[0] for key, values in shared.items()}
