"""How the demo shows itself: plain lines or JSON; `demo_live` is for terminals."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Self

import click
import msgspec

if TYPE_CHECKING:
    from jobs_async.cli.demo_summary import Summary, Tally

MAX_REASONS = 10


def shown(text: str) -> str:
    """Text that can do a terminal no harm: file names may hold control sequences."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def view_for(*, as_json: bool) -> View:
    """The view that fits standard output."""
    if as_json:
        return JsonView()
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from jobs_async.cli.demo_live import LiveView

        return LiveView()
    return View()


class View:
    """Plain lines, each flushed, for pipes, logs and tests."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        """Leave the terminal as it was."""

    def line(self, text: str) -> None:
        click.echo(text)

    def started(self, folder: str, before: Tally | None) -> None:
        """Say what is about to happen; `before` is how far an unfinished run is."""
        if before is None:
            self.line(f"indexing {shown(folder)}")
            self.line("three broken files are among them on purpose: they fail, are retried and given up")
            self.line("kill it at any moment, even with kill -9: started again, it goes on where it was")
        else:
            self.line(f"going on with {shown(folder)}: {before.ended:,} of {before.total:,} files are done")

    def progress(self, tally: Tally) -> None:
        """Called several times a second."""

    def report(self, tally: Tally, rescued: int) -> None:
        """What the reporter job says."""
        parts = [f"{tally.ended:,} of {tally.total:,} files", f"{tally.failed:,} failed"]
        if tally.retrying:
            parts.append(f"{tally.retrying:,} to be tried again")
        if rescued:
            parts.append(f"{rescued:,} taken over from a killed run")
        self.line(", ".join(parts))

    def ended(self, summary: Summary) -> None:
        for name in ("files", "lines", "functions", "classes"):
            self.line(f"{name:<12}{getattr(summary, name):>12,}")
        self.line(f"{'failed':<12}{summary.failed:>12,}")
        for text, count in reasons(summary):
            self.line(f"{count:>8,}  {text}")
        if summary.slowest:
            self.line("slowest, in CPU seconds")
        for slow in summary.slowest:
            self.line(f"{slow.cpu_seconds:>8.2f}  {short(slow.path, summary.folder)}")
        self.line(speed(summary))


class JsonView(View):
    """The summary as one JSON object on standard output, all else on standard error."""

    def line(self, text: str) -> None:
        click.echo(text, err=True)

    def ended(self, summary: Summary) -> None:
        click.echo(msgspec.json.format(msgspec.json.encode(summary)).decode())


def reasons(summary: Summary) -> list[tuple[str, int]]:
    """The commonest reasons, ready to be shown; the last line speaks for those there is no room for."""
    listed = [(shown(text), count) for text, count in summary.failures.items()]
    if len(listed) > MAX_REASONS:
        rest = listed[MAX_REASONS - 1 :]
        listed = [*listed[: MAX_REASONS - 1], (f"{len(rest)} other reasons", sum(count for _, count in rest))]
    return listed


def short(path: str, folder: str) -> str:
    """A path below the folder without it."""
    return shown(path.removeprefix(folder + os.sep))


def speed(summary: Summary) -> str:
    return (
        f"{summary.jobs:,} jobs in {summary.seconds:.1f} s, {summary.jobs_per_second:,.1f} jobs/s; "
        f"they waited {summary.wait_p50:.2f} s (p50), {summary.wait_p95:.2f} s (p95)"
    )
