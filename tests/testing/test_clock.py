"""The clock that runs and can be put forward; FakeClock and LoopClock are proved with what uses them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobs_async import OptionError
from jobs_async.clock import SystemClock
from jobs_async.testing import FakeClock, TravelClock

MUCH = timedelta(days=3)


def test_it_runs_as_the_real_one_does() -> None:
    real, clock = SystemClock(), TravelClock()
    assert real.now() <= clock.now() <= real.now()
    before, (boot, uptime), after = real.uptime(), clock.uptime(), real.uptime()
    assert before[0] == boot
    assert before[1] <= uptime <= after[1]


def test_put_forward_it_is_ahead_by_that_much_on_both_faces() -> None:
    real, clock = SystemClock(), TravelClock()
    clock.advance(MUCH)
    clock.advance(3600)
    ahead = MUCH + timedelta(hours=1)
    assert real.now() + ahead <= clock.now() <= real.now() + ahead
    before, (boot, uptime), after = real.uptime(), clock.uptime(), real.uptime()
    assert before[0] == boot
    assert before[1] <= uptime - ahead.total_seconds() + 1e-3
    assert uptime - ahead.total_seconds() <= after[1] + 1e-3


@pytest.mark.parametrize("clock", [TravelClock(), FakeClock()])
def test_time_does_not_go_back(clock: TravelClock | FakeClock) -> None:
    before = clock.now()
    with pytest.raises(OptionError, match="step"):
        clock.advance(-1)
    assert clock.now() >= before


def test_each_has_a_time_of_its_own() -> None:
    one, other = TravelClock(), TravelClock()
    one.advance(MUCH)
    assert one.now() - other.now() > MUCH / 2
