"""A scene for each statement it is made of and each fault that can strike there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from tests.faults.scene import Place, Scene
from tests.faults.statements import Fault, Statement

Kind = Callable[[Scene], Fault]
Places = Callable[[], AbstractAsyncContextManager[Place]]
"""Gives an empty database to oneself."""
Visit = tuple[str, Statement]
"""Which fault strikes where."""

TRIES = 4
"""How often a scene is played until a statement has come up that depends on the moment."""


async def quiet(places: Places, names: Collection[str], scenes: int = 3) -> list[Statement]:
    """The statements that are made in every one of some scenes where nothing happens; these are among them."""
    played = [await _play(places) for _ in range(scenes)]
    for scene in played:
        assert not scene.wrong, scene.wrong
    passed = [scene.statements.passed for scene in played]
    missing = set(names) - {name for _, name in passed[0]}
    assert not missing, f"no scene makes {missing}"
    counts = {kind: min(each[kind] for each in passed) for kind in passed[0]}
    return [Statement(*kind, nth) for kind, count in counts.items() for nth in range(1, count + 1)]


async def sweep(
    places: Places,
    visits: Sequence[Visit],
    kinds: Mapping[str, Kind],
    *,
    side_by_side: int,
    refusing: Collection[str] = (),
    look: Callable[[str, Scene], Iterable[str]] = lambda _name, _scene: (),
) -> int:
    """Play a scene for each visit, so many at the same time, for they mostly wait; how many.

    The faults that are `refusing` may cost an outcome; `look` says what else was wrong.
    """
    wrong: dict[str, list[str]] = {}
    visited: set[Visit] = set()
    turn = asyncio.Semaphore(side_by_side)

    async def play(name: str, target: Statement) -> None:
        async with turn:
            for _ in range(TRIES):
                scene = await _play(places, target, kinds[name], int(name in refusing))
                if found := [*scene.wrong, *look(name, scene)]:
                    wrong[f"{name}: {target}"] = found
                if scene.statements.struck.is_set():
                    visited.add((name, target))
                    return

    async with asyncio.TaskGroup() as group:
        for name, target in visits:
            group.create_task(play(name, target))
    assert not wrong, wrong
    assert visited == set(visits), set(visits) - visited
    return len(visited)


async def _play(places: Places, target: Statement | None = None, kind: Kind | None = None, refusals: int = 0) -> Scene:
    async with places() as place:
        scene = Scene(place, target, kind, refusals)
        await scene.play()
    return scene
