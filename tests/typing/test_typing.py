"""The types users see: both checkers accept what must be accepted, exactly, and refuse each marked mistake.

`refused.py` marks its wrong lines with `# E:` and the checkers that must report them; a line that is reported without
a marker, or marked without a report, fails.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FILES = (HERE / "accepted.py", HERE / "refused.py")
MARKER = re.compile(r"# E: ([a-z,]+)$")

Lines = set[tuple[str, int]]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 1, f"{command[0]} should have found errors\n{done.stdout}\n{done.stderr}"
    return done.stdout


def mypy_reports() -> dict[tuple[str, int], str]:
    strict = "--strict", "--config-file=", "--explicit-package-bases", "--python-version=3.11"
    output = run("mypy", *strict, "--cache-dir=.mypy_cache/typing", "--output=json", *map(str, FILES))
    found = [json.loads(line) for line in output.splitlines()]
    return {
        (file.name, it["line"]): it["message"]
        for it in found
        if it["severity"] == "error" and (file := ROOT / it["file"]) in FILES  # mypy looks at what they import, too
    }


def pyright_reports(config: Path) -> dict[tuple[str, int], str]:
    # a project of its own: the repository's leaves refused.py out
    settings: dict[str, Any] = {
        "include": [os.path.relpath(HERE, config.parent)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "enableTypeIgnoreComments": False,
        # a refused expression is no statement one would keep
        "reportUnusedExpression": "none",
    }
    config.write_text(json.dumps(settings))
    output = run("pyright", "-p", str(config), "--pythonpath", sys.executable, "--outputjson")
    found = json.loads(output)["generalDiagnostics"]
    return {(Path(it["file"]).name, it["range"]["start"]["line"] + 1): it["message"] for it in found}


def marked(checker: str) -> Lines:
    found: Lines = set()
    for file in FILES:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            marker = MARKER.search(line)
            if marker and checker in marker[1].split(","):
                found.add((file.name, number))
    return found


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_accepted_and_refused(checker: str, tmp_path: Path) -> None:
    reports = mypy_reports() if checker == "mypy" else pyright_reports(tmp_path / "pyrightconfig.json")
    expected = marked(checker)
    unexpected = {where: text for where, text in reports.items() if where not in expected}
    assert not unexpected, "reported, and should be accepted"
    assert not expected - set(reports), "accepted, and should be refused"


def test_there_is_something_to_check() -> None:
    assert FILES[0].read_text().count("assert_type(") >= 35
    assert len(marked("mypy") & marked("pyright")) >= 29
    assert all(name == "refused.py" for name, _ in marked("mypy") | marked("pyright"))
