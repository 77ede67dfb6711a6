"""Families of numbers: labels, buckets, the names that are too many, and several threads at once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from jobs_async.observe.families import OVERFLOW, Counter, Gauge, Histogram
from jobs_async.observe.metrics import BUCKETS
from tests.observe.support import CountingLock, read


def observed(bounds: tuple[float, ...], *values: float) -> dict[str, float]:
    """What a histogram without labels holds after these values."""
    histogram = Histogram("h", "", bounds=bounds)
    for one in values:
        histogram.observe((), one)
    return {sample.suffix + sample.labels.get("le", ""): sample.value for sample in histogram.samples()}


def test_a_counter_without_labels_is_there_from_the_beginning() -> None:
    counter = Counter("c", "")
    assert read(counter) == {(): 0}
    counter.add()
    counter.add()
    assert read(counter) == {(): 2}


def test_a_number_can_be_there_before_it_counts() -> None:
    counter = Counter("c", "", ("queue",), max_series=1)
    assert read(counter) == {}
    for queue in "abca":
        counter.cell((queue,))
    assert read(counter) == {("a",): 0, (OVERFLOW,): 0}
    counter.add(("a",))
    assert counter.cell(("a",)).value == 1


def test_samples_are_sorted_by_label() -> None:
    counter = Counter("c", "", ("queue",), ("outcome",))
    for key in [("b", "x"), ("a", "y"), ("b", "a"), ("a", "x")]:
        counter.add(key)
    assert list(read(counter)) == [("a", "x"), ("a", "y"), ("b", "a"), ("b", "x")]


def test_buckets_take_in_their_bound_and_all_below() -> None:
    seen = observed((0.5, 1.0), 0.0, 0.5, 0.500001, 1.0, 1.5)
    assert seen == {"_bucket0.5": 2, "_bucket1.0": 4, "_bucket+Inf": 5, "_count": 5, "_sum": 3.500001}


def test_a_histogram_without_labels_is_there_from_the_beginning() -> None:
    assert observed((1.0,)) == {"_bucket1.0": 0, "_bucket+Inf": 0, "_count": 0, "_sum": 0}


@pytest.mark.parametrize("bound", BUCKETS)
def test_the_buckets_are_those_of_the_source(bound: float) -> None:
    seen = observed(BUCKETS, bound, bound * 1.001)
    assert seen[f"_bucket{bound!r}"] == 1
    assert len(seen) == 11 + 3


def test_a_sum_is_rounded_to_a_millionth() -> None:
    assert observed((1.0,), 0.1, 0.2)["_sum"] == 0.3


def test_names_beyond_the_limit_share_a_series_and_known_ones_go_on() -> None:
    counter = Counter("c", "", ("queue", "worker"), ("outcome",), max_series=2)
    for key in [("q", "a", "done"), ("q", "b", "done"), ("q", "c", "done"), ("r", "a", "done"), ("q", "c", "lost")]:
        counter.add(key)
    counter.add(("q", "a", "done"))
    counter.add(("q", "a", "lost"))  # a kind does not count
    assert read(counter) == {
        (OVERFLOW, OVERFLOW, "done"): 2,
        (OVERFLOW, OVERFLOW, "lost"): 1,
        ("q", "a", "done"): 2,
        ("q", "a", "lost"): 1,
        ("q", "b", "done"): 1,
    }


def test_each_family_has_a_limit_of_its_own() -> None:
    first, second = (Counter("c", "", ("job",), max_series=1) for _ in range(2))
    first.add(("a",))
    second.add(("b",))
    assert (read(first), read(second)) == ({("a",): 1}, {("b",): 1})


def test_a_histogram_keeps_to_the_limit_too() -> None:
    histogram = Histogram("h", "", ("job",), bounds=(1.0,), max_series=1)
    for name in "abcb":
        histogram.observe((name,), 0.5)
    counts = {s.labels["job"]: s.value for s in histogram.samples() if s.suffix == "_count"}
    assert counts == {"a": 1, OVERFLOW: 3}


def test_memory_does_not_grow_with_names_beyond_the_limit() -> None:
    counter, histogram = Counter("c", "", ("job",), max_series=1), Histogram("h", "", ("job",), bounds=(), max_series=1)
    for number in range(100):
        counter.add((str(number),))
        histogram.observe((str(number),), 0.0)
    assert len(counter._values) == len(histogram._values) == 2
    assert len(counter._known) == len(histogram._known) == 1


def test_a_gauge_is_what_its_owners_say_now() -> None:
    gauge = Gauge("g", "", ("queue",))
    gauge.put("one", {("a",): 3, ("b",): 1})
    gauge.put("two", {("a",): 2, ("c",): 5})
    assert read(gauge) == {("a",): 3, ("b",): 1, ("c",): 5}
    gauge.put("one", {("b",): 0})
    assert read(gauge) == {("a",): 2, ("b",): 0, ("c",): 5}
    gauge.put("two", {})
    assert read(gauge) == {("b",): 0}


@pytest.mark.parametrize(("merge", "merged"), [(sum, 7.0), (max, 4.0)])
def test_a_gauge_merges_what_is_beyond_the_limit(merge: Any, merged: float) -> None:
    gauge = Gauge("g", "", ("queue",), merge=merge, max_series=1)
    gauge.put(None, {("a",): 1.0, ("b",): 3.0, ("c",): 4.0})
    assert read(gauge) == {("a",): 1.0, (OVERFLOW,): merged}


def test_a_gauge_keeps_the_names_it_knows_while_they_are_there() -> None:
    gauge = Gauge("g", "", ("node",), max_series=1)
    gauge.put(None, {("n",): 1.0})
    assert read(gauge) == {("n",): 1.0}
    gauge.put(None, {("a",): 2.0, ("n",): 1.0})
    assert read(gauge) == {(OVERFLOW,): 2.0, ("n",): 1.0}
    gauge.put(None, {("a",): 2.0})
    assert read(gauge) == {("a",): 2.0}


def test_nothing_is_lost_between_threads() -> None:
    counter = Counter("c", "", ("job",), max_series=4)
    histogram = Histogram("h", "", ("job",), bounds=BUCKETS)
    ready = threading.Barrier(4)

    def work() -> None:
        ready.wait()
        for number in range(5_000):
            counter.add((str(number % 7),))
            histogram.observe(("one",), 0.25)
            if number % 500 == 0:
                list(counter.samples())
                list(histogram.samples())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(read(counter).values()) == 20_000
    assert len(read(counter)) == 5
    by_suffix = {s.suffix: s.value for s in histogram.samples()}
    assert (by_suffix["_count"], by_suffix["_bucket"], by_suffix["_sum"]) == (20_000, 20_000, 5_000)


@pytest.mark.parametrize(
    "count",
    [
        lambda lock: Counter("c", "", lock=lock).add(),
        lambda lock: Histogram("h", "", bounds=(1.0,), lock=lock).observe((), 0.5),
        lambda lock: list(Counter("c", "", lock=lock).samples()),
        lambda lock: list(Histogram("h", "", bounds=(1.0,), lock=lock).samples()),
    ],
)
def test_counting_and_reading_hold_the_lock(count: Any) -> None:
    """What this interpreter would keep whole by itself another one may not."""
    lock = CountingLock()
    count(lock)
    assert lock.taken == 1
