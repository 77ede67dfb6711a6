"""The feeds, as programs that somebody starts: what goes to the log, and what is kept with the broken one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*options: str) -> tuple[str, list[str]]:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "logging_app.py"), *options]
    ran = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    return ran.stdout, ran.stderr.splitlines()


KEPT = """\
job 3, attempt 1:
  INFO    feeds: fetching gossip
  WARNING jobs_async: job 3 (import_feed) failed in attempt 1 of 2; next in 0.2 s
job 3, attempt 2:
  INFO    feeds: fetching gossip
  WARNING jobs_async: job 3 (import_feed) failed in attempt 2 of 2; no attempt is left
"""


def test_lines_for_people_say_which_job_wrote_them_and_those_of_the_failure_are_kept() -> None:
    kept, lines = run()
    assert kept == KEPT
    told = [line.partition("Z ")[2] for line in lines]
    assert "INFO    feeds [import_feed #1 attempt 1] fetching news" in told
    assert "INFO    feeds [import_feed #2 attempt 1] parsed" in told, "in a thread"
    assert "ValueError: not a feed" in lines
    assert any(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z ", line) for line in lines)


def test_lines_for_programs_are_json() -> None:
    kept, lines = run("--json")
    assert kept == KEPT
    parsed = [line for line in map(json.loads, lines) if line["message"] == "parsed"]
    assert [(line["job_id"], line["feed"], line["entries"]) for line in parsed] == [
        (1, "news", 120),
        (2, "weather", 48),
    ]
    failures = [line for line in map(json.loads, lines) if "exception" in line]
    assert {(line["job_id"], line["attempt"]) for line in failures} == {(3, 1), (3, 2)}
