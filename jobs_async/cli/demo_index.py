"""What the demo's jobs do: find Python files, and count what is in one."""

from __future__ import annotations

import ast
import hashlib
import os
import re
from importlib.util import decode_source
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, unquote_to_bytes

from msgspec import Struct

from jobs_async.core.retry import ConstantBackoff
from jobs_async.core.workers import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs_async.core.options import Draft

QUEUE = "demo"
MAX_ATTEMPTS = 3
MAX_BYTES = 1_048_576
"""Larger files fail: the parser holds the interpreter for as long as it runs, and with it the node's sign of life."""

BROKEN = {
    "broken_syntax.py": b"def broken(:\n    pass\n",
    "broken_utf8.py": b"# a coding line\n# would have to stand\n# above this one: \xff\n",
    "broken_null.py": b"x = 1\n\0\n",
}
"""Files that no Python parses, each for a reason of its own, so that every run has something to retry and discard."""

_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_PLACE = re.compile(
    r" \(<unknown>, line \d+\)$| \(detected at line \d+\)| (?:on|at) line \d+| in position \d+(?:-\d+)?"
)
_PATH = re.compile(r"(?<=\])( [^:]*): .*", re.DOTALL)


class FileStats(Struct, frozen=True):
    """What is in one file, and the CPU seconds it took to find out."""

    lines: int
    functions: int
    classes: int
    cpu_seconds: float


@worker(name="demo.index_file", queue=QUEUE, max_attempts=MAX_ATTEMPTS, retry_strategy=ConstantBackoff(1))
def index_file(path: str) -> FileStats:
    """Parse a file and count its lines, functions and classes. Not async, so it runs in a thread.

    What cannot be read, decoded or parsed raises; the runtime retries and in the end discards it with that reason.
    """
    began = thread_time()  # wall time would for the most part be that of the files parsed beside this one
    with open(unpacked(path), "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    text = decode_source(data)
    functions = classes = 0
    for node in statements(ast.parse(text)):
        functions += isinstance(node, _FUNCTIONS)
        classes += isinstance(node, ast.ClassDef)
    lines = text.count("\n") + (text[-1:] not in ("", "\n"))
    return FileStats(lines, functions, classes, round(thread_time() - began, 4))


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement, however deep; expressions hold no definitions, and leaving them out is ten times faster."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        for name in _BODIES:
            stack.extend(getattr(node, name, ()))


def reason(error: str) -> str:
    """An error without the places it speaks of, so that like failures count as one reason."""
    error = _PLACE.sub("", error)
    return _PATH.sub(r"\1", error) if "[Errno " in error else error


# --- files, and how they are named in a job ---


class Source(Struct, frozen=True, kw_only=True):
    """Where the files are. Both folders are absolute."""

    folder: str
    broken: str
    leave_out: frozenset[str] = frozenset()

    def files(self) -> Iterator[str]:
        """The broken files, written if need be, then every .py file below the folder, in a stable order.

        Linked folders and unreadable ones are passed over, and so is what bears a name in `leave_out`.
        """
        yield from self._write_broken()
        for root, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if name not in self.leave_out)
            for name in sorted(names):
                path = os.path.join(root, name)
                if name.endswith(".py") and os.path.isfile(path):  # a pipe of that name would be read for ever
                    yield path

    def _write_broken(self) -> list[str]:
        folder = Path(self.broken)
        folder.mkdir(exist_ok=True)
        for name, data in {**BROKEN, ".gitignore": b"*\n"}.items():  # linters and git have no business here
            path = folder / name
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)
        return [str(folder / name) for name in BROKEN]


def packed(path: str) -> str:
    """A path as text that JSON can hold: itself, or a URL where its bytes are no valid Unicode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file:" + quote_from_bytes(os.fsencode(path))
    return path


def unpacked(path: str) -> str:
    """The inverse of `packed`; what it leaves as it is is absolute, so never begins like a URL."""
    return os.fsdecode(unquote_to_bytes(path[5:])) if path.startswith("file:") else path


def draft(path: str) -> Draft[FileStats]:
    """The one job of a file: its idempotency key makes enqueueing it again harmless, in whatever state the job is."""
    key = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    return index_file.options(idempotency_key=key).draft(packed(path))
