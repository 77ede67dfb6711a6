"""Runs the code of a page. Executed as a program: `python pages.py PAGE [BLOCK]`, in the folder to work in.

A page's blocks are one program, run in order, in one namespace and one event loop; `await` may stand at the top
level, as in `python -m asyncio`. A `text` block right after a `python` block is what that block prints. Blocks marked
otherwise (`sh`, `toml`, `text` on its own, `python` after an HTML comment `<!-- not run -->`) are only shown.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "<!-- not run -->"

_FENCE = re.compile(
    r"^(?P<comment><!-- not run -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """Some code of a page, the line it starts in, and what the page says that it prints."""

    code: str
    line: int
    output: str | None


def pages() -> list[Path]:
    """The README and every page of the documentation that holds code to run."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in found if "_build" not in page.parts and blocks(page)]


def blocks(page: Path) -> list[Block]:
    """The code of a page, in order."""
    text = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    found = []
    for fence, following in zip_longest(fences, fences[1:]):
        if fence["language"] != "python" or fence["comment"]:
            continue
        output = None
        if following and following["language"] == "text" and not text[fence.end() : following.start()].strip():
            output = following["code"]
        found.append(Block(fence["code"], text.count("\n", 0, fence.start("code")), output))
    return found


def run(page: Path, chosen: list[Block]) -> None:
    """Run blocks as one program and compare what they print."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for block in chosen:
            printed = io.StringIO()
            source = "\n" * block.line + block.code
            code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            with contextlib.redirect_stdout(printed):
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(eval(code, names))
                else:
                    exec(code, names)
            if block.output is not None and block.output != printed.getvalue():
                where = f"{page.name}:{block.line + 1}"
                sys.exit(f"{where} prints\n{printed.getvalue()}where the page shows\n{block.output}")


if __name__ == "__main__":
    page = Path(sys.argv[1])
    every = blocks(page)
    run(page, every if len(sys.argv) == 2 else [every[int(sys.argv[2])]])
