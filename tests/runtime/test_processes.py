"""Handlers in worker processes: how they end, what kills them, and that none is left behind."""

from __future__ import annotations

import asyncio
import functools
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from jobs_async import Job, JobCompleted, JobState, JobStuck, OptionError, Supervisor, Telemetry, WorkerError, worker
from jobs_async.core.options import Draft
from jobs_async.core.places import Place, place_of
from jobs_async.runtime.processes import Processes
from tests.runtime.programs import hard_work
from tests.runtime.programs.hard_work import echo, ends, goes_on, hands_over, leads_a_group, no_json, pid, speaks
from tests.runtime.programs.hard_work import waits_for as waits
from tests.runtime.support import Seen

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


def poll(fact: Callable[[], object]) -> None:
    """Wait in a thread until something is so."""
    end = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


def is_gone(process: int) -> bool:
    """Ended, whether or not whoever inherited it has noticed."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] in ("", "Z")


def children() -> set[int]:
    found = subprocess.run(["ps", "-ww", "-A", "-o", "ppid=,pid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in found.stdout.splitlines()]
    return {int(child) for parent, child, args in rows if int(parent) == os.getpid() and "child import serve" in args}


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """Whatever a test does, no process of ours outlives its Supervisor."""
    assert not children()
    yield
    assert not children()


def supervisor(**options: Any) -> Supervisor:
    options.setdefault("workers", [hard_work])
    jobs = Supervisor(**options)
    jobs._settings = replace(jobs._settings, cancel_after=0.05)
    return jobs


async def processes_of(note: Path) -> list[int]:
    """The two that `goes_on` has written down."""
    await asyncio.to_thread(poll, note.exists)
    return [int(number) for number in note.read_text().split()]


# --- how a handler can end ---


async def test_a_process_is_kept_for_the_next_job_and_ends_with_the_stop() -> None:
    async with supervisor() as jobs:
        first = await jobs.result(await pid.enqueue())
        assert first not in (None, os.getpid())
        assert children() == {first}
        assert await jobs.result(await pid.enqueue()) == first
    assert not children()


async def test_jobs_at_the_same_time_have_a_process_each(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with supervisor(queues={"default": 3}) as jobs:
        stored = [await waits.enqueue(str(gate)) for _ in range(6)]
        await asyncio.to_thread(poll, lambda: len(children()) == 3)
        gate.touch()
        used = {await jobs.result(job) for job in stored}
        assert used == children()
    assert len(used) == 3


@pytest.mark.parametrize("size", [0, 1, 70_000, 600_000])
async def test_arguments_and_results_of_every_size_pass(size: int) -> None:
    text = ('"x' * size)[:size]
    async with supervisor() as jobs:
        assert await jobs.result(await echo.enqueue(text)) == text


@pytest.mark.parametrize(
    ("how", "state", "kind", "error"),
    [
        ("value", JobState.retryable, "ValueError", "ValueError: no such page"),
        ("nothing", JobState.retryable, "ValueError", "ValueError"),
        ("exit", JobState.retryable, "SystemExit", "SystemExit: 4"),
        ("interrupt", JobState.retryable, "KeyboardInterrupt", "KeyboardInterrupt"),
        ("hostile", JobState.retryable, "Hostile", "Hostile: (its message could not be read)"),
        ("hostile cancel", JobState.retryable, "SystemExit", "SystemExit: no text for you"),
        ("context", JobState.retryable, "LookupError", "LookupError: current_context() was called outside a job"),
        ("hard exit", JobState.retryable, "ProcessDied", "ended with exit code 3 before the handler had returned"),
        ("killed", JobState.retryable, "ProcessDied", "ProcessDied: its process was killed by SIGKILL"),
        ("crash", JobState.retryable, "ProcessDied", "ProcessDied: its process was killed by SIGABRT"),
        ("discard", JobState.discarded, "Discard", "Discard: impossible"),
        ("cancel", JobState.cancelled, "Cancelled", "pointless"),
        ("snooze", JobState.scheduled, None, None),
    ],
)
async def test_what_a_handler_raises_or_does_to_its_process_is_its_own_ending(
    how: str, state: JobState, kind: str | None, error: str | None, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with supervisor(queues={"default": 2}) as jobs:
        neighbour = await waits.enqueue(str(gate))
        job = await ends.enqueue(how)
        ended = await settled(jobs, job)
        assert (ended.state, ended.attempt) == (state, int(how != "snooze"))
        if kind is None:
            assert ended.last_error is None
        else:
            assert ended.last_error is not None
            assert ended.last_error.type == kind
            assert error is not None
            assert error in ended.last_error.error
        gate.touch()
        assert await jobs.result(neighbour), "it did not notice"


async def settled(jobs: Supervisor, job: Job[Any]) -> Job[Any]:
    """A job whose first run has ended."""
    async with asyncio.timeout(PATIENCE):
        while (found := await jobs.get(job.id)).state in (JobState.available, JobState.executing):
            await asyncio.sleep(0.005)
    return found


async def test_a_failure_shows_the_handlers_own_frames_and_its_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with supervisor() as jobs:
        ended = await settled(jobs, await ends.enqueue("value"))
    assert ended.last_error is not None
    assert [frame.split(":")[::2] for frame in ended.last_error.frames[-2:]] == [
        ["hard_work.py", "<lambda>"],
        ["hard_work.py", "_raise"],
    ]
    assert not any(frame.startswith(("child.py", "processes.py", "run.py")) for frame in ended.last_error.frames)
    (text,) = [record.getMessage() for record in caplog.records if "failed in attempt 1 of 20" in record.getMessage()]
    assert text.endswith("ValueError: no such page")
    assert "hard_work.py" in text
    assert "child.py" not in text


async def test_a_job_whose_process_died_is_run_again_in_another() -> None:
    async with supervisor() as jobs:
        before = await jobs.result(await pid.enqueue())
        ended = await settled(jobs, await ends.enqueue("killed"))
        assert ended.state is JobState.retryable
        assert await jobs.result(await pid.enqueue()) != before


async def test_what_is_not_json_completes_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with supervisor() as jobs:
        job = await jobs.wait(await no_json.enqueue())
    assert (job.state, job.result) == (JobState.completed, None)
    (text,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert text.startswith(f"job {job.id} (no_json) completed, but its result")


async def test_what_would_have_to_be_awaited_is_a_failure() -> None:
    async with supervisor() as jobs:
        ended = await settled(jobs, await hands_over.enqueue())
    assert ended.last_error is not None
    assert ended.last_error.type == "TypeError"
    assert "nothing awaits it there" in ended.last_error.error


async def test_stored_arguments_that_do_not_fit_are_discarded_without_their_values() -> None:
    async with supervisor(queues={}) as jobs, jobs.store:
        job = await jobs.store.enqueue("echo", {"text": 77_123})
        async with supervisor(store=jobs.store) as running:
            ended = await running.wait(job)
    assert ended.state is JobState.discarded
    assert ended.last_error is not None
    assert ended.last_error.type == "UnreadableArgs"
    assert "77" not in ended.last_error.error


async def test_what_a_handler_prints_goes_to_standard_error_and_there_is_nothing_to_read(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with supervisor() as jobs:
        assert await jobs.result(await speaks.enqueue("hello")) == ""
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "hello\nhello from a child\n"


async def test_ctrl_c_in_a_terminal_is_not_for_the_process() -> None:
    async with supervisor() as jobs:
        assert await jobs.result(await leads_a_group.enqueue()) is True


async def test_a_process_that_dies_while_it_waits_costs_no_job() -> None:
    processes = Processes()
    job = await a_job(pid.draft())
    first = await processes.run(pid, job)
    (idle,) = processes._idle
    os.kill(int(str(first)), signal.SIGKILL)
    await idle._process.wait()
    second = await processes.run(pid, job)
    assert second != first
    await idle.end()
    await processes.close()


async def a_job(draft: Draft[Any]) -> Job[Any]:
    """A record, for a handler to be run without a Supervisor."""
    async with Supervisor(queues={}) as producer:
        return await producer.enqueue(draft)


# --- what it leaves behind, and what it is told by others ---


@worker(process=True, max_attempts=1, timeout_seconds=20)
def forks_and_dies(note: str, how: str) -> None:
    """As the OOM killer ends it, while what it has forked holds all that it held."""
    if how == "fork":
        other = os.fork()
        if not other:
            time.sleep(1000)
    else:
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        forked.start()
        other = forked.pid or 0
    Path(note).write_text(str(other))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
async def test_the_death_of_a_process_that_has_forked_is_noticed_at_once(how: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    try:
        async with supervisor(workers=[forks_and_dies]) as jobs:
            ended = await settled(jobs, await forks_and_dies.enqueue(str(note), how))
        assert ended.last_error is not None
        assert (ended.last_error.type, ended.last_error.error) == (
            "ProcessDied",
            "ProcessDied: its process was killed by SIGKILL",
        )
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(note.read_text()), signal.SIGKILL)


async def test_a_handler_that_is_asked_to_end_by_others_than_its_parent_goes_on(tmp_path: Path) -> None:
    """As where a service manager tells all processes of a service at once, so that the parent lets jobs finish."""
    gate = tmp_path / "gate"
    async with supervisor() as jobs:
        own = await jobs.result(await pid.enqueue())
        job = await waits.enqueue(str(gate))
        os.kill(own, signal.SIGTERM)
        gate.touch()
        assert await jobs.result(job) == own


async def test_a_queue_that_was_scaled_down_keeps_as_few_processes(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with supervisor(queues={"default": 3}) as jobs:
        stored = [await waits.enqueue(str(gate)) for _ in range(3)]
        await asyncio.to_thread(poll, lambda: len(children()) == 3)
        gate.touch()
        for job in stored:
            await jobs.result(job)
        assert len(children()) == 3
        await jobs.scale_queue("default", 1)
        await jobs.result(await pid.enqueue())
        assert len(children()) == 1


# --- what kills it ---


async def test_a_timeout_kills_the_process_and_what_it_has_started(tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with supervisor() as jobs:
        first = await jobs.result(await pid.enqueue())
        job = await goes_on.options(timeout_seconds=1).enqueue(str(note))
        own, other = await processes_of(note)
        assert own == first
        ended = await settled(jobs, job)
        assert ended.last_error is not None
        assert (ended.state, ended.last_error.type) == (JobState.retryable, "Timeout")
        assert not children()
        await asyncio.to_thread(poll, lambda: is_gone(other))
        assert await jobs.result(await pid.enqueue()) != first


async def test_a_cancelled_job_is_killed_after_its_grace(tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with supervisor() as jobs:
        job = await goes_on.enqueue(str(note))
        _, other = await processes_of(note)
        await jobs.cancel(job.id)
        assert (await jobs.wait(job)).state is JobState.cancelled
        assert not children()
        await asyncio.to_thread(poll, lambda: is_gone(other))


async def test_a_cancelled_job_is_killed_at_once_for_nothing_can_be_told_to_it(tmp_path: Path) -> None:
    jobs = supervisor()
    jobs._settings = replace(jobs._settings, cancel_after=1000.0)
    async with jobs, asyncio.timeout(PATIENCE):
        job = await waits.enqueue(str(tmp_path / "gate"))
        await asyncio.to_thread(poll, children)
        await jobs.cancel(job.id)
        ended = await jobs.wait(job)
        assert (ended.state, ended.result) == (JobState.cancelled, None)


async def test_a_stop_kills_what_has_not_ended_and_hands_it_back(tmp_path: Path) -> None:
    note, seen = tmp_path / "note", Seen()
    jobs = supervisor(shutdown_timeout=0.05, telemetry=(telemetry := Telemetry()))
    telemetry.attach(seen)
    async with jobs.store:
        await jobs.start()
        job = await goes_on.enqueue(str(note))
        own, other = await processes_of(note)
        report = await jobs.stop()
        assert report.is_clean
        assert is_gone(own)
        await asyncio.to_thread(poll, lambda: is_gone(other))
        row = await jobs.get(job.id)
        assert (row.state, row.attempt, row.last_error) == (JobState.available, 0, None)
    assert not seen.of(JobStuck)


async def test_a_stop_lets_a_handler_finish_and_keeps_no_process_for_the_next(tmp_path: Path) -> None:
    gate, seen = tmp_path / "gate", Seen()
    jobs = supervisor(telemetry=(telemetry := Telemetry()))
    telemetry.attach(seen)
    await jobs.start()
    await waits.enqueue(str(gate))
    await asyncio.to_thread(poll, children)
    assert jobs._engine is not None
    processes = jobs._engine.crew.runners["default"]._processes
    stopping = asyncio.Task(jobs.stop())
    await asyncio.to_thread(poll, lambda: processes._is_closed)
    gate.touch()
    assert (await stopping).is_clean
    assert len(seen.of(JobCompleted)) == 1
    assert not children()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 6, 10, 20, 100])
async def test_cut_while_it_starts_it_leaves_no_process(turns: int) -> None:
    """A Python takes a tenth of a second to begin; whatever cuts a job may come before that."""
    processes = Processes()
    job = await a_job(pid.draft())
    running = asyncio.Task(processes.run(pid, job))
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not children()


async def test_cut_when_its_process_has_been_started_it_leaves_none() -> None:
    processes = Processes()
    job = await a_job(pid.draft())
    running = asyncio.Task(processes.run(pid, job))
    await asyncio.to_thread(poll, children)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not children()


# --- programs ---


def program(folder: Path, text: str, name: str = "program.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


GUARDED = """
    import asyncio, os
    from jobs_async import Supervisor, worker

    @worker(process=True)
    def square(n: int) -> int:
        return n * n

    @worker(process=True)
    def pid() -> int:
        return os.getpid()

    jobs = Supervisor(workers=[square, pid])

    async def main() -> None:
        async with jobs:
            print(__name__, await jobs.result(await square.enqueue(7)))

    if __name__ == "__main__":
        asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["script", "script without a suffix", "module", "package"])
def test_a_worker_of_the_program_itself_works(how: str, tmp_path: Path) -> None:
    if how == "package":
        (tmp_path / "package").mkdir()
        program(tmp_path / "package", "", "__init__.py")
        program(
            tmp_path / "package",
            GUARDED.replace("    import asyncio", "    from . import __doc__\n    import asyncio"),
            "__main__.py",
        )
    path = program(tmp_path, GUARDED, "program" if how == "script without a suffix" else "program.py")
    command = ["-m", path.stem if how == "module" else how] if how in ("module", "package") else [str(path)]
    done = run(*command, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("__main__ 49\n", "", 0)


def test_the_program_of_the_guide_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guides" / "executors.md").read_text()
    (shown,) = re.findall(r"^<!-- not run -->\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = run(program(tmp_path, shown))
    assert (done.stdout, done.stderr, done.returncode) == ("168\n", "", 0)


def test_a_program_without_a_guard_is_told_and_does_not_begin_once_more(tmp_path: Path) -> None:
    text = """
        import asyncio
        from jobs_async import Supervisor, worker

        @worker(process=True, max_attempts=1)
        def square(n: int) -> int:
            return n * n

        async def main() -> None:
            async with Supervisor(workers=[square]) as jobs:
                job = await jobs.wait(await square.enqueue(7))
                print(job.state.name, job.last_error.error)

        asyncio.run(main())
    """
    done = run(program(tmp_path, text))
    assert done.stdout.startswith("discarded WorkerError: a worker process must not start a Supervisor of its own")
    assert 'under `if __name__ == "__main__":`' in done.stdout


def test_a_worker_of_a_session_is_refused(tmp_path: Path) -> None:
    text = textwrap.dedent(GUARDED).partition("async def")[0]
    done = run("-c", text, cwd=tmp_path)
    assert done.returncode == 1
    assert "square: a process cannot load what was typed into a session; put it into a module" in done.stderr


@pytest.mark.parametrize(
    ("end", "loops"),
    [
        ("asyncio.run(main(stop=True)); asyncio.run(main(stop=True))", 2),
        ("asyncio.run(main(stop=False))", 1),
        ("loop = asyncio.new_event_loop(); loop.run_until_complete(main(stop=True)); loop.close()", 1),
    ],
    ids=["two loops", "no stop", "a loop closed by hand"],
)
def test_no_process_and_no_warning_is_left_when_a_loop_ends(end: str, loops: int, tmp_path: Path) -> None:
    text = textwrap.dedent(GUARDED).partition("async def main")[0]
    text += textwrap.dedent(f"""
        used = []

        async def main(stop: bool) -> None:
            await jobs.start()
            used.append(await jobs.result(await pid.enqueue()))
            if stop:
                await jobs.stop()

        if __name__ == "__main__":
            {end}
            for process in used:
                try:
                    os.kill(process, 0)
                except ProcessLookupError:
                    print("gone")
    """)
    done = run(program(tmp_path, text))
    assert (done.stdout, done.returncode) == ("gone\n" * loops, 0)
    assert not [line for line in done.stderr.splitlines() if "cancelled by a stranger" not in line], done.stderr


@pytest.mark.parametrize(("flags", "shown"), [([], "True 0"), (["-O"], "False 1"), (["-OO"], "False 2")])
def test_the_flags_of_the_interpreter_hold_in_its_processes(flags: list[str], shown: str, tmp_path: Path) -> None:
    text = """
        import asyncio, sys
        from jobs_async import Supervisor, worker

        @worker(process=True)
        def mode() -> str:
            return f"{__debug__} {sys.flags.optimize}"

        async def main() -> None:
            async with Supervisor(workers=[mode]) as jobs:
                print(await jobs.result(await mode.enqueue()))

        if __name__ == "__main__":
            asyncio.run(main())
    """
    done = run(*flags, program(tmp_path, text))
    assert (done.stdout, done.stderr, done.returncode) == (f"{shown}\n", "", 0)


def test_a_process_and_what_it_has_started_do_not_outlive_its_parent_even_while_it_works(tmp_path: Path) -> None:
    note = tmp_path / "note"
    text = f"""
        import asyncio
        from jobs_async import Supervisor
        from tests.runtime.programs.hard_work import goes_on

        async def main() -> None:
            async with Supervisor(workers=[goes_on]) as jobs:
                await jobs.wait(await goes_on.enqueue({str(note)!r}))

        if __name__ == "__main__":
            asyncio.run(main())
    """
    path = program(tmp_path, text)
    with subprocess.Popen([sys.executable, path], env=os.environ | {"PYTHONPATH": str(ROOT)}) as parent:
        poll(note.exists)
        own, other = map(int, note.read_text().split())
        parent.kill()
        parent.wait()
    try:
        poll(lambda: is_gone(own) and is_gone(other))
    finally:
        for process in (own, other):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


# --- what can run in a process ---


def plain(n: int) -> int:
    return n


async def coroutine() -> None: ...


def with_context(ctx: Any) -> None: ...


class Office:
    def method(self) -> None: ...

    @staticmethod
    def static() -> None: ...

    def __call__(self) -> None: ...


def nested() -> Callable[..., Any]:
    def inside() -> None: ...

    return inside


@functools.wraps(coroutine)
def hidden() -> Coroutine[Any, Any, None]:
    return coroutine()


@pytest.mark.parametrize(
    ("fn", "options", "text"),
    [
        (coroutine, {}, "an async function"),
        (hidden, {}, "an async function"),
        (with_context, {"context": True}, "given a context"),
        (lambda: None, {"name": "short"}, "a lambda"),
        (nested(), {}, "inside a function"),
        (Office().method, {}, "in a class"),
        (Office.static, {}, "in a class"),
        (Office(), {"name": "office"}, "made of a Office"),
        (functools.partial(plain, 1), {}, "made of a partial"),
    ],
)
def test_what_a_process_could_not_find_is_refused_where_it_is_decorated(
    fn: Any, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(WorkerError, match=f"process=True is for what a process can find by its name; .*{text}"):
        worker(process=True, **options)(fn)
    assert worker(**options)(fn).process is False


@pytest.mark.parametrize("given", ["yes", 1, None])
def test_process_is_true_or_false(given: Any) -> None:
    with pytest.raises(OptionError, match="process must be True or False"):
        worker(process=given)


renamed = worker(process=True, name="renamed")(plain)


def test_a_worker_under_another_name_than_its_functions_is_refused_when_attached() -> None:
    with pytest.raises(WorkerError, match=f"{__name__}.plain and not find it there; bind the worker to that name"):
        Supervisor(workers=[renamed])


def test_a_name_may_be_given_to_the_jobs_of_a_worker() -> None:
    assert place_of(hard_work.pid) == Place("tests.runtime.programs.hard_work", "pid")


def test_a_decorator_of_a_supervisor_comes_before_the_name(tmp_path: Path) -> None:
    text = """
        import asyncio
        from jobs_async import Supervisor

        jobs = Supervisor()

        @jobs.worker(process=True)
        def square(n: int) -> int:
            return n * n

        @jobs.worker(process=True)
        def lost(n: int) -> int:
            return n * n

        async def main() -> None:
            async with jobs:
                print(await jobs.result(await square.enqueue(7)))

        if __name__ == "__main__":
            mine, lost = lost, None
            try:
                asyncio.run(main())
            except TypeError as error:
                print(type(error).__name__, error)
            lost = mine
            asyncio.run(main())
    """
    done = run(program(tmp_path, text))
    told, answer = done.stdout.splitlines()
    assert "lost: a process would look for it as __main__.lost and not find it there" in told
    assert answer == "49"
