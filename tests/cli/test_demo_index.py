"""What the demo counts, and how it names files and reasons."""

from __future__ import annotations

import ast
import os
import sysconfig
from itertools import islice
from pathlib import Path

import pytest

from jobs_async.cli.demo_index import BROKEN, MAX_BYTES, Source, draft, index_file, packed, reason, unpacked
from jobs_async.cli.demo_summary import percentile
from jobs_async.cli.demo_view import shown

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def write(folder: Path, name: str, data: bytes) -> str:
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    with open(path, "wb") as file:
        file.write(data)
    return os.fsdecode(path)


def test_counts_what_a_walk_over_the_whole_tree_counts(tmp_path: Path) -> None:
    stdlib = sysconfig.get_path("stdlib")
    some = islice(Source(folder=stdlib, broken=str(tmp_path / "broken")).files(), len(BROKEN), 60)
    for path in [*some, os.path.join(stdlib, "asyncio", "base_events.py"), __file__]:
        with open(path, "rb") as file:
            data = file.read()
        nodes = list(ast.walk(ast.parse(data)))
        stats = index_file(path)
        assert stats.lines == len(data.splitlines())
        assert stats.functions == sum(isinstance(node, DEFINITIONS) for node in nodes)
        assert stats.classes == sum(isinstance(node, ast.ClassDef) for node in nodes)


def test_finds_definitions_wherever_statements_are(tmp_path: Path) -> None:
    source = """
try:
    def a(): pass
except E:
    def b(): pass
else:
    class C:
        async def c(self): pass
finally:
    def d(): pass
match x:
    case 1:
        def e(): pass
for _ in x:
    pass
else:
    def f(): pass
with x:
    class D: pass"""
    stats = index_file(write(tmp_path, "all.py", source.encode()))
    assert (stats.lines, stats.functions, stats.classes) == (19, 6, 2)


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("\n", 1), ("x", 1), ("x\r\ny\r\n", 2), ("x\x0cy", 1)])
def test_lines_are_counted_as_an_editor_does(tmp_path: Path, text: str, lines: int) -> None:
    try:
        assert index_file(write(tmp_path, "lines.py", text.encode())).lines == lines
    except SyntaxError:
        assert text == "x\x0cy"


def test_each_broken_file_fails_for_a_reason_of_its_own(tmp_path: Path) -> None:
    source = Source(folder=str(tmp_path), broken=str(tmp_path / "broken"))
    reasons = set()
    for path in islice(source.files(), len(BROKEN)):
        with pytest.raises((SyntaxError, ValueError)) as caught:  # which of them is for Python to say
            index_file(path)
        reasons.add(reason(f"{caught.type.__name__}: {caught.value}"))
    assert len(reasons) == len(BROKEN)
    assert "SyntaxError: invalid syntax" in reasons
    assert "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff: invalid start byte" in reasons


def test_a_file_too_large_to_be_source_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="larger than"):
        index_file(write(tmp_path, "large.py", b"#" * (MAX_BYTES + 1)))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("SyntaxError: '(' was never closed (<unknown>, line 12)", "SyntaxError: '(' was never closed"),
        (
            "SyntaxError: unterminated string literal (detected at line 3) (<unknown>, line 3)",
            "SyntaxError: unterminated string literal",
        ),
        (
            "IndentationError: expected an indented block after 'if' statement on line 4 (<unknown>, line 5)",
            "IndentationError: expected an indented block after 'if' statement",
        ),
        (
            "UnicodeDecodeError: 'ascii' codec can't decode byte 0xe4 in position 17: ordinal not in range(128)",
            "UnicodeDecodeError: 'ascii' codec can't decode byte 0xe4: ordinal not in range(128)",
        ),
        (
            "PermissionError: [Errno 13] Permission denied: '/a: b/c.py'",
            "PermissionError: [Errno 13] Permission denied",
        ),
        ("ValueError: source code string cannot contain null bytes",) * 2,
    ],
)
def test_a_reason_names_no_place(error: str, expected: str) -> None:
    assert reason(error) == expected


def test_names_of_any_bytes_are_found_packed_and_told_apart(tmp_path: Path) -> None:
    names = ["plain.py", "caf\u00e9.py", "new\nline.py", "\udcff.py", "\udcfe.py", "file:x.py"]
    for name in names:
        write(tmp_path, name, b"x = 1\n")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "gone.py").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    paths = list(Source(folder=str(tmp_path), broken=str(tmp_path / "broken")).files())[len(BROKEN) :]
    assert sorted(os.path.basename(path) for path in paths if "broken" not in path) == sorted(names)
    keys = set()
    for path in paths:
        made = draft(path)
        keys.add(made.opts.idempotency_key)
        assert unpacked(packed(path)) == path
        if "broken" not in path:
            assert index_file(packed(path)).lines == 1
    assert len(keys) == len(paths)


def test_what_is_shown_can_do_a_terminal_no_harm() -> None:
    assert shown("caf\u00e9\x1b[31m\n\udcff") == "caf\u00e9\\x1b[31m\\n\\udcff"


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile([1, 2, 3, 4], fraction) for fraction in (0.0, 0.5, 0.95)] == [1, 2, 4]
    assert percentile([], 0.5) == 0.0
