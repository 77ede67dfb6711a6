"""What is said of calls to enqueue, and of processes that have ended, is checked: what contradicts it is found."""

from __future__ import annotations

from pathlib import Path

from jobs_async import SqliteStore
from jobs_async.testing.conformance.scene import new
from tests.chaos.callers import ANSWERED, TRIED, Calls
from tests.chaos.fleet import Place
from tests.chaos.scenario import play


async def test_calls_whose_answer_the_store_contradicts_are_found(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with SqliteStore(place.jobs) as store:
        for name, rows in {"1-0": 2, "1-1": 1, "1-2": 3, "1-4": 1, "1-5": 2}.items():
            await store.insert([new(external_id=name)] * rows)
    tried = {0: 2, 1: 2, 2: 3, 3: 1, 4: 2}
    for number, size in tried.items():
        place.ledger.call(TRIED, number, size, 1)
    for number in (0, 1):
        place.ledger.call(ANSWERED, number, 2, 1)
    calls = Calls(place)
    assert calls.wrong == [
        "call 1-1 was answered with 2 jobs, and 1 are stored",
        "of 2 jobs of call 1-4, which was not answered, 1 were stored",
        "call 1-5 was never made, and has 2 jobs",
    ]
    assert calls.unknown == {"stored": 2, "not stored": 1}


def test_i9_what_a_process_leaves_behind_is_found(tmp_path: Path) -> None:
    told = play("careless", tmp_path)["left"]
    assert sorted(line.split(" leaves the ")[1].split(" ")[0] for line in told) == ["files", "tasks", "threads"]
