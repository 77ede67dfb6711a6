"""Live through the world of a seed, and judge it.

python -m tests.simulation.run 4711        prints its trace, and what was broken
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256

from jobs_async.testing.loop import run_virtual
from tests.simulation.invariants import INVARIANTS
from tests.simulation.ledger import PROCESS, Ledger
from tests.simulation.world import World


def simulate(seed: int) -> Ledger:
    ledger = Ledger()

    async def main() -> None:
        with _quiet(ledger):
            await World(seed, ledger).live()

    run_virtual(main(), seed)
    return ledger


def broken(ledger: Ledger) -> list[str]:
    """Each invariant that does not hold, by its name, and where."""
    return [f"{invariant.__name__}: {text}" for invariant in INVARIANTS for text in invariant(ledger)]


def judge(seeds: Iterable[int]) -> dict[int, list[str]]:
    """What is broken in which world, and how to see it happen."""
    found: dict[int, list[str]] = {}
    surprises: dict[int, list[str]] = {}
    for seed in seeds:
        ledger = simulate(seed)
        found[seed], surprises[seed] = broken(ledger), ledger.surprises
    gc.collect()  # of errors that nobody has looked at the event loops tell only now
    for seed, wrong in found.items():
        wrong += [text for text in surprises[seed] if not any(text in known for known in wrong)]
    return {seed: [*wrong, f"python -m tests.simulation.run {seed}"] for seed, wrong in found.items() if wrong}


def fingerprint(ledger: Ledger) -> str:
    return sha256("\n".join(ledger.trace).encode()).hexdigest()


@contextmanager
def _quiet(ledger: Ledger) -> Iterator[None]:
    """A log full of warnings is the weather; what is critical must not happen, save to the dead."""
    logger, alarm = logging.getLogger("jobs_async"), _Alarm(ledger)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False
    logger.addHandler(alarm)
    try:
        yield
    finally:
        logger.removeHandler(alarm)
        logger.setLevel(level)
        logger.propagate = propagate


class _Alarm(logging.Handler):
    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.CRITICAL)
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        if PROCESS.get() not in self._ledger.dead:
            self._ledger.surprises.append(record.getMessage())


def main(seeds: Iterable[int]) -> int:
    found = 0
    for seed in seeds:
        ledger = simulate(seed)
        gc.collect()
        wrong = broken(ledger)
        found += len(wrong)
        print(*ledger.trace, *wrong, f"seed {seed}: {len(wrong)} broken, trace {fingerprint(ledger)}", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(int(seed) for seed in sys.argv[1:]))
