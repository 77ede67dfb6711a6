"""`jobs-async run` as its users meet it: processes that are started, sent signals and killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from jobs_async import JobState, MemoryStore, OptionError, Queue, Supervisor
from jobs_async.cli.main import main
from jobs_async.cli.run import loop_factory, parsed_queues
from tests.embedded.support import PATIENCE, File, Program, program
from tests.sqlite.support import Holder, change

APP = "tests.cli.programs.shop"
Run = Callable[..., AbstractContextManager[Program]]


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "jobs.db")


@pytest.fixture
def run(file: File) -> Run:
    """Start `jobs-async run` on the application of these tests."""

    def start(*options: object, app: str = f"{APP}:jobs", **environment: object) -> AbstractContextManager[Program]:
        return program("-m", "jobs_async", "run", app, *options, SHOP_FILE=file.path, **environment)

    return start


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, file: File) -> Callable[..., str]:
    """What `jobs-async run` says to what it does not even begin with, asked in this process."""

    def ask(app: str, *options: str) -> str:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("SHOP_FILE", str(file.path))
        result = CliRunner().invoke(main, ["run", app, *options])
        assert result.exit_code == 2
        return result.stderr

    return ask


@pytest.fixture(autouse=True)
def free_threads(file: File) -> Iterator[None]:
    """No handler waits for ever, not even in a process that outlives its test."""
    yield
    file.path.with_name("go").touch()
    file.path.with_name("enough").touch()


def ledger(file: File) -> list[list[str]]:
    path = file.path.with_name("ledger")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(fact: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < give_up_at, "it never came to that"
        time.sleep(0.005)


def has(file: File, event: str, count: int = 1) -> Callable[[], bool]:
    return lambda: sum(line[0] == event for line in ledger(file)) >= count


def documents(one: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in one.text.splitlines() if line.startswith("{")]


def opened_by(pid: int, path: Path) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    return any(os.path.realpath(entry) == str(path.resolve()) for entry in folder.iterdir())


def insist(one: Program, number: int) -> None:
    """Send a signal until it has an end; those that arrive at once count as one."""
    give_up_at = time.monotonic() + PATIENCE
    while one._process.poll() is None:
        assert time.monotonic() < give_up_at, one.text
        one.send(number)
        time.sleep(0.05)


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_lets_running_jobs_finish(run: Run, file: File, number: int) -> None:
    with run("--json") as one:
        one.says('"event":"started"')
        gated, other = file.put("gated", "gated")
        wait_until(has(file, "began", 2))
        (waiting,) = file.put("gated")
        one.send(number)
        one.says("stopping: ")
        file.path.with_name("go").touch()
        assert one.end() == 0, one.text
    started, stopped = documents(one)
    assert started["queues"] == {"default": 2, "mail": 3}
    assert started["workers"] == ["blocks", "brief", "deaf", "fails", "gated", "leaves_a_thread"]
    assert len(started["node"]) == 32
    wanted = {"event": "stopped", "exit_code": 0, "still_running": [], "unsettled": [], "drained": None}
    assert stopped == {"pid": started["pid"], **wanted}
    assert [file.job(job).state for job in (gated, other, waiting)] == [
        JobState.completed,
        JobState.completed,
        JobState.available,
    ]
    file.is_left_clean()


def test_a_second_signal_cancels_running_jobs_and_hands_them_back(run: Run, file: File) -> None:
    with run() as one:
        one.says(" running ")
        (gated,) = file.put("gated")
        wait_until(has(file, "began"))
        one.send(signal.SIGTERM)
        one.says("stopping: ")
        assert not has(file, "cut")()
        one.send(signal.SIGINT)
        assert one.end() == 0, one.text
    assert has(file, "cut")()
    job = file.job(gated)
    assert (job.state, job.attempt) == (JobState.available, 0)
    file.is_left_clean()


@pytest.mark.parametrize("worker", ["deaf", "blocks"])
def test_a_third_signal_leaves_at_once_even_while_the_event_loop_is_blocked(run: Run, file: File, worker: str) -> None:
    with run() as one:
        one.says(" running ")
        (job,) = file.put(worker)
        wait_until(has(file, "began"))
        insist(one, signal.SIGTERM)
        one.says("leaving at once")
        assert one.end() == 130
    assert file.job(job).state is JobState.executing


def test_what_will_not_end_is_left_with_the_lease_given_up_and_taken_over_at_once(run: Run, file: File) -> None:
    """The lease is an hour: who waited for it to run out would not see the end of this test."""
    with run("--json", SHOP_GRACE=0.1, SHOP_LEASE=3600) as one:
        one.says('"event":"started"')
        deaf, cut = file.put("deaf", "gated")
        wait_until(has(file, "began", 2))
        one.send(signal.SIGTERM)
        assert one.end() == 6, one.text
    one.says(rf"stopped; jobs \[{deaf}\] are left to be rescued")
    stopped = documents(one)[-1]
    assert (stopped["exit_code"], stopped["still_running"], stopped["unsettled"]) == (6, [deaf], [])
    assert file.live_nodes() == 0
    assert (file.job(cut).state, file.job(cut).attempt) == (JobState.available, 0)
    file.path.with_name("enough").touch()
    file.path.with_name("go").touch()
    with run("--json", SHOP_LEASE=3600) as other:
        file.wait_for(JobState.completed, 2)
        other.send(signal.SIGTERM)
        assert other.end() == 0
    job = file.job(deaf)
    assert (job.attempt, job.rescues, [error.error for error in job.errors]) == (2, 1, ["rescued: node lost"])


def test_a_signal_while_the_store_is_being_opened_is_heard(run: Run, file: File) -> None:
    with Holder(file.path) as holder, run("--json") as one:
        wait_until(lambda: opened_by(one._process.pid, file.path))
        one.send(signal.SIGTERM)
        one.says("stopping: ")
        holder.let_go()
        assert one.end() == 0, one.text
    assert [document["event"] for document in documents(one)] == ["stopped"]
    file.is_left_clean()


# --- burst ---


def test_a_burst_runs_what_there_is_and_ends(run: Run, file: File) -> None:
    done = file.put("brief", "fails", "brief", max_attempts=1)
    (later,) = file.put("brief", delay=3600)
    (elsewhere,) = file.put("brief", queue="elsewhere")
    with run("--burst", "--json") as one:
        assert one.end() == 0, one.text
    assert documents(one)[-1]["drained"] == {
        "completed": 2,
        "failed": 0,
        "discarded": 1,
        "cancelled": 0,
        "snoozed": 0,
    }
    states = [file.job(job).state.name for job in (*done, later, elsewhere)]
    assert states == ["completed", "discarded", "completed", "scheduled", "available"]
    file.is_left_clean()


def test_a_burst_is_stopped_by_signals_as_any_other_run(run: Run, file: File) -> None:
    (gated,) = file.put("gated")
    with run("--burst") as one:
        wait_until(has(file, "began"))
        one.send(signal.SIGTERM)
        one.says("stopping: ")
        one.send(signal.SIGTERM)
        assert one.end() == 0, one.text
    assert (file.job(gated).state, file.job(gated).attempt) == (JobState.available, 0)


def test_a_thread_that_a_job_has_left_behind_does_not_hold_up_the_end(run: Run, file: File) -> None:
    file.put("leaves_a_thread")
    with run("--burst") as one:
        assert one.end() == 0, one.text
    assert not file.path.with_name("enough").exists()
    file.is_left_clean()


def test_chosen_queues_run_instead_of_the_applications_own(run: Run, file: File) -> None:
    (here,) = file.put("brief", queue="elsewhere")
    (not_here,) = file.put("brief")
    with run("--burst", "--json", "--queues", "elsewhere=7, mail", app=f"{APP}:make") as one:
        assert one.end() == 0, one.text
    assert documents(one)[0]["queues"] == {"elsewhere": 7, "mail": 3}
    assert [file.job(job).state.name for job in (here, not_here)] == ["completed", "available"]


# --- several processes ---


def test_two_processes_share_a_file_and_stop_together(run: Run, file: File) -> None:
    ids = file.put(*["brief"] * 30)
    with run("--processes", 2, "--json") as one:
        one.says('"event":"started"', count=2)
        file.wait_for(JobState.completed, len(ids))
        file.put(*["gated"] * 4)  # more than one of them may run
        wait_until(has(file, "began", len(ids) + 4))
        one.send(signal.SIGINT)
        one.says("stopping: ", count=2)
        file.path.with_name("go").touch()
        assert one.end() == 0, one.text
    assert Counter(line[1] for line in ledger(file) if line[0] == "began") == Counter(map(str, range(1, len(ids) + 5)))
    assert len({line[3] for line in ledger(file)}) == 2
    end = documents(one)[-1]
    started = {document["pid"] for document in documents(one) if document["event"] == "started"}
    assert (end["event"], end["exit_code"]) == ("ended", 0)
    assert end["processes"] == {str(pid): 0 for pid in started}
    file.is_left_clean()


def test_a_child_that_is_killed_is_told_of_and_the_others_go_on(run: Run, file: File) -> None:
    with run("--processes", 2, "--json") as one:
        one.says('"event":"started"', count=2)
        first, second = (document["pid"] for document in documents(one))
        os.kill(first, signal.SIGKILL)
        one.says(rf"process 1 \(pid {first}\) was killed by SIGKILL; 1 of 2 go on")
        (job,) = file.put("brief")
        file.wait_for(JobState.completed, 1)
        assert {line[3] for line in ledger(file)} == {str(second)}
        one.send(signal.SIGTERM)
        assert one.end() == 128 + signal.SIGKILL, one.text
    assert documents(one)[-1]["processes"] == {str(first): 128 + signal.SIGKILL, str(second): 0}
    assert file.job(job).attempt == 1


def test_when_all_children_are_gone_so_is_the_parent(run: Run) -> None:
    with run("--processes", 2, "--json") as one:
        one.says('"event":"started"', count=2)
        for document in documents(one):
            os.kill(document["pid"], signal.SIGKILL)
        assert one.end() == 128 + signal.SIGKILL
    assert "0 of 2 go on" in one.text


def test_children_of_a_parent_that_was_killed_stop_in_good_order(run: Run, file: File) -> None:
    with run("--processes", 2, "--json") as one:
        one.says('"event":"started"', count=2)
        file.put("gated")
        wait_until(has(file, "began"))
        one.send(signal.SIGKILL)
        one.says("stopping: ", count=2)
        file.path.with_name("go").touch()
        one.says('"event":"stopped"', count=2)
        one.end()
    assert file.count(JobState.completed) == 1
    wait_until(lambda: file.live_nodes() == 0)


@pytest.mark.parametrize("parent_first", [True, False])
def test_who_signals_all_processes_at_once_asks_once(run: Run, file: File, parent_first: bool) -> None:
    """As a service manager does that ends a whole group: a child hears of it twice, and still lets its jobs finish."""
    with run("--processes", 2, "--json") as one:
        one.says('"event":"started"', count=2)
        children = [document["pid"] for document in documents(one)]
        file.put("gated", "gated", "gated")
        wait_until(has(file, "began", 3))
        if parent_first:
            one.send(signal.SIGTERM)
            one.says("stopping: ", count=2)
        for pid in children:
            os.kill(pid, signal.SIGTERM)
        if not parent_first:
            one.says("stopping: ", count=2)
            one.send(signal.SIGTERM)
        file.path.with_name("go").touch()
        assert one.end() == 0, one.text
    assert file.count(JobState.completed) == 3
    assert "stopping now" not in one.text


def test_a_third_signal_ends_children_that_block_as_well(run: Run, file: File) -> None:
    with run("--processes", 2, "--json") as one:
        one.says('"event":"started"', count=2)
        file.put(*["blocks"] * 2)
        wait_until(has(file, "began"))
        insist(one, signal.SIGINT)
        assert one.end() == 130, one.text


def test_a_burst_of_several_processes_ends_when_all_is_done(run: Run, file: File) -> None:
    file.put(*["brief"] * 20)
    with run("--processes", 2, "--burst") as one:
        assert one.end() == 0, one.text
    assert file.count(JobState.completed) == 20
    assert "go on" not in one.text


def test_an_application_that_cannot_be_loaded_is_complained_of_once(run: Run) -> None:
    with run("--processes", 3, app=f"{APP}:nope") as one:
        assert one.end() == 2
    assert one.text.count("cannot load") == 1
    one.says(r"process 1 \(pid \d+\) ended with exit code 2 before it had begun; 0 of 1 go on")


# --- what cannot be run ---


@pytest.mark.parametrize(
    ("app", "complaint"),
    [
        (APP, "is no place of a Supervisor; say module:attribute"),
        (f"{APP}:nope", "has nothing of that name"),
        ("nowhere.at_all:jobs", "there is no module 'nowhere'"),
        (f"{APP}:FILE", "is no Supervisor and returns none, but a PosixPath"),
        (f"{APP}:brief", "is no Supervisor and returns none, but a Worker"),
        (f"{APP}:make_later", "is no Supervisor and returns none, but a coroutine"),
        (f"{APP}:nothing", "runs no queues; say which with --queues"),
        ("no-name:jobs", "invalid format"),
    ],
)
def test_what_is_no_application_is_named_in_one_line(refused: Callable[..., str], app: str, complaint: str) -> None:
    text = refused(app)
    assert complaint in text
    assert text.count("\n") == 1, text
    assert text.startswith("Error: ")


@pytest.mark.parametrize(
    ("app", "complaint"),
    [
        ("tests.cli.programs.broken:jobs", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        (f"{APP}:make_badly", "ValueError: no settings"),
    ],
)
def test_an_application_that_raises_is_shown_where(refused: Callable[..., str], app: str, complaint: str) -> None:
    lines = refused(app).splitlines()
    assert lines[-1].startswith(f"Error: cannot load {app!r}: {complaint}")
    assert lines[0] == "Traceback (most recent call last):"
    assert "programs" in lines[1], "it begins with the application's own code"
    assert not any("resolve_name" in line for line in lines)


def test_debug_shows_where_else_it_went_wrong(refused: Callable[..., str]) -> None:
    assert "resolve_name" in refused(f"{APP}:nope", "--debug")


def test_a_module_is_looked_for_in_the_folder_that_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "little_app.py").write_text("from jobs_async import Supervisor\njobs = Supervisor()\n")
    with run("--burst", "--app-dir", tmp_path, app="little_app:jobs") as one:
        assert one.end() == 0, one.text
    with run("--burst", app="little_app:jobs") as one:
        assert one.end() == 2


@pytest.mark.parametrize("content", [b"no database " * 100, None])
def test_a_store_that_cannot_be_opened_is_exit_code_5(run: Run, file: File, content: bytes | None) -> None:
    if content is None:
        file.path.mkdir()
    else:
        file.path.write_bytes(content)
    with run() as one:
        assert one.end() == 5, one.text
    assert one.text.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in one.text


def test_a_schema_that_is_newer_is_exit_code_5(run: Run, file: File) -> None:
    file.put("brief")
    change(file.path, "INSERT INTO jobs_async_migrations VALUES (999, 'now')")
    with run() as one:
        assert one.end() == 5, one.text
    one.says("Error: the file has schema 999")


@pytest.mark.parametrize(
    "queues", ["", "=3", "mail=0", "mail=x", "mail=-1", "mail,mail=2", "mail=1.5", "a,,b", "m=99999"]
)
def test_queues_that_are_none_are_refused(queues: str) -> None:
    jobs = Supervisor(MemoryStore())
    with pytest.raises((click.BadParameter, OptionError)):
        jobs.serve(parsed_queues([queues]))


def test_queues_are_read_from_one_option_or_several() -> None:
    assert parsed_queues([]) == {}
    assert parsed_queues(["mail=10,default", "a=b=2"]) == {"mail": 10, "default": None, "a=b": 2}


# --- the event loop, and logs ---


def test_uvloop_is_used_where_it_is_installed(
    run: Run, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "uvloop.py"
    fake.write_text("import asyncio\ndef new_event_loop():\n    print('made')\n    return asyncio.new_event_loop()\n")
    with run("--burst", PYTHONPATH=tmp_path) as one:
        assert one.end() == 0, one.text
    assert "made" in one.text
    with run("--burst", "--loop", "asyncio", PYTHONPATH=tmp_path) as one:
        assert one.end() == 0, one.text
    assert "made" not in one.text
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory("auto") is asyncio.new_event_loop
    assert "uvloop is not installed: pip install jobs-async[uvloop]" in refused(f"{APP}:jobs", "--loop", "uvloop")


def test_logs_are_json_if_asked_for_and_know_their_job(run: Run, file: File) -> None:
    file.put("fails")
    with run("--burst", "--log-format", "json", "--log-level", "warning") as one:
        assert one.end() == 0
    (line,) = documents(one)
    assert (line["level"], line["worker"], line["job_id"]) == ("WARNING", "fails", 1)


# --- what the command needs of a Supervisor ---


async def test_serve_chooses_queues_until_the_start() -> None:
    jobs = Supervisor(queues=[Queue("mail", 3)])
    jobs.serve({"mail": None, "default": None, "slow": 1})
    assert jobs.served == {"mail": 3, "default": 10, "slow": 1}
    with pytest.raises(OptionError):
        jobs.serve({"mail": 0})
    async with jobs:
        assert (await jobs.nodes())[0].queues == {"mail": 3, "default": 10, "slow": 1}
        with pytest.raises(OptionError, match="is running"):
            jobs.serve({})
    jobs.serve({})
    assert jobs.served == {}


@pytest.mark.parametrize("hurried_before", [False, True])
async def test_hurry_cuts_the_grace_short_and_leaves_time_to_clean_up(hurried_before: bool) -> None:
    jobs, began, seen = Supervisor(shutdown_timeout=3600), asyncio.Event(), list[str]()

    @jobs.worker
    async def tidy() -> None:
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            seen.append("tidied")

    async with asyncio.timeout(PATIENCE):
        await jobs.start()
        job = await tidy.enqueue()
        await began.wait()
        if hurried_before:
            jobs.hurry()
        stopping = asyncio.create_task(jobs.stop())
        for _ in range(50):  # until it waits for the job
            await asyncio.sleep(0)
        while not hurried_before and not seen:
            jobs.hurry()  # again and again: that must not take away the time to clean up
            await asyncio.sleep(0.001)
        assert (await stopping).is_clean
        assert seen == ["tidied"]
        jobs.hurry()
        assert (await jobs.get(job)).state is JobState.available


async def test_a_stop_without_hurry_waits_for_its_jobs() -> None:
    jobs, go, began = Supervisor(shutdown_timeout=3600), asyncio.Event(), asyncio.Event()

    @jobs.worker
    async def gated() -> str:
        began.set()
        await go.wait()
        return "done"

    await jobs.start()
    job = await gated.enqueue()
    await began.wait()
    stopping = asyncio.create_task(jobs.stop())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not stopping.done()
    go.set()
    assert (await stopping).is_clean
    assert (await jobs.get(job)).result == "done"
