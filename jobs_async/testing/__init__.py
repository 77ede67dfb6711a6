"""What tests of stores and of applications need; nothing here is imported by the rest of the package.

harness      a Supervisor that runs jobs when the test says so        clock        time that a test can move
performing   one job through its whole life, and through crashes      loop         virtual time for a whole test
asking       assertions about what was enqueued                       faults       a store that fails on purpose
plugin       the fixtures of pytest                                   conformance  what every store must keep
                                                                      model, machine  and against a reference
"""

from jobs_async.testing.asking import all_enqueued as all_enqueued
from jobs_async.testing.asking import assert_enqueued as assert_enqueued
from jobs_async.testing.asking import refute_enqueued as refute_enqueued
from jobs_async.testing.clock import FakeClock as FakeClock
from jobs_async.testing.clock import TravelClock as TravelClock
from jobs_async.testing.harness import Harness as Harness
from jobs_async.testing.performing import Crash as Crash
from jobs_async.testing.performing import crash_at_each_await as crash_at_each_await
from jobs_async.testing.performing import perform as perform
from jobs_async.testing.performing import perform_twice as perform_twice

__all__ = [
    "Crash",
    "FakeClock",
    "Harness",
    "TravelClock",
    "all_enqueued",
    "assert_enqueued",
    "crash_at_each_await",
    "perform",
    "perform_twice",
    "refute_enqueued",
]
