"""The page about the command line names all there is."""

from __future__ import annotations

import click
import pytest

from jobs_async.cli import exits
from jobs_async.cli.main import main
from jobs_async.runtime import diagnosis
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "guides" / "command-line.md").read_text(encoding="utf-8")
OPTIONS = [
    (name, option.opts[-1])
    for name, command in main.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.hidden
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_of_every_command_is_listed(command: str, option: str) -> None:
    section = PAGE[PAGE.index(f"\n## {command}\n") :]
    section = section[: section.find("\n## ", 1)]
    assert f"`{option}" in section or f"`{option}" in PAGE[: PAGE.index("\n## run\n")]


def test_every_exit_code_is_listed() -> None:
    codes = [exits.OK, exits.FAILED, exits.USAGE, exits.TROUBLE, exits.STORE, exits.LEFT, exits.INTERRUPTED]
    assert all(f"\n| {code} |" in PAGE for code in codes)


def test_every_finding_is_listed() -> None:
    source = (ROOT / "jobs_async" / "runtime" / "diagnosis.py").read_text(encoding="utf-8")
    codes = {word for word in source.split('"') if word and word.replace("-", "").isalpha() and "-" in word}
    assert len(codes) >= 11
    assert {code for code in codes if f"| `{code}`" not in PAGE} == set()
    assert diagnosis.LONG_WAIT == 30
    assert diagnosis.LATE_BEAT == 15
