"""The demo on a terminal: a bar that moves, reports above it, tables at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from jobs_async.cli.demo_view import View, reasons, short, shown, speed

if TYPE_CHECKING:
    from jobs_async.cli.demo_summary import Summary, Tally


class LiveView(View):
    """For terminals of any width."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            TextColumn("[bold]{task.completed:,}[/] of {task.total:,}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=0, note="", start=False)

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def started(self, folder: str, before: Tally | None) -> None:
        super().started(folder, before)
        self._bar.start_task(self._task)
        self._bar.start()

    def progress(self, tally: Tally) -> None:
        rate = self._bar.tasks[0].speed
        notes = [f"[cyan]{rate:,.0f}/s[/]"] if rate else []
        notes += [f"[red]{tally.failed:,} failed[/]"] if tally.failed else []
        notes += [f"[yellow]{tally.retrying:,} to retry[/]"] if tally.retrying else []
        self._bar.update(self._task, total=tally.total, completed=tally.ended, note="  ".join(notes))

    def ended(self, summary: Summary) -> None:
        self._bar.stop()
        self._console.print()
        self._console.print(Rule(Text(shown(summary.folder), style="bold"), align="left", style="dim"))
        counted = ("files", "lines", "functions", "classes")
        self._table("", "cyan", [(f"{getattr(summary, name):,}", name) for name in counted])
        self._table(
            f"{summary.failed:,} failed (three are broken on purpose)",
            "red",
            [(f"{count:,}", text) for text, count in reasons(summary)],
        )
        slowest = [(f"{slow.cpu_seconds:.2f}", short(slow.path, summary.folder)) for slow in summary.slowest]
        self._table("slowest, in CPU seconds", "yellow", slowest)
        self._console.print(Text(speed(summary), style="green"))

    def _table(self, title: str, color: str, rows: list[tuple[str, str]]) -> None:
        """Numbers to the right, texts cut where the terminal ends; nothing where there are no rows."""
        if not rows:
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", min_width=10, no_wrap=True, style=f"bold {color}")
        table.add_column()
        for number, text in rows:
            table.add_row(number, Text(text, no_wrap=True, overflow="ellipsis"))
        if title:
            self._console.print(Text(title, style="bold"))
        self._console.print(Padding(table, (0, 0, 1, 0)))
