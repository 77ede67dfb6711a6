"""Scenarios are programs: `python -m tests.chaos.NAME --seed 7`. Each prints one line of JSON, or how to replay it."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tests.chaos.database import PostgresDatabase
from tests.chaos.fleet import Place
from tests.cluster import PgCluster

ROOT = Path(__file__).parents[2]

Report = dict[str, Any]
Scenario = Callable[..., Report]


def main(scenario: Scenario, store: str = "sqlite", *, durable: bool = False) -> None:
    """Run a scenario whose keyword parameters are the options of the command line.

    `store` is where it plays if not told otherwise: a file, or a PostgreSQL of its own. One that is `durable` waits for
    the disk, as it must where the server dies.
    """
    parameters = list(inspect.signature(scenario).parameters.values())[1:]
    parser = argparse.ArgumentParser(description=scenario.__doc__)
    parser.add_argument("--folder", type=Path, help="where to leave the jobs, the ledger and the log")
    parser.add_argument("--seed", type=int, default=1, help="of all dice")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default=store, help="where the jobs are")
    for one in parameters:
        parser.add_argument(f"--{one.name}", type=type(one.default), default=one.default)
    options = vars(parser.parse_args())
    folder = options.pop("folder") or Path(mkdtemp(prefix="chaos-"))
    seed, store = options.pop("seed"), options.pop("store")
    given = {"seed": seed, "store": store, **options}
    wrong = ["it did not come to its end"]
    place = Place(folder, seed, PgCluster.start(durable=durable) if store == "postgres" else None)
    began = time.monotonic()
    try:
        report = scenario(place, **options)
        wrong = report["violations"]
        print(json.dumps({**given, "took": round(time.monotonic() - began, 1), **report}))
    finally:
        if isinstance(place.database, PostgresDatabase):
            if wrong:
                place.database.leave(folder / "live")
            (folder / "server.log").write_text(place.server.log)
            place.server.close()
        if wrong:
            print(*wrong[:20], f"what is left of it: {folder}", file=sys.stderr, sep="\n")
            print(f"replay: {shlex.join(command(module_of(scenario), **given))}", file=sys.stderr)
    sys.exit(bool(wrong))


def module_of(scenario: Scenario) -> str:
    return Path(inspect.getfile(scenario)).stem


def command(name: str, **options: object) -> list[str]:
    return [sys.executable, "-m", f"tests.chaos.{name}", *(f"--{key}={value}" for key, value in options.items())]


# --- the side of the tests ---


class Playing:
    """A scenario that runs in processes of its own."""

    def __init__(self, name: str, folder: Path, **options: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            command(name, folder=folder, **options),
            cwd=ROOT,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def report(self, seconds: float = 600) -> Report:
        """What it printed, once it has ended well."""
        out, err = self._process.communicate(timeout=seconds)
        assert self._process.returncode == 0, f"{out}\n{err}"
        report: Report = json.loads(out)
        return report

    def end(self) -> None:
        """Leave none of its processes behind."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        with self._process:  # which waits for it, and closes its pipes
            pass


@contextmanager
def playing(name: str, folder: Path, **options: object) -> Iterator[Playing]:
    one = Playing(name, folder, **options)
    try:
        yield one
    finally:
        one.end()


def play(name: str, folder: Path, **options: object) -> Report:
    """Run a scenario to its end; a failure says how to replay it."""
    with playing(name, folder, **options) as one:
        return one.report()
