"""Workers that run in processes, and what they do to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs_async import Cancel, Discard, Snooze, current_context, worker


class Hostile(Exception):
    """Its text cannot be read."""

    def __str__(self) -> str:
        raise SystemExit("no text for you")


class HostileCancel(Cancel):
    """Nor can its own."""

    __str__ = Hostile.__str__


@worker(process=True)
def pid() -> int:
    return os.getpid()


@worker(process=True)
def leads_a_group() -> bool:
    return os.getpgrp() == os.getpid() == os.getsid(0)


@worker(process=True)
def echo(text: str) -> str:
    return text


@worker(process=True)
def speaks(text: str) -> str:
    """On every way there is to standard output, and reads what there is to be read."""
    print(text)
    subprocess.run(["echo", f"{text} from a child"], check=True)
    return sys.stdin.read()


@worker(process=True)
def no_json() -> Any:
    return object()


@worker(process=True)
def hands_over() -> Any:
    async def later() -> None: ...

    return later()


def _raise(error: BaseException) -> None:
    raise error


ENDINGS = {
    "value": lambda: _raise(ValueError("no such page")),
    "nothing": lambda: _raise(ValueError()),
    "exit": lambda: sys.exit(4),
    "interrupt": lambda: _raise(KeyboardInterrupt()),
    "hostile": lambda: _raise(Hostile()),
    "hostile cancel": lambda: _raise(HostileCancel()),
    "context": current_context,
    "snooze": lambda: _raise(Snooze(3600)),
    "cancel": lambda: _raise(Cancel("pointless")),
    "discard": lambda: _raise(Discard("impossible")),
    "hard exit": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": os.abort,
}


@worker(process=True)
def ends(how: str) -> None:
    ENDINGS[how]()


@worker(process=True, max_attempts=3)
def goes_on(note: str) -> None:
    """Write down its process, and another that it has started; then go on until killed."""
    other = subprocess.Popen(["sleep", "1000"], stderr=subprocess.DEVNULL)
    path = Path(note)
    path.with_suffix(".part").write_text(f"{os.getpid()} {other.pid}")
    path.with_suffix(".part").rename(path)
    time.sleep(1000)


@worker(process=True)
def waits_for(note: str) -> int:
    while not Path(note).exists():
        time.sleep(0.01)
    return os.getpid()
