"""The only reader of a clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path


class SystemClock:
    """Real time. The uptime is the kernel's time since boot, which sleeping and clock setting leave alone."""

    __slots__ = ("_boot",)

    def __init__(self) -> None:
        self._boot = _boot_id()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def uptime(self) -> tuple[str, float]:
        if self._boot:
            return self._boot, time.clock_gettime(time.CLOCK_BOOTTIME)
        return "wall", time.time()


def _boot_id() -> str:
    """The kernel's identity for this boot; empty where the system offers none, and leases use the wall clock."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return ""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def stopwatch() -> float:
    """Seconds for measuring durations inside one process."""
    return time.perf_counter()
