"""Waits between attempts: the source's figures, bounds for any index."""

from __future__ import annotations

import math
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs_async import ConstantBackoff, ExponentialBackoff, FullJitterBackoff, LinearBackoff, OptionError
from jobs_async.core.retry import MAX_DELAY, Backoff, ask, bounded

NOW = 1_700_000_000


def waits(strategy: Backoff, count: int, now: float = NOW) -> list[float]:
    return [strategy.delay(index, Random(1), now) for index in range(count)]


def test_vector_1_defaults() -> None:
    exponential = ExponentialBackoff()
    assert (exponential.base_seconds, exponential.max_seconds, exponential.jitter) == (15, 3600, True)
    assert (LinearBackoff().delay_seconds, ConstantBackoff().delay_seconds) == (60, 30)
    assert (FullJitterBackoff().base_seconds, FullJitterBackoff().max_seconds) == (0.25, 30)


def test_vector_3_exponential() -> None:
    assert waits(ExponentialBackoff(10, 3600, jitter=False), 5) == [10, 20, 40, 80, 160]
    assert waits(ExponentialBackoff(10, 100, jitter=False), 11)[10] == 100
    assert waits(ExponentialBackoff(jitter=False), 9) == [15, 30, 60, 120, 240, 480, 960, 1920, 3600]
    assert all(40 <= ExponentialBackoff(10).delay(2, Random(seed), NOW) < 50 for seed in range(200))


def test_vector_3_deterministic_jitter() -> None:
    expected = [17, 36, 64, 131, 288, 595, 1082, 2289, 4456]
    assert waits(ExponentialBackoff(jitter="deterministic"), 9) == expected


def test_vector_4_linear_and_constant() -> None:
    assert waits(LinearBackoff(60), 3) == [60, 120, 180]
    assert waits(ConstantBackoff(30), 3) == [30, 30, 30]
    assert waits(ConstantBackoff(0), 1) == [0]


def test_vector_17_full_jitter_caps() -> None:
    assert [FullJitterBackoff().cap(n) for n in range(8)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30]
    assert [FullJitterBackoff(0.1, 1).cap(n) for n in (0, 4)] == [0.1, 1]


@given(
    index=st.integers(0, 10**6),
    seed=st.integers(0, 2**32),
    strategy=st.sampled_from(
        [
            ExponentialBackoff(),
            ExponentialBackoff(jitter="deterministic"),
            ExponentialBackoff(1e-3, 86_400),
            LinearBackoff(),
            LinearBackoff(1e6),
            ConstantBackoff(0),
            FullJitterBackoff(),
        ]
    ),
)
def test_row_10_no_index_overflows(index: int, seed: int, strategy: Backoff) -> None:
    wait = strategy.delay(index, Random(seed), NOW)
    assert math.isfinite(wait)
    assert 0 <= bounded(wait) <= MAX_DELAY
    if isinstance(strategy, ExponentialBackoff):
        assert wait < max(strategy.max_seconds * 1.25, strategy.max_seconds + 1)


@pytest.mark.parametrize("answer", [0, 2.5, timedelta(minutes=1), -7, math.inf, 10**400])
def test_an_answer_is_held_to_a_year(answer: Any) -> None:
    assert 0 <= bounded(ask(lambda _index: answer, 0, Random(), NOW)) <= MAX_DELAY


@pytest.mark.parametrize("answer", [None, "60", True, math.nan, [1]])
def test_an_answer_that_is_no_duration_is_refused(answer: Any) -> None:
    with pytest.raises(OptionError, match="seconds or a timedelta"):
        bounded(answer)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (ExponentialBackoff, (0,)),
        (ExponentialBackoff, (1, math.inf)),
        (LinearBackoff, (-1,)),
        (ConstantBackoff, (math.nan,)),
        (FullJitterBackoff, (2, 1)),
    ],
)
def test_senseless_strategies_are_refused(kind: Any, arguments: tuple[float, ...]) -> None:
    with pytest.raises(OptionError):
        kind(*arguments)
