"""Every option there is stands on a page, in a table of what it means and what it is by default."""

from __future__ import annotations

import inspect
import re

import pytest

from jobs_async import JobQuery, Queue, Supervisor, WorkerOptions
from jobs_async.core.options import DEFAULTS, EnqueueOptions, JobOptions
from tests.docs.pages import ROOT

GUIDES = ROOT / "docs" / "guides"
ROW = re.compile(r"^\| (`[^|]+`) \|", re.MULTILINE)


def _listed(page: str, heading: str) -> set[str]:
    """The names in the first column of the tables below a heading, down to the next of its kind."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    [section] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name for row in ROW.findall(section) for name in re.findall(r"`(\w+)`", row)}


def _parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_job_options_have_defaults_and_are_those_of_an_enqueue() -> None:
    assert set(JobOptions.__annotations__) == set(DEFAULTS)
    assert set(EnqueueOptions.__optional_keys__) == {*DEFAULTS, "connection"}


@pytest.mark.parametrize("option", sorted(DEFAULTS))
def test_every_option_of_a_job_is_listed(option: str) -> None:
    assert option in _listed("options.md", "Of a job")


@pytest.mark.parametrize("option", sorted(_parameters(Supervisor)))
def test_every_option_of_the_supervisor_is_listed(option: str) -> None:
    assert option in _listed("options.md", "Of the Supervisor")


@pytest.mark.parametrize("option", sorted(set(WorkerOptions.__optional_keys__) - set(DEFAULTS)))
def test_every_option_of_a_worker_is_listed(option: str) -> None:
    assert option in _listed("options.md", "Who decides")


@pytest.mark.parametrize("option", sorted(_parameters(Queue)))
def test_every_option_of_a_queue_is_shown(option: str) -> None:
    text = (GUIDES / "options.md").read_text(encoding="utf-8")
    assert option in text[text.index("## Of a queue") : text.index("## Of the Supervisor")]


@pytest.mark.parametrize("condition", sorted(set(JobQuery.__struct_fields__) - {"after", "limit", "newest_first"}))
def test_every_condition_of_a_query_is_listed(condition: str) -> None:
    assert condition in _listed("operating.md", "Look")


def _used_in_tests(word: str) -> bool:
    files = [file for file in (ROOT / "tests").rglob("*.py") if file.parent.name not in ("docs", "typing")]
    pattern = re.compile(rf"\b{word}=|[\"']{word}[\"']")
    return any(pattern.search(file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("option", sorted({*DEFAULTS, *_parameters(Supervisor), *WorkerOptions.__optional_keys__}))
def test_every_option_is_used_in_a_test(option: str) -> None:
    assert option == "store" or _used_in_tests(option)


@pytest.mark.parametrize("option", sorted({*EnqueueOptions.__optional_keys__, *WorkerOptions.__optional_keys__}))
def test_every_option_is_among_the_type_tests(option: str) -> None:
    accepted = (ROOT / "tests" / "typing" / "accepted.py").read_text(encoding="utf-8")
    assert re.search(rf"\b{option}=", accepted)


@pytest.mark.parametrize("option", sorted(_parameters(Supervisor) - {"store"}))
def test_every_option_of_the_supervisor_is_among_the_type_tests(option: str) -> None:
    accepted = (ROOT / "tests" / "typing" / "accepted.py").read_text(encoding="utf-8")
    assert re.search(rf"\b{option}=", accepted)
