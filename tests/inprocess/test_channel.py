"""The channel between runs and a slow observer."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from jobs_async import OptionError
from jobs_async.inprocess import (
    Finished,
    JobEventReceiver,
    JobResultStatus,
    ObservedJobEvent,
    ObservedJobRunner,
    Started,
    job_observer_channel,
)
from tests.inprocess.support import Awaiting, Plain, failing

GUARD = 20.0


def brief(event: ObservedJobEvent) -> str:
    match event:
        case Started(context):
            return f"started {context.job_name}"
        case Finished(context, status):
            return f"finished {context.job_name}: {status}"


async def collect(receiver: JobEventReceiver, into: list[str]) -> None:
    async for event in receiver:
        into.append(brief(event))


def test_events_come_in_the_order_of_runs_each_once() -> None:
    observer, receiver = job_observer_channel()
    runner = ObservedJobRunner(observer).context("key", "value")
    runner.run(Plain("good"))
    with pytest.raises(ValueError):  # noqa: PT011
        runner.run(Plain("bad", failing(ValueError())))
    assert len(receiver) == 4
    events = list(receiver.try_iter())
    assert [brief(event) for event in events] == [
        "started good",
        "finished good: success",
        "started bad",
        "finished bad: failure",
    ]
    assert isinstance(events[1], Finished)
    assert events[0].context.duration is None
    assert events[1].context.duration is not None
    assert events[1].context.duration >= 0
    assert {event.context.attributes["key"] for event in events} == {"value"}
    assert list(receiver.try_iter()) == []


def test_a_full_channel_loses_its_oldest_and_counts() -> None:
    observer, receiver = job_observer_channel(maxsize=3)
    runner = ObservedJobRunner(observer)
    for name in ("a", "b", "c"):
        runner.run(Plain(name))
    assert receiver.dropped == 3
    assert [brief(event) for event in receiver.try_iter()] == [
        "finished b: success",
        "started c",
        "finished c: success",
    ]


def test_an_unbounded_channel_loses_nothing() -> None:
    observer, receiver = job_observer_channel()
    runner = ObservedJobRunner(observer)
    for _ in range(5000):
        runner.run(Plain())
    assert (len(receiver), receiver.dropped) == (10_000, 0)


@pytest.mark.parametrize("maxsize", [-1, 1.5, "many", True, None])
def test_a_size_that_is_none_is_refused(maxsize: object) -> None:
    with pytest.raises(OptionError, match="maxsize must be"):
        job_observer_channel(maxsize)  # type: ignore[arg-type]


def test_a_lost_receiver_leaves_nothing_behind() -> None:
    observer, receiver = job_observer_channel()
    lost = weakref.ref(receiver)
    runner = ObservedJobRunner(observer)
    runner.run(Plain())
    del receiver
    gc.collect()
    assert lost() is None
    runner.run(Plain())
    observer.close()


def test_a_closed_receiver_takes_no_more_and_keeps_what_it_has() -> None:
    observer, receiver = job_observer_channel()
    runner = ObservedJobRunner(observer)
    runner.run(Plain("before"))
    receiver.close()
    runner.run(Plain("after"))
    assert receiver.is_closed
    assert repr(receiver) == "<JobEventReceiver: 2 events, closed>"
    assert [event.context.job_name for event in receiver.try_iter()] == ["before"] * 2
    assert receiver.dropped == 0


async def test_a_consumer_waits_for_events_and_ends_with_the_observer() -> None:
    observer, receiver = job_observer_channel()
    runner, seen = ObservedJobRunner(observer), list[str]()
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        tasks.create_task(collect(receiver, seen))
        await asyncio.sleep(0)
        await runner.run_async(Awaiting("one"))
        while len(seen) < 2:
            await asyncio.sleep(0)
        await runner.run_async(Awaiting("two"))
        observer.close()
    assert seen == ["started one", "finished one: success", "started two", "finished two: success"]


async def test_a_consumer_ends_when_nobody_can_tell_it_more() -> None:
    observer, receiver = job_observer_channel()
    runner, seen = ObservedJobRunner(observer), list[str]()
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        tasks.create_task(collect(receiver, seen))
        runner.run(Plain("last"))
        await asyncio.sleep(0)
        del observer, runner
        gc.collect()
    assert seen == ["started last", "finished last: success"]
    assert receiver.is_closed


async def test_closing_the_receiver_ends_its_consumers() -> None:
    observer, receiver = job_observer_channel()
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(collect(receiver, []))
        await asyncio.sleep(0)
        receiver.close()
    observer.close()


async def test_runs_in_threads_wake_a_consumer_in_the_loop() -> None:
    asyncio.get_running_loop().set_debug(True)  # refuses what only the loop's own thread may call
    observer, receiver = job_observer_channel()
    runner, seen = ObservedJobRunner(observer), list[str]()

    def work(name: str) -> None:
        for _ in range(50):
            runner.run(Plain(name))

    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        tasks.create_task(collect(receiver, seen))
        await asyncio.gather(*(asyncio.to_thread(work, name) for name in "abc"))
        observer.close()
    for name in "abc":
        assert [text for text in seen if f" {name}" in text] == [f"started {name}", f"finished {name}: success"] * 50


async def test_several_consumers_share_the_events() -> None:
    observer, receiver = job_observer_channel()
    runner, seen = ObservedJobRunner(observer), [list[str](), list[str]()]
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        for into in seen:
            tasks.create_task(collect(receiver, into))
        for number in range(20):
            await runner.run_async(Plain(str(number)))
            await asyncio.sleep(0)
        observer.close()
    assert len(seen[0]) + len(seen[1]) == 40


async def test_a_consumer_that_gives_up_loses_nothing_for_the_next() -> None:
    observer, receiver = job_observer_channel()
    troubles = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(receiver)
    assert receiver._waiting == []
    async with asyncio.timeout(GUARD):
        waiting = asyncio.get_running_loop().create_task(anext_of(receiver))
        await asyncio.sleep(0)
        ObservedJobRunner(observer).run(Plain("job"))
        waiting.cancel()
        await asyncio.wait({waiting})
        assert brief(await anext(receiver)) == "started job"
    assert waiting.cancelled()
    assert len(receiver) == 1
    assert troubles == []


async def anext_of(receiver: JobEventReceiver) -> ObservedJobEvent:
    return await anext(receiver)


def test_a_consumer_whose_loop_was_closed_harms_no_job(caplog: pytest.LogCaptureFixture) -> None:
    observer, receiver = job_observer_channel()
    loop = asyncio.new_event_loop()
    abandoned = anext_of(receiver)
    task = loop.create_task(abandoned)
    loop.run_until_complete(asyncio.sleep(0, loop))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert ObservedJobRunner(observer).run(Plain(does=lambda: 7)) == 7
    assert len(receiver) == 2
    assert caplog.records == []
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    abandoned.close()


def test_threads_may_drain_while_others_put() -> None:
    observer, receiver = job_observer_channel()
    runner, done, got = ObservedJobRunner(observer), threading.Event(), list[ObservedJobEvent]()

    def drain() -> None:
        while not done.is_set():
            got.extend(receiver.try_iter())

    thread = threading.Thread(target=drain)
    thread.start()
    for _ in range(500):
        runner.run(Plain())
    done.set()
    thread.join(GUARD)
    got.extend(receiver.try_iter())
    assert len(got) == 1000
    assert {event.status for event in got if isinstance(event, Finished)} == {JobResultStatus.SUCCESS}
