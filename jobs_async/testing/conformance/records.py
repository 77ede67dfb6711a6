"""Records: what a store may keep beside jobs. Checked where a store has them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from jobs_async.core.records import Record, Records

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobs_async.core.store import Store
    from jobs_async.testing.clock import FakeClock

KEYS = ["a", "a/1", "a/2", "aa", "b", "B", "é", "ü", "\U0001f9ea", "a%", "a_", "'", '"']


def _records(store: Store) -> Records | None:
    return store if isinstance(store, Records) else None


def _some(keys: Iterable[str], value: object = 1, kind: str = "notes") -> list[Record]:
    return [Record.of(kind, key, value) for key in keys]


async def a_record_is_written_and_written_over(store: Store, clock: FakeClock) -> None:
    """Under its kind and key; stamped with the store's time at each write."""
    if (records := _records(store)) is None:
        return
    assert await records.put_records(_some(["k"], {"n": [1, None, "ü"]})) == [True]
    first = clock.now()
    clock.advance(1)
    assert await records.put_records([*_some(["k"], 2, kind="other"), *_some(["l"], 3)]) == [True, True]
    [kept] = await records.get_records("notes", keys=["k"])
    assert (kept.document, kept.at) == ({"n": [1, None, "ü"]}, first)
    assert await records.put_records(_some(["k"], "new")) == [True]
    [kept] = await records.get_records("notes", keys=["k"])
    assert (kept.document, kept.at) == ("new", clock.now())
    assert [one.document for one in await records.get_records("other")] == [2]
    assert await records.get_records("nothing") == []
    assert await records.put_records([]) == []


async def what_is_there_stays_where_only_new_ones_are_wanted(store: Store, clock: FakeClock) -> None:
    """And the answer says which were written: one of many writers is the first, also within a batch."""
    if (records := _records(store)) is None:
        return
    await records.put_records(_some(["k"], "old"))
    clock.advance(1)
    assert await records.put_records(_some(["j", "k", "l", "l"], "new"), only_new=True) == [True, False, True, False]
    assert [one.document for one in await records.get_records("notes")] == ["new", "old", "new"]
    [kept] = await records.get_records("notes", keys=["k"])
    assert kept.at == clock.now() - timedelta(seconds=1)


async def records_come_in_the_order_of_their_keys(store: Store, clock: FakeClock) -> None:
    """By code point, page by page, by prefix; upper and lower case told apart, and no key is a pattern."""
    if (records := _records(store)) is None:
        return
    await records.put_records(_some(KEYS))
    seen: list[str] = []
    while page := await records.get_records("notes", after=seen[-1] if seen else None, limit=2):
        assert len(page) <= 2
        assert page[0].key not in seen
        seen += [one.key for one in page]
    assert seen == sorted(KEYS)
    for prefix in ["", "a", "a/", "a%", "B", "é", "x"]:
        found = [one.key for one in await records.get_records("notes", prefix=prefix)]
        assert found == sorted(key for key in KEYS if key.startswith(prefix))
    assert [one.key for one in await records.get_records("notes", keys=["b", "a", "zz"], after="a")] == ["b"]
    assert await records.get_records("notes", keys=[]) == []


async def records_are_dropped_by_key_and_by_age(store: Store, clock: FakeClock) -> None:
    """Strictly before, oldest first, as many as asked for, and of this kind alone; how many is told."""
    if (records := _records(store)) is None:
        return
    await records.put_records(_some(["other"], kind="other"))
    for key in ["a", "b", "c", "d"]:
        await records.put_records(_some([key]))
        clock.advance(1)
    assert await records.drop_records("notes", keys=["d", "d", "x"]) == 1
    assert await records.drop_records("notes", older_than=4) == 0
    assert await records.drop_records("notes", older_than=1, limit=1) == 1
    assert [one.key for one in await records.get_records("notes")] == ["b", "c"]
    assert await records.drop_records("notes", keys=["c"], older_than=clock.now() - timedelta(seconds=2)) == 0
    assert await records.drop_records("notes") == 2
    assert [one.key for one in await records.get_records("other")] == ["other"]
