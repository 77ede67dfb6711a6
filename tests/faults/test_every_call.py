"""A fault at every call that reaches the store: no job is lost, none runs twice, and the Supervisor goes on.

Everything happens on virtual time with fixed seeds, so a call keeps its number until a fault strikes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from random import Random
from typing import Any, NamedTuple

import pytest

from jobs_async import StoreError, WriteRefused
from jobs_async.core.store import PRIMITIVES
from jobs_async.testing.faults import Fault
from jobs_async.testing.loop import run_virtual
from tests.conftest import Measured
from tests.faults.points import Point, Points, caller
from tests.faults.virtual_scene import Scene

PAIRS = 3000

Act = Callable[[Scene], Fault | None]


class Kind(NamedTuple):
    """One thing that can happen when the store is called, and at whose calls."""

    act: Act
    of_callers: bool = True
    of_runtime: bool = True
    refusals: int = 0
    """So many settlements may end as a discard that says so."""
    linger: float = 1.0
    """Seconds for which what was begun may still be under way."""

    def concerns(self, point: Point) -> bool:
        return self.of_runtime if point.caller is None else self.of_callers


def meets(**fault: Any) -> Act:
    return lambda _scene: Fault(**fault)


def meets_the_runtime(**fault: Any) -> Act:
    return lambda _scene: None if caller.get() else Fault(**fault)


def cancels_the_caller(**fault: Any) -> Act:
    def act(_scene: Scene) -> Fault | None:
        if who := caller.get():
            who.task.cancel()
        return Fault(**fault)

    return act


def stops(scene: Scene) -> Fault:
    scene.stop_soon()
    return Fault(after=0.3)


def cancels_the_run(scene: Scene) -> Fault:
    assert scene.serving is not None
    scene.serving.cancel()
    return Fault(before=0.3)


KINDS = {
    "it fails": Kind(meets(error=StoreError)),
    "it fails once it is done": Kind(meets(error=StoreError, done=True)),
    "its connection breaks": Kind(meets(error=ConnectionResetError)),
    "it is refused": Kind(meets(error=WriteRefused), refusals=1),
    "it hangs": Kind(meets(hangs=True)),
    "it hangs once it is done": Kind(meets(hangs=True, done=True)),
    "its answer is late": Kind(meets(after=10.5)),
    "it is done when nobody waits any more": Kind(
        meets_the_runtime(before=20, goes_on=True), of_callers=False, linger=21
    ),
    "its caller is cancelled before": Kind(cancels_the_caller(before=0.3), of_runtime=False),
    "its caller is cancelled after": Kind(cancels_the_caller(after=0.3), of_runtime=False),
    "the Supervisor is stopped": Kind(stops),
    "the run is cancelled": Kind(cancels_the_run),
}


class Course(NamedTuple):
    passed: tuple[Point, ...]
    struck: list[Point]
    wrong: list[str]


def course(kinds: Mapping[int, Kind]) -> Course:
    """Play the scene, with something of these kinds at these calls."""

    async def main() -> Course:
        complaints: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
        points = Points()
        scene = Scene(points)
        points.strikes = {at: partial(kind.act, scene) for at, kind in kinds.items()}
        try:
            await scene.play(max((kind.linger for kind in kinds.values()), default=1))
        except TimeoutError:
            return Course(tuple(points.passed), points.struck, ["it came to a standstill"])
        spare = Counter(point.caller for point in points.struck)
        wrong = await scene.wrongs(spare, sum(kind.refusals for kind in kinds.values()))
        if len(kinds) < 2 and (scene.abandoned or not scene.was_clean):
            wrong.append(f"the stop left {scene.abandoned}, clean: {scene.was_clean}")
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return Course(tuple(points.passed), points.struck, wrong + complaints + [f"{task} is left" for task in left])

    return run_virtual(main())


@cache
def calm() -> tuple[Point, ...]:
    """The calls that are made where nothing goes wrong."""
    passed, _, wrong = course({})
    assert not wrong
    return passed


@pytest.fixture(autouse=True)
def nothing_critical(caplog: pytest.LogCaptureFixture) -> Any:
    """What ends a loop for good is logged as critical; the rest of the log is not worth its time here."""
    caplog.set_level(logging.CRITICAL, "jobs_async")
    yield
    assert not caplog.records


def test_f12_the_scene_makes_every_call_that_a_supervisor_can_make() -> None:
    lifetime, unused = {"open", "close"}, {"purge"}
    assert {point.primitive for point in calm()} == set(PRIMITIVES) - lifetime - unused
    assert {point.primitive for point in calm() if point.caller is None} >= {"fetch", "apply", "select", "beat"}


@pytest.mark.parametrize("name", KINDS)
def test_f12_rows_3_and_54_whatever_one_call_meets_no_job_is_lost_or_runs_twice(name: str) -> None:
    kind = KINDS[name]
    concerned = {at: point for at, point in enumerate(calm(), 1) if kind.concerns(point)}
    visited: dict[int, Point] = {}
    failed: dict[str, list[str]] = {}
    for at, point in concerned.items():
        passed, struck, wrong = course({at: kind})
        assert passed[: at - 1] == calm()[: at - 1], "calls keep their numbers until a fault strikes"
        visited.update(zip([at], struck, strict=True))
        if wrong:
            failed[f"{name}: call {at}, {point}"] = wrong
    assert visited == concerned
    assert not failed


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_f12_whatever_two_calls_meet_no_job_is_lost(measured: Measured) -> None:
    failed: dict[str, list[str]] = {}
    for seed in range(PAIRS):
        rng = Random(seed)
        first = rng.randint(1, len(calm()))
        met = {first: rng.choice(list(KINDS)), first + rng.randint(1, 40): rng.choice(list(KINDS))}
        wrong = course({at: KINDS[name] for at, name in met.items()}).wrong
        if wrong:
            failed[f"seed {seed}: {met}"] = wrong
    assert not failed
    measured("F12, two calls of a store", f"{PAIRS} pairs of faults in a scene of 33 jobs", "lost 0")
