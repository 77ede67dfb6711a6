"""What tests of stores and of applications need; nothing here is imported by the rest of the package."""

from jobs_async.testing.clock import FakeClock as FakeClock

__all__ = ["FakeClock"]
