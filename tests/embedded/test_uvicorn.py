"""Beside a web server: whenever and however often it is told to stop, no job is lost and nothing stays behind."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from jobs_async import JobState
from tests.embedded.support import File, Program, program, within
from tests.sqlite.support import Holder, can_be_written_at_once

SLACK = 6.0
"""Seconds a stop may take beyond the grace."""
Usual = dict[signal.Signals, int]


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "jobs.db")


@contextmanager
def starting(app: str = "site", **environment: object) -> Iterator[Program]:
    command = ["-m", "uvicorn", f"tests.embedded.programs.{app}:app", "--port", 0, "--no-access-log"]
    with program(*command, **environment) as server:
        yield server


@contextmanager
def serving(file: File, grace: float = 10) -> Iterator[Program]:
    """A server that has started."""
    with starting(JOBS_FILE=file.path, JOBS_GRACE=grace) as server:
        server.says("Uvicorn running on")
        yield server


@pytest.fixture(scope="module")
def usual() -> Usual:
    """The exit codes of the server where no jobs are."""
    with ExitStack() as stack:
        servers = {number: stack.enter_context(starting("empty_site")) for number in (signal.SIGTERM, signal.SIGINT)}
        for number, server in servers.items():
            server.says("Uvicorn running on")
            server.send(number)
        return {number: server.end() for number, server in servers.items()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_idle_server_stops_at_once_as_if_no_jobs_were_there(
    file: File, usual: Usual, number: signal.Signals
) -> None:
    with serving(file) as server:
        assert file.live_nodes() == 1
        with within(SLACK):
            server.send(number)
            assert server.end() == usual[number]
        assert "Application shutdown complete" in server.text
        assert "Traceback" not in server.text
    file.is_left_clean()


def test_jobs_that_end_within_the_grace_are_completed_and_the_rest_runs_in_the_next_life(
    file: File, usual: Usual
) -> None:
    with serving(file, grace=1.5) as server:
        short, thread, long = file.put("short", "thread", "long")
        (later,) = file.put("short", delay=3600)
        for worker in ("short", "thread", "long"):
            server.says(f"{worker} began")
        with within(1.5 + SLACK):
            server.send(signal.SIGTERM)
            server.says("Waiting for application shutdown")
            (unheard,) = file.put("short")
            file.path.with_name("go").touch()
            assert server.end() == usual[signal.SIGTERM]
        assert "Traceback" not in server.text
    file.is_left_clean()
    for job in map(file.job, (short, thread)):
        assert (job.state, job.attempt, job.result) == (JobState.completed, 1, "done")
    for job in map(file.job, (long, unheard)):
        assert (job.state, job.attempt, job.errors, job.rescues) == (JobState.available, 0, (), 0)
    assert file.job(later).state is JobState.scheduled

    file.path.with_name("next life").touch()
    with serving(file) as server:
        file.wait_for(JobState.completed, 4)
        server.send(signal.SIGTERM)
        server.end()
    file.is_left_clean()
    for job in map(file.job, (long, unheard)):
        assert (job.state, job.attempt, job.result) == (JobState.completed, 1, "done")


def test_a_thread_that_will_not_end_keeps_its_job_and_holds_up_nothing_else(file: File, usual: Usual) -> None:
    with serving(file, grace=0) as server:
        deaf, long = file.put("deaf", "long")
        server.says("deaf began")
        server.says("long began")
        with within(SLACK):
            server.send(signal.SIGTERM)
            server.says("Application shutdown complete")
        assert file.live_nodes() == 1, "as long as its lease lasts, nobody else runs what the thread still runs"
        assert (file.job(deaf).state, file.job(long).state) == (JobState.executing, JobState.available)
        server.says(rf"stopped while jobs \[{deaf}\] still run")
        file.path.with_name("enough").touch()
        assert server.end() == usual[signal.SIGTERM]
    assert file.job(deaf).state is JobState.executing, "what it did after the stop is not known here"
    assert can_be_written_at_once(file.path)


def test_a_second_signal_during_the_stop_does_not_pierce_it(file: File, usual: Usual) -> None:
    with serving(file) as server:
        (short,) = file.put("short")
        server.says("short began")
        server.send(signal.SIGTERM)
        server.says("Waiting for application shutdown")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            server.send(number)
        file.path.with_name("go").touch()
        with within(SLACK):
            assert server.end() in usual.values()
        assert "Application shutdown complete" in server.text
    file.is_left_clean()
    assert (file.job(short).state, file.job(short).attempt) == (JobState.completed, 1)


def test_a_server_forced_to_quit_before_its_lifespan_ends_loses_nothing(file: File) -> None:
    """Ctrl-C twice while a request is open: the server drops its event loop with everything in it."""
    with serving(file, grace=0) as server, socket.socket() as client:
        (long,) = file.put("long")
        server.says("long began")
        port = server.says(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")[1]
        client.connect(("127.0.0.1", int(port)))
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        server.says("slow began")
        server.send(signal.SIGINT)
        server.says("Waiting for connections to close")
        with within(SLACK):
            server.send(signal.SIGINT)
            server.end()
    file.path.with_name("next life").touch()
    with serving(file) as server:
        file.wait_for(JobState.completed, 1)
        server.send(signal.SIGTERM)
        server.end()
    file.is_left_clean()
    assert file.job(long).result == "done"


def test_a_signal_while_the_jobs_are_starting_stops_what_was_started(file: File, usual: Usual) -> None:
    """The start waits for a foreign lock, so the signal falls into the middle of it."""
    (waiting,) = file.put("long")
    with starting(JOBS_FILE=file.path, JOBS_GRACE=0) as server:
        with Holder(file.path):
            server.says("Waiting for application startup")
            server.send(signal.SIGTERM)
        with within(SLACK):
            assert server.end() == usual[signal.SIGTERM]
        assert "Traceback" not in server.text
    file.is_left_clean()
    assert (file.job(waiting).state, file.job(waiting).attempt) == (JobState.available, 0)
